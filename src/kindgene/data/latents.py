"""Latents of images, encoded once: `load_latents` reads what `kindgene.data.encode` wrote.

```
latents/
  manifest.json          written last: without it the cache is not whole
  labels.safetensors     labels  int64 [N]
  shards/
    00000.safetensors    mean, std  [n, 2, C, h, w]: of the posterior, of the image and of its mirror image
  skipped.jsonl          what was left out of the data, if anything was, for people to read
```
Mean and standard deviation, not one frozen sample of the posterior: training draws a new one each time. The mirror
image is encoded too, for an autoencoder's latents of it are not the mirrored latents. Numbers are unscaled; the
manifest says how to scale them, as the autoencoder's own configuration did. An image that could not be decoded when
its turn came has a place (NaN) and a label too; the manifest lists such under ``skipped``, and they are not among those
that are read.

Files are mapped, so only what a batch asks for is read; processes share it.

Shapes: N images, n of a shard, B batch, C channels, h, w size of a latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import safetensors
import torch
from torch import Tensor

from kindgene import files, random
from kindgene.data.autoencoder import LatentScale
from kindgene.data.dataset import Dataset, flips
from kindgene.data.labels import check_indices, check_labels, check_names, chosen, held_out
from kindgene.data.skipped import SKIPPED_FILE, Skipped, read_skipped

FORMAT, FORMAT_VERSION = "kindgene-latents", 1
MANIFEST_FILE, LABELS_FILE, SHARD_FOLDER = "manifest.json", "labels.safetensors", "shards"
JOB_FILE = "job.json"
"""What is being encoded, until the manifest is there."""

Verify = Literal["sizes", "hashes", "nothing"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentDataset(Dataset):
    """Latents on disk, read on demand; `load_latents` makes it. It can be pickled.

    root: the cache's folder; rows: which of its images these are, int64 [N]; shard_size: images of each shard but the
    last; scale: how latents are scaled; facts: what a fingerprint says of the whole cache, plain data.
    """

    root: Path
    labels: Tensor
    class_names: tuple[str, ...]
    rows: Tensor
    latent_shape: tuple[int, int, int]
    shard_size: int
    scale: LatentScale
    facts: dict[str, Any]
    flip: bool = True
    skipped: tuple[Skipped, ...] = ()
    _shards: _Shards = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.latent_shape

    def batch(self, indices: Tensor) -> Tensor:
        """The posterior means of the images at `indices` (long [B]), not mirrored, scaled: float32 [B, C, h, w]."""
        mean, _ = self._posterior(indices, torch.zeros(len(indices), dtype=torch.long), with_std=False)
        return self.scale.scaled(mean)

    def sample(self, indices: Tensor, numbers: Tensor, seed: int) -> Tensor:
        """Draws from the posteriors of the images at `indices` [B] for the samples `numbers` [B]: [B, C, h, w].

        Of each the image or, if `flip`, by chance its mirror image, scaled. What is random is a function of the seed
        and each sample's number alone.
        """
        mirrored = flips(seed, numbers).long() if self.flip else torch.zeros(len(indices), dtype=torch.long)
        mean, std = self._posterior(indices, mirrored, with_std=True)
        noise = random.noise(seed, numbers, self.latent_shape, purpose=random.Purpose.POSTERIOR)
        return self.scale.scaled(mean + std * noise)

    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order.

        Images without class are left out. Raises ValueError for an unknown or repeated name, no names at all,
        or classes that have no images.
        """
        kept, labels = chosen(self.labels, self.class_names, names)
        return replace(self, labels=labels, rows=self.rows[kept], class_names=tuple(names))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), as `ArrayDataset.split` does: the same images for the same seed."""
        mask = held_out(self.labels, self.class_names, fraction, seed)
        return self._where(~mask), self._where(mask)

    def fingerprint(self) -> dict[str, Any]:
        """As of any `Dataset`, but quick: of the cache the manifest's hashes, not what the files hold."""
        return {
            "images": len(self),
            "class_names": list(self.class_names),
            "labels_sha256": hashlib.sha256(self.labels.numpy().tobytes()).hexdigest(),
            "rows_sha256": hashlib.sha256(self.rows.numpy().tobytes()).hexdigest(),
            "shape": list(self.shape),
            "flip": self.flip,
            **self.facts,
        }

    def _where(self, kept: Tensor) -> Self:
        return replace(self, labels=self.labels[kept], rows=self.rows[kept])

    def _posterior(self, indices: Tensor, mirrored: Tensor, *, with_std: bool) -> tuple[Tensor, Tensor]:
        """Mean and, if asked for, standard deviation [B, C, h, w] of images (0) or mirror images (1), float32."""
        check_indices(indices, len(self))
        rows = self.rows[indices].tolist()
        mean = torch.empty((len(rows), *self.latent_shape))
        std = torch.empty((len(rows) if with_std else 0, *self.latent_shape))
        for place, (row, side) in enumerate(zip(rows, mirrored.tolist(), strict=True)):
            number, within = divmod(row, self.shard_size)
            means, stds = self._shards.open(number)
            mean[place] = means[within, side]
            if with_std:
                std[place] = stds[within, side]
        return mean, std


class _Shards:
    """The shards of a cache, each mapped when first asked for, in every process anew."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: dict[int, tuple[Any, Any]] = {}

    def __reduce__(self) -> tuple[Callable[[Path], _Shards], tuple[Path]]:
        return _Shards, (self.root,)

    def open(self, number: int) -> tuple[Any, Any]:
        """Slices of mean and std, which read what they are indexed by."""
        if number not in self.opened:
            path = shard_path(self.root, number)
            try:
                file = cast(Any, safetensors.safe_open(path, framework="pt"))
            except (FileNotFoundError, safetensors.SafetensorError) as error:
                raise ValueError(f"{path}: is missing or damaged: {error}; encode again to make it anew") from error
            self.opened[number] = file.get_slice("mean"), file.get_slice("std")
        return self.opened[number]


def load_latents(path: files.StrPath, *, flip: bool = True, verify: Verify = "sizes") -> LatentDataset:
    """The latents in the folder `path`, read on demand.

    `flip`: training takes the mirror image of every other one. `verify`: "sizes" checks that every file is there with
    its length (quick); "hashes" that its SHA-256 is the manifest's (reads all); "nothing" trusts. Raises ValueError,
    naming the file, for a cache that is not whole, damaged, or of another format.
    """
    if verify not in ("sizes", "hashes", "nothing"):
        raise ValueError(f"verify is {verify!r}; it is 'sizes', 'hashes' or 'nothing'")
    root = Path(path).absolute()
    manifest = read_manifest(root)
    shards = manifest["shards"]
    if verify != "nothing":
        for entry in (manifest["labels"], *shards):
            _check_file(root, entry, hashed=verify == "hashes")
    labels = files.read_safetensors(root / LABELS_FILE)["labels"]
    names = tuple(manifest["class_names"])
    check_names(names)
    check_labels(labels, manifest["images"], names)
    kept = torch.ones(len(labels), dtype=torch.bool)
    empty = torch.tensor(manifest.get("skipped", []), dtype=torch.int64)
    check_indices(empty, len(labels))
    kept[empty] = False
    channels, height, width = manifest["latent_shape"]
    return LatentDataset(
        root=root,
        labels=labels[kept],
        class_names=names,
        rows=torch.nonzero(kept).flatten(),
        latent_shape=(channels, height, width),
        shard_size=manifest["shard_size"],
        scale=LatentScale.from_dict(manifest["scale"]),
        facts={
            "latents_sha256": content_sha256(manifest),
            "image_shape": manifest["image_shape"],
            "vae": {"name": manifest["vae_name"], "sha256": manifest["vae"]["sha256"]},
            "scale": manifest["scale"],
        },
        flip=flip,
        skipped=read_skipped(root / SKIPPED_FILE),
        _shards=_Shards(root),
    )


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a whole cache. Raises ValueError for a folder that holds none."""
    if not (root / MANIFEST_FILE).is_file():
        begun = (root / SHARD_FOLDER).is_dir()
        why = "encoding it was not finished: run the same kindgene encode again" if begun else "it holds no latents"
        raise ValueError(f"{root} has no {MANIFEST_FILE}: {why}")
    manifest = files.read_json(root / MANIFEST_FILE)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{root / MANIFEST_FILE} is not the manifest of latents (its 'format' is not {FORMAT!r})")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{root} has format version {manifest['format_version']}; this kindgene reads {FORMAT_VERSION}"
        )
    return manifest


def is_latents(path: Path) -> bool:
    """Whether a folder holds latents, whole or begun."""
    for name in (MANIFEST_FILE, JOB_FILE):
        if (path / name).is_file():
            told = files.read_json(path / name)
            return isinstance(told, dict) and told.get("format") == FORMAT
    return False


def content_sha256(manifest: dict[str, Any]) -> str:
    """What tells one cache's latents from another's, wherever they lie: the hash of their shards' hashes."""
    digests = "".join(entry["sha256"] for entry in manifest["shards"])
    return hashlib.sha256(digests.encode()).hexdigest()


def shard_path(root: Path, number: int) -> Path:
    """The file of a shard."""
    return root / SHARD_FOLDER / f"{number:05d}.safetensors"


def _check_file(root: Path, entry: dict[str, Any], *, hashed: bool) -> None:
    path = root / entry["file"]
    if not path.is_file():
        raise ValueError(f"{path} is missing; encode again to make it anew")
    found = path.stat().st_size
    if found != entry["bytes"]:
        raise ValueError(f"{path} has {found} bytes, the manifest says {entry['bytes']}; it is damaged: encode again")
    if hashed and files.sha256(path) != entry["sha256"]:
        raise ValueError(f"{path} does not have the hash that the manifest says; it is damaged: encode again")
