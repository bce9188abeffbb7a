"""Images to a cache of latents, once: in several processes, and going on where an earlier attempt stopped.

A shard is made of the images that stand in its place in the data set, always in the same batches, and written whole
or not at all. So a shard that is there is right, what is missing is made, and the result has the same bytes as that
of an attempt that nothing stopped (same machine, versions, threads, batch size). The manifest comes last.

**Damaged images.** Headers do not show all damage (`kindgene.data.encoded`), and a second pass that decodes everything
beforehand would cost each process as much as all its reading. So, if asked, an image that fails when its batch is read
is left out there: its place in the shard holds NaN, the shard's metadata tell its number, and so does the manifest.
Whoever makes the shard, and however often it is begun, the same places are empty.

Numbers are kept as float16 unless told otherwise (ours): half the bytes, and an error of at most 2^-11 of a number,
about 1/2000, which is under the autoencoder's own. An image of 256 pixels takes 32 KiB (4 x 32 x 32 numbers, mean and
standard deviation, image and mirror image), ImageNet's 1,281,167 take 42 GB.

Shapes: B batch, C channels, h, w size of a latent.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from kindgene import files
from kindgene._version import __version__
from kindgene.data import damaged
from kindgene.data.autoencoder import LatentScale, latent_shape, posterior, weights_sha256
from kindgene.data.dataset import Dataset
from kindgene.data.latents import (
    FORMAT,
    FORMAT_VERSION,
    JOB_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    SHARD_FOLDER,
    shard_path,
)
from kindgene.data.skipped import SKIPPED_FILE, refuse, warn, write_skipped
from kindgene.progress import NoProgress, Progress

SHARD_SIZE = 1024
"""Images a shard (ours): 32 MiB at 256 pixels."""

_AHEAD = 2  # batches that are read while one is encoded
_EMPTY = "skipped"  # in a shard's metadata: numbers of the images whose places are empty, as JSON
_T = TypeVar("_T")


class Processes(Protocol):
    """The processes that work together, as those of `kindgene.training.processes` do."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""

    def share(self, value: Any) -> Any:
        """The main process's value."""

    def first(self, work: Callable[[], _T]) -> _T | None:
        """What `work` comes to on the main process, which alone does it."""


class _Alone:
    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any) -> Any:
        return value

    def first(self, work: Callable[[], _T]) -> _T | None:
        return work()


def encode(
    dataset: Dataset,
    vae: Any,
    out: files.StrPath,
    *,
    vae_name: str = "",
    preprocessing: str = "",
    skip_damaged: bool = False,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 32,
    shard_size: int = SHARD_SIZE,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Path:
    """Encodes every image of `dataset`, and its mirror image, into the folder `out`; see `kindgene.data.latents`.

    `vae`: an `AutoencoderKL`, in eval mode, on the device and in the dtype that it is to compute in. `vae_name` and
    `preprocessing` are recorded. `processes`: each calls it alike and makes its share of the shards. A cache that is
    whole is checked, hash by hash; what is missing of it, or damaged, is made.

    `skip_damaged`: images that cannot be decoded are left out and said in one warning, and the file ``skipped.jsonl``
    lists them with those that were left out on loading; unless it is true the first raises ValueError, also where an
    earlier attempt left it out.

    Raises ValueError for a folder that holds other things or was begun with other images, another autoencoder or other
    settings; for a model that is no `AutoencoderKL`; for latents that the dtype cannot hold; and for a class of which
    damage leaves nothing.
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size and shard_size must be at least 1, got {batch_size} and {shard_size}")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"latents are kept as float16 or float32, not {dtype!r}")
    root, team = Path(out), processes or _Alone()
    shape = latent_shape(vae, dataset.shape)
    job = _Job(root, dataset, vae, shape, getattr(torch, dtype), batch_size, shard_size, skip_damaged)
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "images": len(dataset),
        "image_shape": list(dataset.shape),
        "latent_shape": list(shape),
        "dtype": dtype,
        "shard_size": shard_size,
        "scale": LatentScale.of(vae).to_dict(),
        "vae": {"sha256": weights_sha256(vae), "config": _plain(vae.config)},
        "data": dataset.fingerprint(),
        "class_names": list(dataset.class_names),
    }

    # What is there already.
    recorded: dict[str, str] = team.share(team.first(lambda: _begin(root, about, dataset.labels)))
    numbers = range(job.count)
    there = team.share([number for number in numbers if shard_path(root, number).is_file()])
    digests = {number: files.sha256(shard_path(root, number)) for number in there[team.rank :: team.size]}
    digests = _merged(team.gather(digests))
    wrong = {number for number, digest in digests.items() if recorded.get(str(number), digest) != digest}

    # What is missing.
    missing = [number for number in numbers if number not in digests or number in wrong]
    shown = NoProgress() if progress is None or team.rank else progress
    made = job.make(missing[team.rank :: team.size], shown)
    digests |= _merged(team.gather(made))
    told = {**about, "vae_name": vae_name, "preprocessing": preprocessing}
    team.first(lambda: job.conclude(told, digests, new=bool(missing) or not recorded))
    return root


@dataclass(frozen=True)
class _Job:
    root: Path
    dataset: Dataset
    vae: Any
    shape: tuple[int, int, int]
    dtype: torch.dtype
    batch_size: int
    shard_size: int
    skip_damaged: bool

    @property
    def count(self) -> int:
        """Of all shards."""
        return -(-len(self.dataset) // self.shard_size)

    def images(self, number: int) -> Tensor:
        """Indices of the images of a shard."""
        return torch.arange(number * self.shard_size, min((number + 1) * self.shard_size, len(self.dataset)))

    def make(self, numbers: list[int], progress: Progress) -> dict[int, str]:
        """Encodes and writes these shards; the hash of each."""
        batches = [part for number in numbers for part in self.images(number).split(self.batch_size)]
        read = _ahead(lambda part: damaged.read_fit(self.dataset, part, skip=self.skip_damaged), batches)
        total, done, started = sum(map(len, batches)), 0, time.perf_counter()
        digests = {}
        progress.start(total)
        try:
            for number in numbers:
                images = self.images(number)
                means, stds, kept = [], [], []
                for part in images.split(self.batch_size):
                    pixels, fit = next(read)
                    mean, std = self.spread(pixels, part, fit)
                    means.append(mean)
                    stds.append(std)
                    kept.append(fit)
                    done += len(part)
                    progress.update(done, images_per_second=done / (time.perf_counter() - started))
                path = shard_path(self.root, number)
                empty = images[~torch.cat(kept)].tolist()
                metadata = {_EMPTY: json.dumps(empty)} if empty else None
                files.write_safetensors(path, {"mean": torch.cat(means), "std": torch.cat(stds)}, metadata)
                digests[number] = files.sha256(path)
        finally:
            read.close()
            progress.close()
        return digests

    def spread(self, images: Tensor, part: Tensor, fit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, 2, C, h, w] of the images `part` [B], NaN where one is not `fit`."""
        if fit.all():
            return self.posteriors(images, part)
        mean, std = (torch.full((len(part), 2, *self.shape), torch.nan, dtype=self.dtype) for _ in range(2))
        if fit.any():
            mean[fit], std[fit] = self.posteriors(images, part[fit])
        return mean, std

    def posteriors(self, images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, 2, C, h, w] of images and mirror images, as they are kept."""
        found = posterior(self.vae, torch.cat([images, images.flip(-1)]))
        mean, std = (torch.stack(each.to(self.dtype).chunk(2), dim=1) for each in found)
        fit = mean.isfinite().flatten(1).all(1) & std.isfinite().flatten(1).all(1)
        if not fit.all():
            first = int(indices[~fit][0])
            raise ValueError(f"the latents of image {first} are not finite as {self.dtype}; try another VAE or float32")
        return mean, std

    def conclude(self, told: dict[str, Any], digests: dict[int, str], *, new: bool) -> None:
        """Writes the manifest, if there is something `new`, once all shards are there; ValueErrors as of `encode`."""
        empty = [index for number in sorted(digests) for index in _empty(shard_path(self.root, number))]
        if not new and (self.skip_damaged or not empty):
            return
        skipped = damaged.named(self.dataset, empty)
        if not self.skip_damaged:
            refuse(skipped)
        damaged.refuse_emptied(self.dataset, empty, skipped)
        warn(skipped, f"the data of {self.root}", len(self.dataset))
        write_skipped(self.root / SKIPPED_FILE, [*self.dataset.skipped, *skipped])
        counts = self.dataset.counts()
        for label in self.dataset.labels[empty].tolist():
            if label < len(counts):
                counts[self.dataset.class_names[label]] -= 1
        _finish(self.root, {**told, "counts": counts, "skipped": empty}, self.dataset.labels, digests)


def _begin(root: Path, about: dict[str, Any], labels: Tensor) -> dict[str, str]:
    """Makes the folder, or sees that it is this job's; the hashes of its shards where it is whole."""
    manifest = root / MANIFEST_FILE
    job = manifest if manifest.is_file() else root / JOB_FILE
    if job.is_file():
        _check_same(job, about)
    elif root.exists() and (not root.is_dir() or any(not files.is_leftover(path.name) for path in root.iterdir())):
        raise ValueError(f"{root} exists and is not an empty folder; choose a new one (nothing was written)")
    root.mkdir(parents=True, exist_ok=True)
    for folder in (root, root / SHARD_FOLDER):  # what a killed attempt left half written
        for path in folder.glob(".*"):
            if files.is_leftover(path.name):
                path.unlink()
    if job is not manifest:
        files.write_json(root / JOB_FILE, about)  # first: from here on the folder is known as this job's
        (root / SHARD_FOLDER).mkdir(exist_ok=True)
        return {}
    (root / SHARD_FOLDER).mkdir(exist_ok=True)
    (root / JOB_FILE).unlink(missing_ok=True)
    told = files.read_json(manifest)
    if not (root / LABELS_FILE).is_file() or files.sha256(root / LABELS_FILE) != told["labels"]["sha256"]:
        files.write_safetensors(root / LABELS_FILE, {"labels": labels})
    return {str(number): entry["sha256"] for number, entry in enumerate(told["shards"])}


def _check_same(path: Path, about: dict[str, Any]) -> None:
    before = files.read_json(path)
    now = json.loads(json.dumps(about))
    changed = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
    if changed:
        raise ValueError(
            f"{path.parent} was begun with other {', '.join(changed)}; give another folder, or remove this one"
        )


def _empty(shard: Path) -> list[int]:
    """Numbers of the images that were left out of a shard."""
    found: list[int] = json.loads(files.read_metadata(shard).get(_EMPTY, "[]"))
    return found


def _finish(root: Path, told: dict[str, Any], labels: Tensor, digests: dict[int, str]) -> None:
    """Writes the manifest, which makes the cache whole."""
    files.write_safetensors(root / LABELS_FILE, {"labels": labels})
    manifest = {
        **told,
        "library_version": __version__,
        "labels": _entry(root, root / LABELS_FILE, files.sha256(root / LABELS_FILE)),
        "shards": [_entry(root, shard_path(root, number), digests[number]) for number in sorted(digests)],
    }
    files.write_json(root / MANIFEST_FILE, manifest)
    (root / JOB_FILE).unlink(missing_ok=True)


def _entry(root: Path, path: Path, digest: str) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"file": path.relative_to(root).as_posix(), "sha256": digest, "bytes": path.stat().st_size}


def _ahead(read: Callable[[Tensor], _T], batches: Iterable[Tensor]) -> Generator[_T, None, None]:
    """What `read` makes of each batch, in order, some of them read before they are asked for."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[Future[_T]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(read, batch))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of diffusers without what it notes for itself (paths, versions)."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dict(config).items()
        if not key.startswith("_")
    }


def _merged(parts: list[dict[int, str]]) -> dict[int, str]:
    return {number: digest for part in parts for number, digest in part.items()}
