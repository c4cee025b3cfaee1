"""What `represent` leaves: how far the embeddings of tasks lie apart."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trace_transfer.records import ModelIdentity, Name, Strict


class RepresentedModel(Strict):
    """How well one model's last-layer embeddings keep tasks apart.

    `silhouette` (mean over texts, in [-1, 1], tasks as labels) and `distances` between the tasks' centroids (Euclidean,
    row i and column j in the order of the file's tasks) are of the embeddings themselves, not of their t-SNE;
    `spread` is the mean distance of a task's texts from its centroid.
    """

    label: Name
    model: ModelIdentity
    fingerprint: str
    silhouette: float
    distances: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]


class RepresentationFile(Strict):
    """`representation.json`; embeddings and their t-SNE coordinates lie beside it, one tensor of each per model."""

    format: Literal["trace-transfer/representation"] = "trace-transfer/representation"
    version: Literal[1] = 1
    tasks: tuple[str, ...]
    num_texts: tuple[int, ...]
    data_sha256: tuple[str, ...]
    models: tuple[RepresentedModel, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)

    @property
    def one_kind(self) -> bool:
        """Whether all models have the same tensors."""
        return len({model.model.names_sha256 for model in self.models}) == 1

    @model_validator(mode="after")
    def _of_each_task(self) -> Self:
        of: dict[str, Any] = {"num_texts": self.num_texts, "data_sha256": self.data_sha256}
        for model in self.models:
            of |= {f"spread of {model.label}": model.spread, f"distances of {model.label}": model.distances}
            of |= {f"distances[{number}] of {model.label}": row for number, row in enumerate(model.distances)}
        if wrong := [f"{len(found)} {name}" for name, found in of.items() if len(found) != len(self.tasks)]:
            raise ValueError(f"{', '.join(wrong)} for {len(self.tasks)} tasks")
        return self
