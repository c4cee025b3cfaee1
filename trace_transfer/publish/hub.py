"""The Hugging Face hub: models and core files sent there, core files fetched from there.

Who pushes, and whether they may, is asked before any work; what is sent goes through huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, UserError, first_line
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.records import read_artefact

RECORDS = ("stream.json", "verification.json")
FOLDER = "trace-transfer"
_ON_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?:(?P<file>[\w./-]+)")


class HubError(UserError):
    """The hub cannot be reached, or does not let one do what is asked for."""


@dataclass(frozen=True)
class Destination:
    """A repository `owner/name` that may be written to; one that is not there is made, `private` or not."""

    repo: str
    private: bool


def destination(repo: str, *, private: bool = False) -> Destination:
    """Ask the hub who is logged in, and whether he may write to `owner/name` (or `name`, his own); makes nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not marked as exported

    try:
        validate_repo_id(repo)
        who = HfApi().whoami()
    except Exception as error:  # the hub client raises many kinds; each is one message to the user
        raise HubError(f"--push-to-hub {repo}: {first_line(error)}") from error
    name = str(who["name"])
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"--push-to-hub {repo}: the token of {name} may only read; log in with one that may write")
    owners = [name, *(str(one["name"]) for one in who.get("orgs", ()))]
    owner, _, rest = repo.rpartition("/")
    if owner and owner not in owners:
        raise HubError(f"--push-to-hub {repo}: {name} cannot write for '{owner}', only for {', '.join(owners)}")
    return Destination(f"{owner or name}/{rest}", private)


@contextmanager
def _repository(to: Destination, what: Path | str) -> Iterator[str]:
    from huggingface_hub import HfApi

    try:
        yield str(HfApi().create_repo(to.repo, private=to.private, exist_ok=True))
    except Exception as error:  # as above
        raise HubError(
            f"{to.repo}: {what} could not be sent to the hub: {first_line(error)}. What was made lies here and is "
            "whole; the same command sends it again"
        ) from error


def push_files(to: Destination, files: Mapping[str, Path | str], message: str) -> str:
    """Send files (name there → the file here, or a text) in one commit; returns the address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(name, one.encode() if isinstance(one, str) else one) for name, one in files.items()
    ]
    with _repository(to, next(iter(files))) as url:
        HfApi().create_commit(to.repo, operations, commit_message=message)
    return url


def local_file(name: str | Path) -> Path:
    """A path, or a file on the hub, `owner/name:FILE` (`owner/name@revision:FILE`), which is fetched."""
    from huggingface_hub import hf_hub_download

    found = _ON_HUB.fullmatch(str(name))
    if found is None or Path(name).exists():
        return Path(name)
    try:
        file = Path(hf_hub_download(found["repo"], found["file"], revision=found["revision"]))
        if beside := read_leniently(file).get("chosen", {}).get("file") if file.suffix == ".json" else None:
            hf_hub_download(found["repo"], str(Path(found["file"]).with_name(beside)), revision=found["revision"])
        return file
    except Exception as error:  # as above
        raise ArtefactError(
            f"{name}: {found['file']} of {found['repo']} could not be had from the hub: {first_line(error)}"
        ) from error


def publish_stream(to: Destination, out: Path, model: Path, patches: Sequence[Path]) -> str:
    """Send the model of a stream in `out` with its record and proof, and its patches unless they are larger than the
    model; returns the address."""
    size, others = (sum(file.stat().st_size for file in some) for some in (model.glob("*.safetensors"), patches))
    files = [*(out / name for name in RECORDS), *(patches if others <= size else ())]
    return publish_model(to, model, files, "How it was made, and patches to undo it")


def publish_model(to: Destination, model: Path, files: Sequence[Path], message: str = "Patches to undo it") -> str:
    """Send a model, and the patches that made it into a folder of the same repository; returns the address."""
    from huggingface_hub import HfApi

    with _repository(to, model) as url:
        HfApi().upload_folder(repo_id=to.repo, folder_path=model, commit_message="Model", ignore_patterns=[".*"])
    push_files(to, {f"{FOLDER}/{file.name}": file for file in files}, message)
    return url


def publish_cores(to: Destination, files: Sequence[Path], source: ModelSource) -> str:
    """Send the core files among what a command wrote, the layer match, and a card; returns the address."""
    from trace_transfer.publish.model_card import CARD, MATCH, cores_card  # here, as fetching a file needs no torch

    cores = [(read_artefact(file, CoreFile), file) for file in files if file.name.endswith(".core.json")]
    sent = [file for _, file in cores] + [file for file in files if file.name == MATCH]
    sent += [file.with_name(core.chosen.file) for core, file in cores if core.chosen is not None]
    return push_files(to, {CARD: cores_card(cores, source)} | {file.name: file for file in sent}, "Core sets")
