"""`run`: carry core sets along a layer match that is known; what `map` does after it has matched.

Reads: two models' configs, `layer_match.json` with its matrix, core files of the source. Writes: `correspondence.json`
and one translated `TASK.core.json` per core file, with copies of the match that they rest on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError
from trace_transfer.families.correspondence import build_correspondence
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import prepare_directory, sha256_file, write_text
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch
from trace_transfer.transfer.translation import Carried, carry, check_cores_fit

MATCH, SIMILARITY = "layer_match.json", "similarity.safetensors"


def carry_along(
    src: str | Path, dst: str | Path, match: Path, cores: Sequence[Path], *, how: str, ratio: float | None,
    rules: Sequence[str], out: Path,
) -> tuple[Carried, ...]:  # fmt: skip
    """Translate core files along the layer match in a directory.

    Raises:
        ArtefactError: the match is of other models; a core file is, or nothing of it has a counterpart.
    """
    registry = load_families([Path(path) for path in rules])
    source, target = open_model(src, registry), open_model(dst, registry)
    found: LayerMatch = read_artefact(match / MATCH, LayerMatch)
    for what, model, matched in (("source", source, found.source), ("target", target, found.target)):
        if model.identity.names_sha256 != matched.names_sha256:
            raise ArtefactError(f"{match / MATCH}: its {what} is {matched.id}; {model.source.name} is another model")
    pairs = tuple((pair.source, pair.target) for pair in found.pairs)
    similarity = {(pair.source, pair.target): pair.similarity for pair in found.pairs}
    correspondence = build_correspondence(source.anatomy, target.anatomy, pairs)
    match_sha256 = sha256_file(match / MATCH)
    carried = []
    for file in cores:
        core = read_artefact(file, CoreFile)
        check_cores_fit([(str(file), core)], source, target)
        carried.append(
            carry(
                core, correspondence, similarity, how=how, ratio=ratio, target=target, core_sha256=sha256_file(file),
                layer_match_sha256=match_sha256,
            )
        )  # fmt: skip
    directory = prepare_directory(out)
    for name in (MATCH, SIMILARITY):
        shutil.copyfile(match / name, directory / name)
    listed = CorrespondenceFile(
        source=source.identity, target=target.identity, layer_match_sha256=match_sha256, libraries=library_versions(),
        **correspondence.to_payload(),
    )  # fmt: skip
    write_text(directory / "correspondence.json", to_json(listed))
    for one in carried:
        write_text(directory / f"{one.core.task}.core.json", to_json(one.core))
    return tuple(carried)
