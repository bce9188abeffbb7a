"""Where a study's images come from, and the eyes that judge what models draw of them: what a `Source` offers.

At the scales that need no download: glyphs, whose superclasses are divided into 150 base and 461 novel ones, and the
four far sets. The eyes are the network that learned all 611 superclasses; far sets, which it does not know, are
recognised by a support vector machine trained on their own images, and their Frechet distance is taken in the network's
features, which were not made for them: it orders models, and is no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from kindgene.data.arrays import ArrayDataset
from kindgene.data.dataset import Dataset
from kindgene.data.glyphs import Split, load_glyphs
from kindgene.data.shifts import SHIFTS, Shift, load_shift
from kindgene.data.superclasses import superclasses
from kindgene.evaluation.classifier import Judge, train_classifier
from kindgene.evaluation.features import Extractor
from kindgene.evaluation.learned import network_extractor
from kindgene.evaluation.network import NetworkExtractor, NetworkJudge, NetworkSettings, train_network
from kindgene.files import StrPath
from kindgene.studies.cell import best_device

_SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")
_FEW_DIGITS = 30  # every split has at least so many of each digit


@dataclass(frozen=True)
class Splits:
    """Images to train on, to choose by, and to report.

    Where these are latents, `pictures` are the images that `train` and `test` were made of, for the eyes, and `decode`
    makes images [N, C, H, W] of latents.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    pictures: tuple[Dataset, Dataset] | None = None
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def seen(self) -> tuple[Dataset, Dataset]:
        """The images to train on and to report, as the eyes see them."""
        return (self.train, self.test) if self.pictures is None else self.pictures

    @property
    def clip(self) -> float | None:
        """Where `sample` keeps clean images: latents know no bounds."""
        return 1.0 if self.decode is None else None

    def drawn(self, samples: Tensor) -> Tensor:
        """A model's samples as images."""
        return samples if self.decode is None else self.decode(samples)


class Source(Protocol):
    """Data of base and novel classes and of far sets, and the eyes for them."""

    @property
    def base(self) -> tuple[str, ...]: ...
    @property
    def novel(self) -> tuple[str, ...]: ...
    @property
    def eyes(self) -> Extractor:
        """The extractor of every Frechet distance."""

    def splits(self, names: Sequence[str]) -> Splits:
        """Data of these classes."""

    def far(self, name: str, classes: int) -> Splits:
        """The first classes of a far set."""

    def judge(self, splits: Splits) -> Judge | None:
        """Who recognises the classes of these data; None where nobody can."""

    def told(self) -> dict[str, Any]:
        """What figures depend on beside the settings, plain data; {} where all of it comes with the package."""


class Glyphs:
    """Glyphs and the far sets, grey images [1, S, S]: of each class `per_class` train, `held_out` choose and report.

    `quick`: eyes that have hardly learned, in a second: to try the machinery.
    """

    channels = 1

    def __init__(
        self, image_size: int, per_class: int, held_out: int, *, quick: bool = False, cache: StrPath | None = None
    ) -> None:
        self.image_size, self.quick, self.cache = image_size, quick, cache
        self.counts = {"train": per_class, "validation": held_out, "test": held_out}
        groups = superclasses()
        self.base = tuple(group.name for group in groups if group.group == "base")
        self.novel = tuple(group.name for group in groups if group.group == "novel")

    def splits(self, names: Sequence[str]) -> Splits:
        """Glyphs of these classes."""
        train, validation, test = (self._glyphs(split, names, self.counts[split]) for split in _SPLITS)
        return Splits(train, validation, test)

    def far(self, name: str, classes: int) -> Splits:
        """The first classes of a far set; of digits, which are real, no more images than there are."""
        shift: Shift = next(one for one in SHIFTS if one == name)
        parts = []
        for split in _SPLITS:
            count = self.counts[split]
            few = name == "digits" and count > _FEW_DIGITS
            whole = load_shift(shift, split, self.image_size, per_class=None if few else count)
            parts.append(whole.subset(whole.class_names[:classes]))
        train, validation, test = parts
        return Splits(train, validation, test)

    @cached_property
    def eyes(self) -> NetworkExtractor:
        """The extractor of every Frechet distance."""
        if not self.quick:
            return network_extractor("glyphs", self.image_size, cache=self.cache, device=best_device())
        names = (*self.base, *self.novel)
        train, held_out = self._glyphs("train", names, 1), self._glyphs("validation", names, 1)
        return train_network(train, held_out, NetworkSettings(images_seen=256), learned="quick")

    def judge(self, splits: Splits) -> Judge:
        """Who recognises the classes of these images."""
        names = splits.train.class_names
        if all(name in self.eyes.class_names for name in names):
            return NetworkJudge(self.eyes, names)
        train, test = splits.train, splits.test
        assert isinstance(train, ArrayDataset)
        assert isinstance(test, ArrayDataset)
        return train_classifier(train, test, seed=0)

    def told(self) -> dict[str, Any]:
        return {}

    def _glyphs(self, split: Split, names: Sequence[str], per_class: int) -> ArrayDataset:
        return load_glyphs(split, names, self.image_size, per_class=per_class, cache=self.cache)
