"""A small convolutional classifier, trained here: features for images that Inception has never seen.

Its last layer but one is the extractor, its classes the judge of what samples show (our own choice throughout). Which
networks there are, and where they are kept: `kindgene.evaluation.learned`.

Shapes: B batch, S pixels a side, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kindgene.data.arrays import ArrayDataset
from kindgene.data.autoencoder import weights_sha256
from kindgene.data.dataset import Dataset
from kindgene.evaluation.features import Extractor, Features, batches_of, full_precision, to_pixels
from kindgene.progress import NoProgress, Progress

DIMENSION = 64
_CHANNELS = (32, 64, 128)
_AT_ONCE = 1_024


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How a network is trained: Adam, its learning rate falling by a half cosine; `per_class` images, if bounded."""

    images_seen: int
    per_class: int | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0


class Network(nn.Module):
    """Three convolutions, strides S // 16 (at least 1), 2, 2; D features after a ReLU; K logits."""

    def __init__(self, image_size: int, num_classes: int) -> None:
        super().__init__()
        stride = max(1, image_size // 16)
        side = image_size // stride // 4
        layers: list[nn.Module] = []
        for before, after, step in zip((1, *_CHANNELS[:-1]), _CHANNELS, (stride, 2, 2), strict=True):
            layers += [nn.Conv2d(before, after, 3, step, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        # The norm keeps features from dying (always 0), which would make every covariance singular.
        self.to_features = nn.Sequential(
            nn.Linear(_CHANNELS[-1] * side**2, DIMENSION, bias=False), nn.BatchNorm1d(DIMENSION), nn.ReLU()
        )
        self.to_logits = nn.Linear(DIMENSION, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 1, S, S] in [-1, 1] -> (features [B, D], logits [B, K])."""
        features = self.to_features(self.body(x))
        return features, self.to_logits(features)


class NetworkExtractor(Extractor):
    """A trained network; `accuracy` was measured on `held_out_count` images, after training on `train_count` others."""

    has_logits = True
    dimension = DIMENSION
    preprocessing = "8 bits, then scaled to -1 .. 1; as large as they are"

    def __init__(self, network: Network, learned: str, facts: dict[str, Any]) -> None:
        self.name = learned
        self.class_names: tuple[str, ...] = tuple(facts["class_names"])
        self.image_size: int = facts["image_size"]
        self.accuracy: float = facts["accuracy"]
        self.train_count: int = facts["train_count"]
        self.held_out_count: int = facts["held_out_count"]
        self.network = network.eval().requires_grad_(False)
        self.sha256 = weights_sha256(network)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        if pixels.ndim != 4 or pixels.shape[1:] != (1, self.image_size, self.image_size):
            shape = ", ".join(map(str, pixels.shape[1:]))
            size = self.image_size
            raise ValueError(
                f"the {self.name} extractor takes grey images of {size}x{size} pixels, and these are [N, {shape}]; "
                "inception and dinov2 take any size"
            )
        x = pixels.to(self.network.to_logits.weight.device).float() / 127.5 - 1.0
        with full_precision():
            features, logits = self.network(x)
        return Features(pooled=features, logits=logits)

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "accuracy": self.accuracy,
            "classes": len(self.class_names),
            "trained_on": self.train_count,
            "held_out": self.held_out_count,
        }


class NetworkJudge:
    """A network as a classifier of some of its classes: the likeliest of these counts, whatever the others are.

    Raises ValueError for classes that it has not learned.
    """

    def __init__(self, extractor: NetworkExtractor, class_names: Sequence[str]) -> None:
        unknown = [name for name in class_names if name not in extractor.class_names]
        if unknown:
            raise ValueError(f"the {extractor.name} extractor has not learned the class {unknown[0]!r}")
        self.extractor, self.class_names = extractor, tuple(class_names)
        self._columns = torch.tensor([extractor.class_names.index(name) for name in class_names])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "network", **self.extractor.to_dict()}

    def predict(self, images: Tensor) -> Tensor:
        """The label of each image, float in [-1, 1] or bytes [N, 1, S, S]: long [N]."""
        parts = [self.extractor(part).logits for part in to_pixels(images).split(_AT_ONCE)]
        return torch.cat([part[:, self._columns].argmax(1).cpu() for part in parts if part is not None])

    def accuracy(self, dataset: Dataset) -> float:
        """The share of the images of a data set, whose classes are its own, that it recognises."""
        right = 0
        for pixels, numbers in batches_of(dataset, _AT_ONCE):
            right += int((self.predict(pixels) == dataset.labels[numbers]).sum())
        return right / len(dataset)


def train_network(
    train: ArrayDataset,
    held_out: ArrayDataset,
    settings: NetworkSettings,
    *,
    learned: str = "own",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> NetworkExtractor:
    """A network that learned the classes of `train`, its accuracy that on `held_out`; torch's generator is left alone.

    Raises ValueError for classes that differ and for images that are not grey squares.
    """
    channels, side, width = train.shape
    if channels != 1 or side != width or train.shape != held_out.shape:
        raise ValueError(f"images are {train.shape} and {held_out.shape}; grey squares of one size are needed")
    if train.class_names != held_out.class_names or len(train.class_names) < 2:
        raise ValueError("the images to train on and those held out must have the same classes, at least two")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Network(side, len(train.class_names))
    network.to(device).train()
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    steps = -(-settings.images_seen // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = NoProgress() if progress is None else progress
    progress.start(steps)
    for step in range(1, steps + 1):
        drawn_B = torch.randint(len(train), (settings.batch_size,), generator=generator)
        loss = F.cross_entropy(network(train.images[drawn_B].to(device))[1], train.labels[drawn_B].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(step, loss=float(loss.detach()))
    progress.close()
    facts = {
        "class_names": train.class_names,
        "image_size": side,
        "accuracy": _accuracy(network.eval(), held_out, device),
        "train_count": len(train),
        "held_out_count": len(held_out),
    }
    return NetworkExtractor(network, learned, facts)


@torch.no_grad()
def _accuracy(network: Network, held_out: ArrayDataset, device: torch.device | str) -> float:
    right = 0
    for images, labels in zip(held_out.images.split(_AT_ONCE), held_out.labels.split(_AT_ONCE), strict=True):
        right += int((network(images.to(device))[1].argmax(1).cpu() == labels).sum())
    return right / len(held_out)
