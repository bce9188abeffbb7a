"""How many samples show what was asked for, judged by an independent classifier.

The measure is our own: a classifier learns the classes from real training images, its accuracy is taken on real
images held out, and **recognised** is the share of samples that it assigns to the class that was asked for. It tells
whether a class is met, not how varied its samples are. A support vector machine (scikit-learn) learns any images, in
seconds where there are few classes; of glyphs, where it reaches 86 % on 150 classes, the network of
`kindgene.evaluation.network` is the better judge (99 %).

Shapes: N images, C channels, H height, W width, F features.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.svm import SVC

from kindgene.data.arrays import ArrayDataset

_LARGEST_SIDE = 16  # larger images are pooled: shapes tell classes apart, and the cost stays bounded
_PENALTY = 10.0  # of a training error; on digits 1, 10 and 100 differ by at most half a point


class Judge(Protocol):
    """A classifier; a label is a position in its own `class_names`, which are distinct."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """The label of each image: [N, C, H, W] -> long [N]."""

    def to_dict(self) -> dict[str, Any]:
        """What a result says of it: plain data for JSON."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained support vector machine; a label is a position in its own `class_names`.

    `accuracy` was measured on `held_out_count` real images, after training on `train_count` others.
    """

    machine: SVC
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    accuracy: float
    train_count: int
    held_out_count: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "support vector machine on pixels",
            "accuracy": self.accuracy,
            "trained_on": self.train_count,
            "held_out": self.held_out_count,
        }

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """The label of each image: float [N, C, H, W] -> long [N].

        Values outside [-1, 1] are clipped, as when an image is shown. Raises ValueError for images of another
        shape than those trained on, and for values that are not finite.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images have the shape {tuple(images.shape)}; "
                f"the classifier was trained on [N, {', '.join(map(str, self.image_shape))}]"
            )
        if not len(images):
            return torch.zeros(0, dtype=torch.int64)
        if not bool(torch.isfinite(images).all()):
            raise ValueError("images hold values that are not finite; the model that made them has diverged")
        return torch.from_numpy(self.machine.predict(_features(images)))


@dataclass(frozen=True)
class Recognised:
    """The share of `count` samples recognised as what was asked for: of all, and of each class asked for."""

    share: float
    per_class: dict[str, float]
    count: int


def train_classifier(train: ArrayDataset, held_out: ArrayDataset, seed: int, *, max_images: int = 10_000) -> Classifier:
    """Train on `train`, measure the accuracy on `held_out`.

    The cost of training grows with the square of the images: of more than `max_images`, a part with the same
    shares of the classes is drawn by `seed`. Raises ValueError unless both sets have the same classes, at
    least two, and images of the same shape, and `train` has images of every class.
    """
    if train.class_names != held_out.class_names:
        raise ValueError(
            f"the classes differ: {list(train.class_names)} to train on, {list(held_out.class_names)} held out"
        )
    if train.images.shape[1:] != held_out.images.shape[1:]:
        raise ValueError(
            f"the images differ in shape: {tuple(train.images.shape[1:])} to train on, "
            f"{tuple(held_out.images.shape[1:])} held out"
        )
    if len(train.class_names) < 2:
        raise ValueError(f"only one class, {train.class_names[0]!r}; a classifier needs at least two to tell apart")
    empty = [name for name, count in train.counts().items() if count == 0]
    if empty:
        raise ValueError(f"no training images of class {', '.join(map(repr, empty))}; leave it out or add images")
    if max_images < len(train.class_names):
        raise ValueError(f"max_images is {max_images}; the {len(train.class_names)} classes need at least one each")
    if len(train) > max_images:
        _, train = train.split(max_images / len(train), seed)

    machine = SVC(kernel="rbf", C=_PENALTY).fit(_features(train.images), train.labels.numpy())
    predicted_N = machine.predict(_features(held_out.images))
    channels, height, width = train.images.shape[1:]
    return Classifier(
        machine=machine,
        class_names=train.class_names,
        image_shape=(channels, height, width),
        accuracy=float(np.mean(predicted_N == held_out.labels.numpy())),
        train_count=len(train),
        held_out_count=len(held_out),
    )


def recognised(classifier: Judge, images: torch.Tensor, asked_names: Sequence[str]) -> Recognised:
    """The share of `images` [N, C, H, W] taken for the class asked for: `asked_names[i]` of image i.

    Raises ValueError for a name that the classifier does not know, and unless there is one name an image and
    at least one image.
    """
    if len(images) != len(asked_names) or not len(images):
        raise ValueError(f"{len(images)} images and {len(asked_names)} names; expected one name an image, at least one")
    _check_known(classifier, asked_names)
    return tally(classifier, classifier.predict(images), asked_names)


def tally(classifier: Judge, predicted_N: torch.Tensor, asked_names: Sequence[str]) -> Recognised:
    """`recognised` of labels that `classifier` has predicted already, of images drawn batch by batch."""
    _check_known(classifier, asked_names)
    position = {name: label for label, name in enumerate(classifier.class_names)}
    asked_N = torch.tensor([position[name] for name in asked_names])
    right_N = (predicted_N == asked_N).double()
    per_class = {name: float(right_N[asked_N == position[name]].mean()) for name in dict.fromkeys(asked_names)}
    return Recognised(share=float(right_N.mean()), per_class=per_class, count=len(asked_names))


def _check_known(classifier: Judge, asked_names: Sequence[str]) -> None:
    unknown = sorted(set(asked_names) - set(classifier.class_names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classifier.class_names, n=1)
        raise ValueError(
            f"unknown class {', '.join(map(repr, unknown))}; the classifier has {list(classifier.class_names)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _features(images: torch.Tensor) -> npt.NDArray[np.float64]:
    """Pixels as one row an image, [N, F], clipped to [-1, 1] and average-pooled to at most 16x16."""
    height, width = images.shape[2:]
    pooled = images.detach().to("cpu", torch.float64).clamp(-1.0, 1.0)
    if max(height, width) > _LARGEST_SIDE:
        pooled = F.adaptive_avg_pool2d(pooled, (min(height, _LARGEST_SIDE), min(width, _LARGEST_SIDE)))
    return pooled.flatten(1).numpy()
