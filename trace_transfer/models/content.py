"""What files hold, as SHA-256: a model is what its weights, its config and its tokenizer are, wherever it lies.

A file is hashed once, and remembered by its path, size and times in `sums` of the cache directory, so that a second
look costs nothing; a file that was touched is hashed again. One that the hub's client fetched is named by its SHA-256
already. The sum of a model's weights is that of its file, as `sha256sum` prints it; of several files, that of their
sorted sums: whatever they are called, but the same values cut into other files are other weights.
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

from trace_transfer.errors import UserError
from trace_transfer.files import remove_leftovers, sha256_file, sha256_text, write_text
from trace_transfer.models.stored_weights import read_leniently
from trace_transfer.progress import Advance, Reporter, Silent

SUMS, FORMAT = "sums", "trace-transfer/sums 1"
MOST = 2000  # files that are remembered, the last ones
SETTLED = 2.0  # s; of a younger file another writing may leave the same times
DAY = 86_400.0
BLOCK = 1 << 28
THREADS = 4  # files that are hashed at once
SHOWN = 1 << 30  # bytes to be hashed before it is worth a bar
PROVENANCE = ("_name_or_path", "name_or_path", "_commit_hash", "transformers_version")
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer*", "*.model", "*.tiktoken", "tekken.json", "vocab*", "merges*", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")

Mark = tuple[int, int, int]  # size, and the times of the last change of content and of status
Sums = dict[Path, tuple[Mark, str]]
_seen: Sums = {}  # what this process has hashed, where no file remembers it


def cache_directory() -> Path:
    """`$TRACE_TRANSFER_CACHE`, else `~/.cache/trace-transfer` (or below `$XDG_CACHE_HOME`)."""
    if named := os.environ.get("TRACE_TRANSFER_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trace-transfer"


def weights_sha256(files: Iterable[Path], reporter: Reporter | None = None) -> str:
    """One sum for the files of a model's weights, whatever they are called."""
    sums = sorted(file_sums(list(files), reporter or Silent()))
    return sums[0] if len(sums) == 1 else sha256_text("\n".join(sums))


def file_sums(files: Sequence[Path], reporter: Reporter) -> list[str]:
    """The SHA-256 of each file, hashed or remembered; a bar where much is to be hashed."""
    paths = [file.resolve() for file in files]
    known = _remembered() | _seen
    found: dict[Path, str] = {}
    for path, file in zip(paths, files, strict=True):
        if (digest := _name_of_blob(file) or _known(path, known.get(path))) is not None:
            found[path] = digest
    waiting = [path for path in dict.fromkeys(paths) if path not in found]
    size = sum(path.stat().st_size for path in waiting)
    if not waiting:
        return [found[path] for path in paths]
    fresh: Sums = {}
    shown = reporter if size > SHOWN else Silent()
    with shown.task("hashing weights, once", -(-size // BLOCK)) as advance:
        begun, marks = time.time(), [_mark(path) for path in waiting]
        with ThreadPoolExecutor(THREADS) as threads:
            digests = list(threads.map(lambda path: _hash(path, advance), waiting))
    for path, mark, digest in zip(waiting, marks, digests, strict=True):
        found[path] = digest
        if mark == _mark(path) and begun - max(mark[1:]) / 1e9 > SETTLED:
            fresh[path] = (mark, digest)
    _seen.update(fresh)
    if fresh:
        _remember(fresh)
    return [found[path] for path in paths]


def difference(what: str, then: str | None, now: str | None) -> str:
    """What to say where two sums are not the same; None for one that is not known."""
    were, are = (one[:12] if one else "not known" for one in (then, now))
    return f"the {what} differ: were sha {were}, are {are}"


def config_sha256(config: Mapping[str, Any]) -> str:
    """Of a config's values, in whatever order; of where it is from nothing."""
    return sha256_text(json.dumps(_without_provenance(config), sort_keys=True, default=str))


def config_file_sha256(directory: Path) -> str:
    """Of what a directory's `config.json` says."""
    return _sum_of_json(directory / CONFIGS[0])


def config_files_sha256(directory: Path) -> str:
    """Of a directory's config and generation config."""
    return sha256_text("\n".join(_sum_of_json(directory / name) for name in CONFIGS if (directory / name).is_file()))


def tokenizer_sha256(directory: Path) -> str:
    """Of all that a directory's tokenizer and chat templates are made of."""
    files = sorted({file for pattern in TOKENIZER for file in directory.glob(pattern) if file.is_file()})
    return sha256_text("\n".join(f"{file.relative_to(directory)} {_sum_of_json(file)}" for file in files))


def _sum_of_json(file: Path) -> str:
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
    digest = hashlib.sha256()
    room, done = memoryview(bytearray(1 << 22)), 0
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
    if not hasattr(os, "SEEK_DATA"):
        return [(0, size)]
    found, end = [], 0
    try:
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, end))
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there are no more
            return [(0, size)]
    return found


def _mark(path: Path) -> Mark:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _known(path: Path, entry: tuple[Mark, str] | None) -> str | None:
    return entry[1] if entry is not None and entry[0] == _mark(path) else None


def _name_of_blob(file: Path) -> str | None:
    """The name of a blob in the hub's cache, which is its SHA-256, unless it was written to after it was linked to."""
    if not file.is_symlink():
        return None
    blob = file.resolve()
    is_blob = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
    return blob.name if is_blob and blob.stat().st_mtime_ns <= file.lstat().st_mtime_ns else None


def _remembered() -> Sums:
    """What the file says; nothing where there is none, or it is not as it was written."""
    try:
        head, _, body = (cache_directory() / SUMS).read_text("utf-8").partition("\n")
    except (OSError, ValueError, RuntimeError):  # RuntimeError where nobody has a home
        return {}
    if head != f"{FORMAT} {sha256_text(body)}":
        return {}
    found: Sums = {}
    for line in body.split("\n")[:-1]:
        digest, size, changed, status, path = line.split(" ", 4)
        found[Path(path)] = ((int(size), int(changed), int(status)), digest)
    return found


def _remember(fresh: Sums) -> None:
    """Add to the file. Of two that write at once the last one's stays whole: what is lost is hashed again."""
    known = _remembered()
    for path, entry in fresh.items():
        if str(path).isprintable():  # neither lines within a name, nor bytes that are no text
            known.pop(path, None)
            known[path] = entry
    lines = [f"{digest} {' '.join(map(str, mark))} {path}\n" for path, (mark, digest) in list(known.items())[-MOST:]]
    body = "".join(lines)
    with suppress(OSError, UserError, RuntimeError):  # a cache that cannot be written costs time, nothing else
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory, older_than=DAY)
        write_text(directory / SUMS, f"{FORMAT} {sha256_text(body)}\n{body}")
