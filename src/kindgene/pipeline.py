"""`KindPipeline`: sampling as diffusers' users know it, exact with guidance, in pixel or latent space.

diffusers finds no class of its own in a gated model, so this pipeline saves and loads its parts itself: ``model/`` is a
pool of just the pipeline's classes (or a plain DiT), ``vae/`` an `AutoencoderKL`, model_index.json says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor, nn

from kindgene._version import __version__
from kindgene.core.decomposable import Decomposable
from kindgene.data.autoencoder import decoded
from kindgene.diffusion.path import DiffusionPath
from kindgene.diffusion.sampler import sample
from kindgene.files import read_json
from kindgene.interop.folder import whole_folder
from kindgene.interop.source import diffusion_path
from kindgene.interop.vae import check_vae, load_vae, stored_dtype
from kindgene.models.dit import DiT
from kindgene.pool.backbones import floating_dtype
from kindgene.pool.pool import Pool

MODEL, VAE = "model", "vae"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class KindPipeline(DiffusionPipeline):
    """From class names to images.

    `model` is a gated model (`Pool.recombine`, `KindPipeline.from_pool`) or a plain DiT; `vae` an `AutoencoderKL` for a
    model of latents, None for one of pixels. `path` is the diffusion path, `shape` (channels, height, width) a sample:
    both None for a DiT, whose configuration tells them.

    Raises ValueError for a VAE whose latents are not what the model makes.
    """

    _optional_components: ClassVar[list[str]] = [VAE]

    def __init__(
        self,
        model: Any,
        vae: Any = None,
        path: Mapping[str, Any] | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(model=model, vae=vae)
        self.register_to_config(path=None if path is None else dict(path), shape=None if shape is None else list(shape))
        self._pieces: Callable[[], Pool] | None = None
        if vae is not None:
            check_vae(vae, self._shape()[0])

    @classmethod
    def from_pool(cls, pool: Pool, classes: Sequence[str] | None = None, vae: Any = None, **budget: Any) -> Self:
        """A pipeline of these classes (None: all) of a pool, recombined; `budget` as in `Pool.plan`."""
        plan = pool.plan(pool.classes if classes is None else classes, **{"form": "gated", **budget})
        told = {} if pool.config.backbone == "DiT" else _told(pool)
        pipeline = cls(pool.recombine(plan=plan), vae=vae, **told)
        if plan.form == "gated":
            pipeline._pieces = partial(pool.subset, plan)
        return pipeline

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads a folder that `save_pretrained` wrote; safetensors alone is read.

        Keywords: `dtype` (or `torch_dtype`) to cast to, `vae` to use instead of the folder's, `classes` to take fewer.
        Raises ValueError for a folder that is no such pipeline and for any other keyword.
        """
        folder = Path(pretrained_model_name_or_path)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        classes, given_vae = kwargs.pop("classes", None), kwargs.pop(VAE, None)
        if kwargs:
            raise ValueError(f"KindPipeline.from_pretrained takes dtype, vae and classes, not {', '.join(kwargs)}")
        index = _read_index(folder)
        model, pieces = _load_model(folder / MODEL, classes)
        vae = given_vae
        if vae is None and index[VAE][0] is not None:
            vae = load_vae(folder / VAE, stored_dtype(folder / VAE))
        pipeline = cls(model, vae=vae, path=index["path"], shape=index["shape"])
        pipeline._pieces = pieces
        return pipeline if dtype is None else pipeline.to(dtype)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, variant: None = None
    ) -> None:
        """Writes the pipeline into a new (or empty) folder, whole or not at all.

        A recombined model is saved with the bits that it has. Raises ValueError for a folder that holds something, a
        model whose weights were changed and that cannot be taken apart, and for pickles.
        """
        if not safe_serialization or variant is not None:
            raise ValueError("KindPipeline is saved as safetensors, without variants")
        with whole_folder(save_directory) as folder:
            if isinstance(self.model, Decomposable):
                self._pool_of_model().save_pretrained(folder / MODEL)
            else:
                self.model.save_pretrained(folder / MODEL)
            if self.vae is not None:
                self.vae.save_pretrained(folder / VAE)
            self.save_config(folder)

    @torch.no_grad()
    def __call__(
        self,
        classes: str | int | Sequence[str | int | None] | Tensor,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        *,
        negative_class: str | int | None = None,
        scheduler: str = "ddim",
        clip: float | Literal["auto"] | None = "auto",
        batch_size: int = 256,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One image for each class: names, ids, or None for the null class; one alone stands for itself.

        The samples are those of `kindgene.sample` with the same arguments, bit for bit. `clip` "auto" is 1.0 for pixels
        and None for latents. `output_type`: "pil", "np" [N, H, W, C] and "pt" [N, C, H, W] in 0 .. 1, or "latent": the
        samples themselves. `guidance_scale` 1 asks for no guidance; it leads away from
        `negative_class`, or from the null class. Raises ValueError as `sample` does.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if isinstance(generator, list | tuple):
            raise ValueError("give one generator for all images: it is the only source of randomness")
        if clip == "auto":
            clip = 1.0 if self.vae is None else None
        with self._progress() as progress:
            samples = sample(
                self.model,
                [classes] if isinstance(classes, str | int) else classes,
                guidance=guidance_scale,
                negative=negative_class,
                steps=num_inference_steps,
                scheduler=scheduler,
                clip=clip,
                generator=generator,
                path=self.diffusion_path,
                shape=self._shape(),
                batch_size=batch_size,
                progress=progress,
            )
        images = samples if output_type == "latent" else self._finished(samples, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def to(self, *args: Any, silence_dtype_warnings: bool = False, **kwargs: Any) -> Self:
        """Moves or casts model and VAE, arguments as for `torch.nn.Module.to`."""
        for module in self._parts():
            nn.Module.to(module, *args, **kwargs)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the model's weights are kept in."""
        return floating_dtype(dict(self.model.named_parameters()))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of their ids."""
        names: tuple[str, ...] | None = self.model.class_names
        return names

    @property
    def diffusion_path(self) -> DiffusionPath:
        """The path that the model walks."""
        return DiffusionPath.of(self.model) if self.config.path is None else DiffusionPath(**self.config.path)

    def _parts(self) -> list[nn.Module]:
        return [module for module in (self.model, self.vae) if module is not None]

    def _shape(self) -> tuple[int, int, int]:
        if self.config.shape is not None:
            channels, height, width = self.config.shape
            return channels, height, width
        config = self.model.config
        return config.in_channels, config.input_size, config.input_size

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int, int], None]]:
        """diffusers' bar, which begins when the number of steps is known."""
        bar: Any = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            bar = self.progress_bar(total=total) if bar is None else bar
            bar.update(done - bar.n)

        try:
            yield progress
        finally:
            if bar is not None:
                bar.close()

    def _finished(self, samples: Tensor, output_type: str) -> Any:
        images = samples if self.vae is None else decoded(self.vae, samples)
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array

    def _pool_of_model(self) -> Pool:
        """The model as a pool: the pieces that it was made of where it is still what they make, else taken apart."""
        if self._pieces is not None:
            pool = self._pieces()
            if _same(pool.recombine(pool.classes), self.model):
                return pool
        made: Pool = self.model.decompose(provenance={"recipe": "KindPipeline.save_pretrained"})
        return made


def _told(pool: Pool) -> dict[str, Any]:
    """Path and shape of a backbone that does not know them."""
    config = pool.config.backbone_config
    size = config["sample_size"]
    return {"path": asdict(diffusion_path(pool)), "shape": [config["in_channels"], size, size]}


def _same(made: nn.Module, model: nn.Module) -> bool:
    """Whether two models have the same bits (a cast one has not)."""
    found, expected = made.state_dict(), model.state_dict()
    return found.keys() == expected.keys() and all(
        value.dtype == expected[key].dtype and torch.equal(value, expected[key].cpu()) for key, value in found.items()
    )


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / KindPipeline.config_name).is_file():
        raise ValueError(
            f"{folder} has no {KindPipeline.config_name}, so it is not the folder of a pipeline (of a Hub repository, "
            "take a copy first: huggingface_hub.snapshot_download)"
        )
    index = read_json(folder / KindPipeline.config_name)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != KindPipeline.__name__:
        raise ValueError(f"{folder} holds a {kind}; this is kindgene {__version__}, which reads a KindPipeline")
    return {VAE: [None, None], "path": None, "shape": None, **index}


def _load_model(folder: Path, classes: Sequence[str] | None) -> tuple[nn.Module, Callable[[], Pool] | None]:
    """The model of a pipeline's folder, and the pool it was recombined from."""
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("_class_name") == DiT.__name__:
        if classes is not None:
            raise ValueError("this pipeline holds a plain DiT, which has the classes that it has")
        return DiT.from_pretrained(folder, torch_dtype=stored_dtype(folder)), None
    pool = Pool.from_pretrained(folder, classes=classes)
    plan = pool.plan(classes or pool.classes, form="gated")
    return pool.recombine(plan=plan), partial(pool.subset, plan)
