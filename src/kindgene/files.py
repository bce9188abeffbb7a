"""Files that are never half there: written under a temporary name, flushed, renamed; read with one-line
errors.

A reader of `path` sees the old content or the new one, whatever happens to the writer (kill, power loss, full
disk): the bytes go to a temporary file in the same folder, which is flushed to disk (fsync), renamed over
`path`, and the folder is flushed too. Safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

StrPath = str | os.PathLike[str]
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_CHUNK = 1 << 20  # bytes
_THREADS = min(8, 2 * (os.cpu_count() or 1))  # most files at once: flushes wait for the disk, hashing for a core
_UMASK = threading.Lock()
_LEFTOVER = re.compile(r"\.tmp(-.*\.part|[A-Za-z0-9]{6})")  # our temporary files, and those of safetensors


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes (or replaces) a file as a whole. Raises OSError, and then leaves what was there before."""
    write_pieces(path, [data])
    sync_folder(Path(path).parent)


def write_pieces(path: StrPath, pieces: Iterable[bytes | memoryview]) -> None:
    """`write_bytes` of pieces, one after the other, for many files: `sync_folder` flushes their names together."""
    with _replacing(Path(path)) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)


def in_threads(act: Callable[[_Given], _Made], given: Sequence[_Given]) -> list[_Made]:
    """`act` of each, in threads: for reading, hashing, writing and flushing, which all run beside each other.

    The first error (in the order of `given`) is raised when all that had begun has ended; the rest is not begun.
    """
    if len(given) < 2:
        return [act(one) for one in given]
    pool = ThreadPoolExecutor(min(_THREADS, len(given)))
    try:
        return list(pool.map(act, given))
    finally:
        pool.shutdown(cancel_futures=True)


def write_json(path: StrPath, value: Any) -> None:
    """Writes a value as JSON: indented, keys in the order given, a newline at the end.

    Raises ValueError for what JSON cannot hold (NaN, infinity, other types).
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the value cannot be written as JSON: {error}") from error
    write_bytes(path, (text + "\n").encode())


def write_safetensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors (any layout, any device; tensors may share memory) as one safetensors file."""
    plain = {name: _own(tensor) for name, tensor in tensors.items()}
    with _replacing(Path(path)) as temporary:
        safetensors.torch.save_file(plain, temporary, None if metadata is None else dict(metadata))
    sync_folder(Path(path).parent)


def read_json(path: StrPath) -> Any:
    """Reads a JSON file. Raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    with _readable(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not valid JSON (truncated or damaged?): {error}") from error


def read_safetensors(path: StrPath) -> dict[str, Tensor]:
    """Reads all tensors, to the CPU. Raises ValueError naming the file and what is wrong with it."""
    path = Path(path)
    with _readable(path):
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: is not a whole safetensors file (truncated or damaged?): {error}") from error


def read_metadata(path: StrPath) -> dict[str, str]:
    """Reads a safetensors file's metadata without its tensors, {} where there is none. ValueErrors alike."""
    path = Path(path)
    with _readable(path):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: is not a whole safetensors file (truncated or damaged?): {error}") from error


def read_shapes(path: StrPath) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of a safetensors file's tensors from its header: no tensor is read. ValueErrors alike."""
    path = Path(path)
    with _readable(path):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: is not a whole safetensors file (truncated or damaged?): {error}") from error


def sha256(path: StrPath) -> str:
    """The file's SHA-256 as 64 hex digits. Raises ValueError where it cannot be read."""
    path = Path(path)
    digest = hashlib.sha256()
    with _readable(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(path: StrPath) -> None:
    """Flushes a folder's entries (new names, renames) to disk; nothing on Windows, which cannot."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The permission bits that new files of this process do not get."""
    with _UMASK:  # it is the process's own: two threads at once could leave the stricter one
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what a writer of this module left when it was killed."""
    return _LEFTOVER.fullmatch(name) is not None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block ends well and vanishes if not.

    Flushed before it is renamed; the folder, with the new name, is not flushed here.
    """
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())  # as any new file; mkstemp's are for the owner alone
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, sharing memory with no other (safetensors refuses what shares)."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and not tensor.is_conj() and not tensor.is_neg() else tensor.clone()
