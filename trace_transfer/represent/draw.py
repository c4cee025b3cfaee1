"""Representations of several models as a page that needs no network and as a picture: `view_of`, then `write_html` and
`write_png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trace_transfer.files import replacing, write_text
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.represent.representation_view import Panel, Representation

METADATA_TEXTS = "texts"  # in embeddings.safetensors: JSON, id and first words of each text


def view_of(
    file: RepresentationFile, coordinates: Sequence[NDArray[np.float32]], texts: Sequence[Mapping[str, str]]
) -> Representation:
    """What is shown of a `representation.json` and, of each of its models, the t-SNE coordinates [texts, 2]."""
    unified = file.settings.get("space") == "unified"
    panels = tuple(
        Panel(model.label, np.asarray(points), model.silhouette, np.array(model.distances), model.spread)
        for model, points in zip(file.models, coordinates, strict=True)
    )
    same_kind = len({model.model.names_sha256 for model in file.models}) == 1
    return Representation(
        file.tasks, file.num_texts, panels, tuple(texts), unified, _subtitle(file, unified), same_kind
    )


def write_html(path: Path, representation: Representation) -> None:
    """Write the interactive page."""
    from trace_transfer.represent.representation_page import page

    write_text(path, page(representation))


def write_png(path: Path, representation: Representation) -> None:
    """Draw the picture, 150 dpi."""
    from trace_transfer.represent.representation_png import picture

    with replacing(path) as temporary:
        picture(representation).savefig(temporary, format="png")


def _subtitle(file: RepresentationFile, unified: bool) -> str:
    settings = file.settings
    pooled = "the last token" if settings.get("pool") == "last" else "mean over tokens"
    one = len(file.models) == 1
    space = "t-SNE" if one else "one t-SNE space of all models" if unified else "a t-SNE space of each model"
    drawn = f"perplexity {settings.get('perplexity', '?'):g}, seed {settings.get('seed', '?')}"
    return f"Final hidden states, {pooled}; {sum(file.num_texts)} texts; {space} ({drawn})"
