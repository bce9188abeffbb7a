"""ImageNet as the studies see it: the paper's protocol, on latents of a VAE (superclasses: docs/imagenet.md).

```
DATA/
  train/n01440764/...    or the class folders themselves
  val/n01440764/...      validation images in class folders, if there are any
FAR/
  celeba-hq/  hubble/  mri/  pokemon/      images, or class folders of images
```
Validation images are halved, to choose by and to report. Where there are none, and of the far sets, a share of the
images of each class is held out, by seed: what is held out never depends on which classes are asked for.

Images are encoded into the studies' folder when they are first needed, the base classes together, novel classes task by
task. The eyes see images, not latents: real ones as they are, samples decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kindgene.data.autoencoder import decoded, latent_shape, weights_sha256
from kindgene.data.dataset import Dataset
from kindgene.data.encode import encode
from kindgene.data.folder import count_images, load_folder
from kindgene.data.imagenet import Split, find_folders, imagenet_superclasses, needed_folders, superclasses_of
from kindgene.data.latents import load_latents
from kindgene.data.regrouped import regrouped
from kindgene.evaluation.classifier import Judge
from kindgene.evaluation.feature_judge import fit_judge
from kindgene.evaluation.features import Extractor
from kindgene.evaluation.pixels import PixelExtractor
from kindgene.files import StrPath
from kindgene.progress import NoProgress
from kindgene.studies.cell import best_device
from kindgene.studies.cells import ShowProgress
from kindgene.studies.source import Splits

PIXELS = 256
FAR = ("celeba-hq", "hubble", "mri", "pokemon")
"""The paper's four far sets, as folders are called."""
HELD_OUT = 0.04
"""The share of each class that is held out to choose by, and again to report, where there are no validation images."""
JUDGED_PER_CLASS = 200
"""Images of each class that a judge learns from (ours)."""
_CHANNELS = 3


class ImageNet:
    """The data in the folder `data`, far sets in `far`; latents are kept in `folder`.

    `vae`: an `AutoencoderKL`, `vae_name` what is written down of it; None: what needs no images can be asked for, no
    more. `extractor` None: layout and colour alone are seen (`PixelExtractor`). Raises ValueError where the base
    classes are not there.
    """

    def __init__(
        self,
        data: StrPath,
        folder: StrPath,
        *,
        vae: Any = None,
        vae_name: str = "",
        extractor: Extractor | None = None,
        far: StrPath | None = None,
        show: ShowProgress | None = None,
    ) -> None:
        self.folder, self.far_folder = Path(folder), None if far is None else Path(far)
        self.data, self.train_folder = Path(data), find_folders(data, "base")
        self.vae, self.vae_name = vae, vae_name
        self.eyes: Extractor = extractor or PixelExtractor()
        self.show: ShowProgress = show or (lambda text: NoProgress())
        self.base = tuple(one.name for one in superclasses_of("base"))
        self.novel = tuple(one.name for one in superclasses_of("novel"))
        self.pixels = PIXELS
        if vae is not None:
            latent_shape(vae, (_CHANNELS, self.pixels, self.pixels))  # refused before any work
            vae.to(best_device())

    @cached_property
    def validation_folder(self) -> Path | None:
        """Where validation images lie in class folders; None where they do not."""
        beside = self.train_folder.parent if self.train_folder.name == "train" else self.train_folder
        folder = beside / "val"
        return folder if (folder / needed_folders("base")[0]).is_dir() else None

    def splits(self, names: Sequence[str]) -> Splits:
        """Latents of these superclasses, base or novel. Raises ValueError where there is no VAE to make them."""
        self._check_vae()
        if set(names) <= set(self.base):
            return _subset(self._base, names)
        find_folders(self.data, "novel")
        return self._of_classes(tuple(names), "novel-" + hashlib.sha256("\0".join(names).encode()).hexdigest()[:16])

    def far(self, name: str, classes: int) -> Splits:
        """The first classes of a far set; a folder of images alone is one class."""
        self._check_vae()
        if self.far_folder is None:
            raise ValueError(f"far sets are given with --far, the folder that holds {', '.join(FAR)}")
        if not (self.far_folder / name).is_dir():
            raise ValueError(f"{self.far_folder} has no folder {name}; it must hold the far sets {', '.join(FAR)}")
        images = load_folder(self.far_folder / name, self.pixels, _CHANNELS, min_side=1, flip=True)
        return _subset(self._divided(images, f"far-{name}"), images.class_names[:classes])

    def judge(self, splits: Splits) -> Judge | None:
        """Who recognises these classes by the eyes' features; None where there is but one."""
        train, _ = splits.seen
        return fit_judge(self.eyes, train, JUDGED_PER_CLASS) if len(train.class_names) > 1 else None

    def told(self) -> dict[str, Any]:
        """Which eyes and which autoencoder; what was held out."""
        vae = None if self.vae is None else {"name": self.vae_name, "sha256": self._vae_sha256}
        return {
            "source": {
                "data": "imagenet",
                "pixels": self.pixels,
                "held_out": self.held_out,
                "vae": vae,
                "extractor": self.eyes.to_dict(),
            }
        }

    @property
    def held_out(self) -> str:
        """What is held out, in words."""
        if self.validation_folder is not None:
            return "validation images, half to choose by, half to report"
        return f"of each class {HELD_OUT:.0%} of the training images to choose by, {HELD_OUT:.0%} to report, by seed 0"

    def facts(self) -> dict[str, Any]:
        """What is there, counted and not read: for a dry run."""
        found: dict[str, Any] = {"superclasses": len(imagenet_superclasses()), "held_out": self.held_out}
        for part in ("base", "novel"):
            found[part] = self._counted(part)
        if self.far_folder is not None:
            there = {name: self.far_folder / name for name in FAR}
            found["far"] = {name: _images_below(path) if path.is_dir() else None for name, path in there.items()}
        return found

    def _counted(self, part: Split) -> dict[str, int]:
        wanted = needed_folders(part)
        there = [wnid for wnid in wanted if (self.train_folder / wnid).is_dir()]
        complete = [one for one in superclasses_of(part) if set(one.members) <= set(there)]
        return {
            "superclasses": len(complete),
            "folders": len(there),
            "of": len(wanted),
            "images": sum(count_images(self.train_folder / wnid) for wnid in there),
        }

    @cached_property
    def _vae_sha256(self) -> str:
        return weights_sha256(self.vae)

    @cached_property
    def _base(self) -> Splits:
        return self._of_classes(self.base, "base")

    def _of_classes(self, names: tuple[str, ...], key: str) -> Splits:
        images = self._images(self.train_folder, names, flip=True)
        if self.validation_folder is None:
            return self._divided(images, key)
        held_out = self._images(self.validation_folder, names, flip=False)
        validation, test = self._latents(held_out, f"{key}-validation").split(0.5, seed=0)
        _, pictures = held_out.split(0.5, seed=0)
        return Splits(self._latents(images, key), validation, test, (images, pictures), self._decode)

    def _divided(self, images: Dataset, key: str) -> Splits:
        latents = self._latents(images, key)
        others, test = latents.split(HELD_OUT, seed=0)
        train, validation = others.split(HELD_OUT, seed=0)
        other_pictures, test_pictures = images.split(HELD_OUT, seed=0)
        train_pictures, _ = other_pictures.split(HELD_OUT, seed=0)
        return Splits(train, validation, test, (train_pictures, test_pictures), self._decode)

    def _images(self, root: Path, names: Sequence[str], *, flip: bool) -> Dataset:
        members = {one.name: one.members for one in imagenet_superclasses()}
        wnids = [wnid for name in names for wnid in members[name]]
        progress = self.show(f"look through {root.name}")
        images = load_folder(root, self.pixels, _CHANNELS, classes=wnids, min_side=1, flip=flip, progress=progress)
        return regrouped(images, {name: members[name] for name in names})

    def _latents(self, images: Dataset, key: str) -> Dataset:
        preprocessing = "upright (EXIF), reduced and centre-cropped as ADM (Dhariwal and Nichol 2021), -1 .. 1"
        root = encode(
            images,
            self.vae,
            self.folder / key,
            vae_name=self.vae_name,
            preprocessing=preprocessing,
            progress=self.show(f"encode {key}"),
        )
        return load_latents(root, flip=images.flip)

    def _check_vae(self) -> None:
        if self.vae is None:
            raise ValueError("models of ImageNet see latents: name the VAE that makes them with --vae")

    def _decode(self, samples: Tensor) -> Tensor:
        return decoded(self.vae, samples)


def _subset(splits: Splits, names: Sequence[str]) -> Splits:
    train, validation, test = (part.subset(names) for part in (splits.train, splits.validation, splits.test))
    seen, reported = (part.subset(names) for part in splits.seen)
    return Splits(train, validation, test, (seen, reported), splits.decode)


def _images_below(folder: Path) -> int:
    return count_images(folder) + sum(count_images(path) for path in folder.iterdir() if path.is_dir())
