"""What `kindgene evaluate` measures with: extractor, reference, judge and real images, by what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kindgene.cli import extractors
from kindgene.cli import vae as autoencoders
from kindgene.cli.models import load_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kindgene.data.dataset import Dataset
    from kindgene.evaluation.classifier import Judge
    from kindgene.evaluation.features import Extractor
    from kindgene.evaluation.reference import Reference
    from kindgene.progress import Progress

Shape = tuple[int, int, int]

_DATA = "digits"
_LOSS_IMAGES = 10_000
_HELD_OUT = 0.2
_OF_SAMPLING = {
    "count": "--count",
    "per_class": "--per-class",
    "guidance": "--guidance",
    "negative": "--negative",
    "steps": "--steps",
    "scheduler": "--scheduler",
    "clip": "--clip",
    "vae": "--vae",
}


class Asked:
    """The options of one command line, and what they come to; `wanted` are the metrics.

    Raises ValueError for options that do not go together, before any work.
    """

    def __init__(
        self,
        data: str | None,
        metrics: str | None,
        extractor: str | None,
        inception_weights: Path | None,
        dino: str | None,
        reference: str | None,
    ) -> None:
        from kindgene.data.named import NAMES
        from kindgene.evaluation.metrics import OF_FEATURES, OF_REFERENCE, OF_SAMPLES, all_of, check_metrics
        from kindgene.evaluation.reference import is_reference, made_with

        self.data = _DATA if data is None else data
        self.reference = reference
        judged = self.data in NAMES and (data is not None or reference is None)
        self._archive = reference is not None and reference.lower().endswith(".npz")
        self._weights = (inception_weights, dino)
        seen_by = any(value is not None for value in (extractor, inception_weights, dino))
        plain = metrics is None and reference is None and not seen_by
        self.wanted: tuple[str, ...] = ("recognised",)
        if metrics is not None:
            self.wanted = tuple(part.strip() for part in metrics.split(","))
            check_metrics(self.wanted)
        self.extractor: str | None = None
        named_by_data = False
        if not plain and (metrics is None or seen_by or any(name in OF_FEATURES for name in self.wanted)):
            if reference is not None and not seen_by:
                extractor = made_with(reference)
            seen = reference if data is None and reference is not None and not is_reference(reference) else self.data
            named_by_data = extractor is None and not seen_by and seen == self.data
            self.extractor = extractors.name_of(extractor, inception_weights, dino, seen)
        if self.extractor is not None and metrics is None:
            self.wanted = (*all_of(self.extractor), *(("recognised",) if judged else ()))
        self._compares = any(name in OF_REFERENCE for name in self.wanted)
        if reference is not None and not self._compares:
            raise ValueError(f"--reference is for {', '.join(OF_REFERENCE)}; add one to --metrics")
        if seen_by and not (self._judges() or any(name in OF_FEATURES for name in self.wanted)):
            raise ValueError(
                f"{self._listed()} looks through no extractor but one that has learned --data; leave it out"
            )
        self.draws = any(name in OF_SAMPLES for name in self.wanted)
        """Whether any metric is of samples."""
        compared = self._compares and reference is None
        self.uses_data = compared or named_by_data or not {"recognised", "loss"}.isdisjoint(self.wanted)
        """Whether any metric looks at --data."""
        if data is not None and not self.uses_data:
            raise ValueError(f"{self._listed()} does not look at --data; leave it out")

    def check_given(self, given: Collection[str]) -> None:
        """Raises ValueError for an option of sampling, by its parameter's name, where nothing is sampled."""
        idle = [option for name, option in _OF_SAMPLING.items() if name in given]
        if idle and not self.draws:
            raise ValueError(f"{idle[0]} is for samples, and {self._listed()} draws none; leave it out")

    def images(self, shape: Shape, names: Sequence[str]) -> Dataset | None:
        """The images of --data, all classes; None where nothing needs them. ValueError for classes it lacks."""
        if "recognised" not in self.wanted and not (self._compares and self.reference is None):
            return None
        images = load_data(self.data, None, shape[1], shape[0])
        images.subset(names)  # classes that there are no real images of are refused here, before any work
        return images

    def load_extractor(self, shape: Shape, device: torch.device) -> Extractor | None:
        """The extractor, None where no metric needs one. ValueError for metrics that it does not give."""
        from kindgene.evaluation.metrics import check_extractor, check_extractor_name

        if self.extractor is None:
            return None
        check_extractor_name(self.wanted, self.extractor)
        if self.reference is not None:  # refused here, before an extractor is trained for it
            file = Path(self.reference)
            if file.suffix in (".safetensors", ".npz") and not file.is_file():
                raise ValueError(f"{file}: there is no such file")
        eyes = extractors.load(self.extractor, *self._weights, shape[1], device)
        check_extractor(self.wanted, eyes)
        return eyes

    def judge(self, images: Dataset | None, eyes: Extractor | None) -> tuple[Judge | None, dict[str, Any]]:
        """The classifier of all classes of --data, and what a result says of it.

        A network where one has learned these very images and is in use, or they are glyphs; else a support vector
        machine.
        """
        if "recognised" not in self.wanted or images is None:
            return None, {}
        if self._glyphs() or (eyes is not None and eyes.name == self.data):
            return self._network_judge(images, eyes, self._glyphs())
        return _machine_judge(images)

    def load_reference(
        self, images: Dataset | None, eyes: Extractor | None, names: Sequence[str], shape: Shape
    ) -> Reference | None:
        """What samples are compared with: a file, or statistics made now; None where no metric needs any."""
        from kindgene.evaluation.metrics import check_reference
        from kindgene.evaluation.reference import (
            FEATURES_KEPT,
            is_reference,
            make_reference,
            read_reference,
            with_features,
        )

        if not self._compares:
            return None
        assert eyes is not None, "what compares needs an extractor"
        neighbours = not {"precision", "recall"}.isdisjoint(self.wanted)
        if self.reference is not None and is_reference(self.reference):
            found = read_reference(self.reference, eyes)
            if found.features is None and self._archive and neighbours:
                found = with_features(found, load_data(self.reference, None, None, None), eyes)
            check_reference(self.wanted, found)
            return found
        data, real = self.data, images
        if self.reference is not None:
            data, real = self.reference, load_data(self.reference, None, shape[1], shape[0])
        assert real is not None, "images() has loaded them"
        if set(names) <= set(real.class_names):
            real = real.subset(names)
        progress = shown("measuring real images")
        kept = FEATURES_KEPT if neighbours else 0
        return make_reference(real, eyes, data=data, features=kept, progress=progress)

    def loss(self, model: Any, names: Sequence[str], seed: int, batch_size: int) -> dict[str, Any]:
        """The denoising loss on images, or latents, of the model's shape: held-out ones where --data has them.

        The seed's are noise and timesteps; which images are looked at does not depend on it.
        """
        from kindgene.data.named import NAMES, load_named
        from kindgene.evaluation.denoising import DRAWS, validation_loss

        size, channels = int(model.config.input_size), int(model.config.in_channels)
        held_out = self.data in NAMES and self.data != "digits"
        if held_out:
            images: Dataset = load_named(self.data, size, names, "validation")
        else:
            images = load_data(self.data, names, size, channels)
        if len(images) > _LOSS_IMAGES:
            images = images.split(_LOSS_IMAGES / len(images), seed=0)[1]
        return {
            "loss": validation_loss(model, _labelled_as(model, images), batch_size=batch_size, seed=seed),
            "loss_images": len(images),
            "loss_timesteps": DRAWS,
            "loss_data": f"{self.data}, validation split" if held_out else self.data,
            "loss_fingerprint": {key: value for key, value in images.fingerprint().items() if key != "class_names"},
        }

    def _glyphs(self) -> bool:
        return self.data.partition(":")[0] == "glyphs"

    def _judges(self) -> bool:
        """Whether the extractor is the judge of ``recognised`` as well."""
        learned = "glyphs" if self._glyphs() else self.data
        return "recognised" in self.wanted and self.extractor == learned

    def _listed(self) -> str:
        return ", ".join(self.wanted)

    def _network_judge(self, images: Dataset, eyes: Extractor | None, glyphs: bool) -> tuple[Judge, dict[str, Any]]:
        from kindgene.data.named import load_named
        from kindgene.evaluation.learned import network_extractor
        from kindgene.evaluation.network import NetworkExtractor, NetworkJudge

        network = eyes
        if not isinstance(network, NetworkExtractor):
            network = network_extractor("glyphs", images.shape[1], progress=shown("training the classifier"))
        judge = NetworkJudge(network, images.class_names)
        if glyphs:
            held_out: Dataset = load_named(self.data, images.shape[1], None, "validation")
        else:
            held_out = images.split(_HELD_OUT, seed=0)[1]
        return judge, {
            "classifier": f"convolutional network that learned {network.name}, among these classes",
            "classifier_accuracy": judge.accuracy(held_out),
            "classifier_classes": list(judge.class_names),
            "classifier_trained_on": network.train_count,
            "classifier_held_out": len(held_out),
            "classifier_sha256": network.sha256,
        }


def shown(description: str) -> Progress | None:
    """A bar; None in all processes but the first."""
    from kindgene.progress import RichProgress
    from kindgene.training.processes import is_main_process

    return RichProgress(description) if is_main_process() else None


def _machine_judge(images: Dataset) -> tuple[Judge, dict[str, Any]]:
    from kindgene.data.arrays import in_memory
    from kindgene.evaluation.classifier import train_classifier

    machine = train_classifier(*in_memory(images).split(_HELD_OUT, seed=0), seed=0)
    return machine, {
        "classifier": "scikit-learn SVC (RBF) on pixels",
        "classifier_accuracy": machine.accuracy,
        "classifier_classes": list(machine.class_names),
        "classifier_trained_on": machine.train_count,
        "classifier_held_out": machine.held_out_count,
    }


def autoencoder_of(path: Path, model: Any, vae: str | None) -> Any:
    """What decodes the model's latents; None for a model of pixels. ValueError for what does not go together."""
    return autoencoders.of_model(path, int(model.config.in_channels), vae)


def image_shape(model: Any, autoencoder: Any) -> Shape:
    """(C, H, W) of the images that samples are, once decoded."""
    size, channels = int(model.config.input_size), int(model.config.in_channels)
    if autoencoder is None:
        return channels, size, size
    size *= 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return int(autoencoder.config.out_channels), size, size


def decoder(autoencoder: Any, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Latents to images; None for a model of pixels."""
    from kindgene.data.autoencoder import decoded

    if autoencoder is None:
        return None
    autoencoder.to(device)
    return lambda latents: decoded(autoencoder, latents)


def without_extractor(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of its reference; the extractor, the same, stands beside it."""
    return {key: value for key, value in facts.items() if key != "extractor" or isinstance(value, str)}


def _labelled_as(model: Any, images: Dataset) -> Dataset:
    """The images with the labels that the model has for their classes."""
    import torch

    place = {name: label for label, name in enumerate(model.class_names)}
    labels = torch.tensor([place[name] for name in images.class_names])[images.labels]
    return replace(images, labels=labels, class_names=tuple(model.class_names))  # type: ignore[type-var]  # all are
