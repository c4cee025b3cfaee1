"""What a model is, wherever it lies: SHA-256 of weights, config and tokenizer.

A file is hashed once, and remembered by its path, size and times in `sums` of the cache directory, so that a second
look costs nothing; a file that was touched is hashed again. The sum of a model's weights is that of its file, as
`sha256sum` prints it; of several files, that of their sorted sums: whatever they are called, but the same values cut
into other files are other weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from trace_transfer.files import sha256_file, sha256_text
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.progress import Advance, Reporter, Silent

SUMS = "sums"
SETTLED = 2.0  # s; of a younger file another writing may leave the same times
BLOCK = 1 << 28
THREADS = 4  # files that are hashed at once
SHOWN = 1 << 30  # bytes to be hashed before it is worth a bar
PROVENANCE = ("_name_or_path", "name_or_path", "_commit_hash", "transformers_version")
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer*", "*.model", "*.tiktoken", "tekken.json", "vocab*", "merges*", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_LINE = re.compile(r"[0-9a-f]{64} [0-9a-f]{64}")

_seen: dict[str, str] = {}  # what this process has hashed, where no file remembers it


def cache_directory() -> Path:
    """`$TRACE_TRANSFER_CACHE`, else `~/.cache/trace-transfer` (or below `$XDG_CACHE_HOME`)."""
    if named := os.environ.get("TRACE_TRANSFER_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trace-transfer"


def weights_sha256(files: Iterable[Path], reporter: Reporter | None = None) -> str:
    """One sum for the files of a model's weights, whatever they are called."""
    sums = sorted(file_sums(list(files), reporter or Silent()))
    return sums[0] if len(sums) == 1 else sha256_text("\n".join(sums))


def file_sums(files: Sequence[Path], reporter: Reporter) -> list[str]:
    """The SHA-256 of each file, hashed or remembered; a bar where much is to be hashed."""
    keys = {file: _key(file) for file in files}
    known = _remembered()
    waiting = [file for file, key in keys.items() if key not in known]
    size = sum(file.stat().st_size for file in waiting)
    shown = reporter if size > SHOWN else Silent()
    with shown.task("hashing weights, once", -(-size // BLOCK)) as advance, ThreadPoolExecutor(THREADS) as threads:
        begun, digests = time.time(), threads.map(lambda file: _hash(file, advance), waiting)
        for file, digest in zip(waiting, digests, strict=True):
            known[keys[file]] = digest
            stat = file.stat()
            if keys[file] == _key(file) and begun - max(stat.st_mtime, stat.st_ctime) > SETTLED:
                _remember(keys[file], digest)
    return [known[keys[file]] for file in files]


def difference(what: str, then: str | None, now: str | None) -> str:
    """What to say where two sums are not the same; None for one that is not known."""
    were, are = (one[:12] if one else "not known" for one in (then, now))
    return f"the {what} differ: were sha {were}, are {are}"


def config_sha256(config: Mapping[str, Any]) -> str:
    """Of a config's values, in whatever order; of where it is from nothing."""
    return sha256_text(json.dumps(_without_provenance(config), sort_keys=True, default=str))


def config_files_sha256(directory: Path) -> str:
    """Of a directory's config and generation config."""
    return sha256_text("\n".join(values_sha256(directory / name) for name in CONFIGS if (directory / name).is_file()))


def tokenizer_sha256(directory: Path) -> str:
    """Of all that a directory's tokenizer and chat templates are made of."""
    files = sorted({file for pattern in TOKENIZER for file in directory.glob(pattern) if file.is_file()})
    return sha256_text("\n".join(f"{file.relative_to(directory)} {values_sha256(file)}" for file in files))


def values_sha256(file: Path) -> str:
    """Of the values of a `…config.json`; of any other file, or of one that is no JSON object, of its bytes."""
    if file.name.endswith("config.json") and (values := read_leniently(file)):
        return config_sha256(values)
    return sha256_file(file)


def _without_provenance(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): _without_provenance(one) for key, one in value.items() if key not in PROVENANCE}
        if "torch_dtype" in kept:  # its name before transformers 5
            kept.setdefault("dtype", kept.pop("torch_dtype"))
        return kept
    return [_without_provenance(one) for one in value] if isinstance(value, (list, tuple)) else value


def _hash(path: Path, advance: Advance) -> str:
    """Of a file that is mostly holes (a stand-in for large weights), of its size and of what lies between them."""
    digest, room, done = hashlib.sha256(), memoryview(bytearray(1 << 22)), 0
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        extents = _extents(stream.fileno(), size)
        if 2 * sum(stop - start for start, stop in extents) >= size:
            extents = [(0, size)]
        else:
            digest.update(f"{size} {extents}\n".encode())
        for start, stop in extents:
            stream.seek(start)
            while start < stop and (count := stream.readinto(room[: stop - start])):
                digest.update(room[:count])
                start, done = start + count, done + count
                if done >= BLOCK:
                    done -= BLOCK
                    advance()
    return digest.hexdigest()


def _extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Where in a file data are, and no holes; all of it where the system cannot say."""
    found, end = [], 0
    try:
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, end))
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", None) != errno.ENXIO:  # which says that there are no more
            return [(0, size)]
    return found


def _key(file: Path) -> str:
    """Changes when a file is written to, touched or replaced."""
    path, stat = file.resolve(), file.stat()
    return sha256_text(f"{path!r} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")


def _remembered() -> dict[str, str]:
    """Key → digest, as far as the file says so; damaged lines are passed over."""
    with suppress(OSError, RuntimeError):  # RuntimeError where nobody has a home
        lines = (cache_directory() / SUMS).read_text("utf-8", "replace").split("\n")
        return {line[:64]: line[65:] for line in lines if _LINE.fullmatch(line)} | _seen
    return dict(_seen)


def _remember(key: str, digest: str) -> None:
    _seen[key] = digest
    with suppress(OSError, RuntimeError):  # a cache that cannot be written costs time, nothing else
        cache_directory().mkdir(parents=True, exist_ok=True)
        with (cache_directory() / SUMS).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{key} {digest}\n")
