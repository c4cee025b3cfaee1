"""The Hugging Face hub: models and core files sent there, core files fetched from there.

Who pushes, and whether they may, is asked before any work; what is sent goes through huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, UserError, first_line
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.records import read_artefact

_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?"
_ON_HUB = (
    re.compile(rf"{_NAME}:(?P<file>[\w./-]+)"),
    re.compile(rf"hub://{_NAME}/(?P<file>[\w./-]+)"),
)


class HubError(UserError):
    """The hub cannot be reached, or does not let one do what is asked for."""


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to: `owner/name`, found by `destination`.

    Attributes:
        private: of a repository that is made; that of one that is there stays what it is.
    """

    repo: str
    private: bool


def destination(repo: str, *, private: bool = False) -> Destination:
    """Ask the hub who is logged in, and whether he may write there; nothing is made.

    Args:
        repo: `owner/name`, or `name` for one of the user's own.

    Raises:
        HubError: no valid name, not logged in, a token that only reads, another owner, or no connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not marked as exported

    asked = f"--push-to-hub {repo}"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{asked}: not a name of a repository, owner/name: {first_line(error)}") from error
    try:
        who = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise HubError(f"{asked}: nobody is logged in; run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{asked}: HF_HUB_OFFLINE is set, so nothing can be sent; unset it") from error
    except Exception as error:  # the hub client raises many kinds; each is one message to the user
        raise HubError(f"{asked}: the hub does not say who is logged in: {first_line(error)}") from error
    name = str(who["name"])
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(f"{asked}: the token of {name} may only read; log in with one that may write")
    owners = [name, *(str(one["name"]) for one in who.get("orgs", ()))]
    owner, _, rest = repo.rpartition("/")
    if owner and owner not in owners:
        raise HubError(f"{asked}: {name} cannot write for '{owner}', only for {', '.join(owners)}")
    return Destination(f"{owner or name}/{rest}", private)


def push_folder(to: Destination, folder: Path, message: str) -> str:
    """Send all files of a directory (a model) to a repository, which is made if it is not there; returns its address.

    Raises:
        HubError: the hub refuses or cannot be reached; what was made here stays, and the same command sends it again.
    """
    from huggingface_hub import HfApi

    try:
        url = HfApi().create_repo(to.repo, private=to.private, exist_ok=True)
        HfApi().upload_folder(repo_id=to.repo, folder_path=folder, commit_message=message, ignore_patterns=[".*"])
    except Exception as error:  # as above
        raise _not_sent(to, folder, error) from error
    return str(url)


def push_files(to: Destination, files: Mapping[str, Path | str], message: str) -> str:
    """Send files in one commit; returns the repository's address. Raises as `push_folder`.

    Args:
        files: name there → the file here, or a text.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(name, content.encode() if isinstance(content, str) else content)
        for name, content in files.items()
    ]
    try:
        url = HfApi().create_repo(to.repo, private=to.private, exist_ok=True)
        HfApi().create_commit(to.repo, operations, commit_message=message)
    except Exception as error:  # as above
        raise _not_sent(to, next(iter(files)), error) from error
    return str(url)


def _not_sent(to: Destination, what: Path | str, error: Exception) -> HubError:
    return HubError(
        f"{to.repo}: {what} could not be sent to the hub: {first_line(error)}. What was made lies here and is whole; "
        "the same command sends it again"
    )


def local_file(name: str | Path) -> Path:
    """A file as it is named by users: a path, or one on the hub, `owner/name:FILE` (`owner/name@revision:FILE`,
    `hub://owner/name/FILE`), which is fetched.

    Raises:
        ArtefactError: it is on the hub by its name, and cannot be had from there.
    """
    from huggingface_hub import hf_hub_download

    text = str(name)
    found = next((match for pattern in _ON_HUB if (match := pattern.fullmatch(text))), None)
    if found is None or Path(text).exists():
        return Path(name)
    try:
        file = Path(hf_hub_download(found["repo"], found["file"], revision=found["revision"]))
        if beside := read_leniently(file).get("chosen", {}).get("file") if file.suffix == ".json" else None:
            hf_hub_download(found["repo"], str(Path(found["file"]).with_name(beside)), revision=found["revision"])
        return file
    except Exception as error:  # as above
        raise ArtefactError(
            f"{text}: {found['file']} of {found['repo']} could not be had from the hub: {first_line(error)}"
        ) from error


def local_files(names: Sequence[str | Path]) -> tuple[Path, ...]:
    """Several, each as `local_file` says."""
    return tuple(local_file(name) for name in names)


RECORDS = ("stream.json", "verification.json")
FOLDER = "trace-transfer"


def publish_stream(to: Destination, out: Path, model: Path, patches: Sequence[Path]) -> str:
    """Send a stream's model, and into a folder of the same repository its record and proof, and its patches unless they
    are larger than the model; returns the address.

    Args:
        out: the directory of the stream.
    """
    url = push_folder(to, model, "Model")
    files = [out / name for name in RECORDS]
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if sum(patch.stat().st_size for patch in patches) <= size:
        files += patches
    push_files(to, {f"{FOLDER}/{file.name}": file for file in files}, "How it was made, and patches to undo it")
    return url


def publish_patched(to: Destination, model: Path, patches: Sequence[Path]) -> str:
    """Send a model that patches made, and the patches; returns the address."""
    url = push_folder(to, model, "Model")
    push_files(to, {f"{FOLDER}/{patch.name}": patch for patch in patches}, "Patches to undo it")
    return url


def publish_cores(to: Destination, files: Sequence[Path], source: ModelSource) -> str:
    """Send the core files among what a command wrote, the layer match, and a card; returns the address.

    Args:
        source: the model that they are of.
    """
    from trace_transfer.publish.model_card import CARD, MATCH, cores_card  # here, as fetching a file needs no torch

    cores = [(read_artefact(file, CoreFile), file) for file in files if file.name.endswith(".core.json")]
    sent: dict[str, Path | str] = {CARD: cores_card(cores, source)}
    sent |= {file.name: file for _, file in cores}
    sent |= {file.name: file for file in files if file.name == MATCH}
    sent |= {core.chosen.file: file.with_name(core.chosen.file) for core, file in cores if core.chosen is not None}
    return push_files(to, sent, "Core sets")
