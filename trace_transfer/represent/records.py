"""What `represent` leaves: how far the embeddings of tasks lie apart."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trace_transfer.records import ModelIdentity, Name, Strict


class RepresentedModel(Strict):
    """How well one model's last-layer embeddings (not their t-SNE) keep tasks apart."""

    label: Name
    model: ModelIdentity
    fingerprint: str
    silhouette: float  # mean over texts, in [-1, 1], tasks as labels
    distances: tuple[tuple[float, ...], ...]  # Euclidean, between the centroids of the file's tasks, in their order
    spread: tuple[float, ...]  # mean distance of a task's texts from its centroid


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

    @model_validator(mode="after")
    def _of_each_task(self) -> Self:
        lists: list[tuple[Any, ...]] = [self.num_texts, self.data_sha256]
        for model in self.models:
            lists += [model.spread, model.distances, *model.distances]
        if any(len(one) != len(self.tasks) for one in lists):
            raise ValueError(f"numbers of other than {len(self.tasks)} tasks")
        return self
