"""A dense model on disk, described: a public DiT checkpoint, or diffusers' `DiTTransformer2DModel`.

The function is kept. A folder of diffusers becomes a DiT of ours where that computes the same, which needs the same
time and label embedder in every block (as in models converted from public checkpoints, and in our own exports); any
other stays a `DiTTransformer2DModel`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.diffusion.path import PREDICTION_TYPES, DiffusionPath
from kindgene.files import StrPath, read_json
from kindgene.interop.checkpoint import Weights, open_folder, open_weights
from kindgene.interop.keys import POSITIONS, SCHEDULER, TRANSFORMER, diffusers_keys
from kindgene.models.blocks import grid_positions
from kindgene.models.dit import DiT
from kindgene.models.presets import PRESETS

HEADS = {preset.hidden_size: preset.num_heads for preset in PRESETS.values()}
"""The number of heads is in no shape: width -> heads of the known sizes."""

Parts = Callable[[str, int], Iterator[Tensor]]


@dataclass(frozen=True, eq=False)
class Dense:
    """An empty module (on torch's meta device), how to read each of its tensors, and what is to be remembered.

    `parts(key, count)` gives a tensor as that many equal parts along its first dimension, one after the other.
    """

    module: nn.Module
    parts: Parts
    path: DiffusionPath
    record: Mapping[str, Any] = field(default_factory=dict)

    def read(self, key: str) -> Tensor:
        return next(self.parts(key, 1))


def open_dense(
    checkpoint: StrPath,
    *,
    num_heads: int | None = None,
    time_frequencies: str | None = None,
    schedule: str | None = None,
    prediction: str | None = None,
) -> Dense:
    """Opens a public-DiT file or a diffusers folder (of the transformer, or of a pipeline); reads hardly anything.

    `num_heads`, for a file, where the width is not that of a known size. `time_frequencies` None: "dit" for a file,
    "diffusers" for a folder, as the software of each computes. `schedule` and `prediction` None: what the folder's
    scheduler says, else "linear" and "epsilon", as published. Raises ValueError for what is no DiT.
    """
    path = Path(checkpoint)
    if path.is_dir():
        if num_heads is not None:
            raise ValueError("a folder's config.json tells the number of heads: leave out num_heads")
        return _open_diffusers(path, time_frequencies, schedule, prediction)
    walk = DiffusionPath(schedule=schedule or "linear", prediction=prediction or "epsilon")
    return _open_public(path, num_heads, time_frequencies or "dit", walk)


def _open_public(path: Path, num_heads: int | None, time_frequencies: str, walk: DiffusionPath) -> Dense:
    weights, place = open_weights(path)
    shapes = weights.shapes()
    own = {"time_frequencies": time_frequencies, "schedule": walk.schedule, "prediction": walk.prediction}
    config = {**_public_config(shapes, num_heads, path), **own}
    with torch.device("meta"):
        module = DiT(**config)
    _check_shapes(path, shapes, module)

    def parts(key: str, count: int) -> Iterator[Tensor]:
        yield from weights.read(key).chunk(count)

    record = {"imported from": path.name, "as": "DiT"} | ({"weights in": place} if place else {})
    return Dense(module, parts, DiffusionPath.of(module), record)


def _public_config(shapes: Mapping[str, tuple[int, ...]], num_heads: int | None, path: Path) -> dict[str, Any]:
    """The configuration of a public DiT from its shapes."""
    try:
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        rows, _ = shapes["y_embedder.embedding_table.weight"]
        inner, _ = shapes["blocks.0.mlp.fc1.weight"]
        values, _ = shapes["final_layer.linear.weight"]
        _, tokens, _ = shapes[POSITIONS]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has not the keys of a public DiT checkpoint: {error} is missing or odd") from error
    heads = HEADS.get(width) if num_heads is None else num_heads
    if heads is None:
        raise ValueError(f"{path} has width {width}, which no known DiT has: give the number of heads (--num-heads)")
    made = values // patch**2
    if rows < 2 or math.isqrt(tokens) ** 2 != tokens or made not in (channels, 2 * channels):
        raise ValueError(
            f"{path} is no DiT that can be imported: {rows} label rows (a null row last is needed), {tokens} "
            f"positions, {made} channels made of {channels}"
        )
    depth = 1 + max(int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key)))
    return {
        "input_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": inner / width,
        "num_classes": rows - 1,
        "learn_sigma": made == 2 * channels,
    }


def _open_diffusers(folder: Path, frequencies: str | None, schedule: str | None, prediction: str | None) -> Dense:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    root = folder / TRANSFORMER if (folder / TRANSFORMER).is_dir() else folder
    config = _transformer_config(root, set(inspect.signature(DiTTransformer2DModel.__init__).parameters) - {"self"})
    weights = open_folder(root)
    with torch.device("meta"):
        module = DiTTransformer2DModel(**config)
    _check_shapes(root, weights.shapes(), module)
    told = None if root == folder else _scheduler_path(folder / SCHEDULER)
    walk = DiffusionPath(
        schedule=schedule or (told.schedule if told else "linear"),
        prediction=prediction or (told.prediction if told else "epsilon"),
        learned_sigma=module.out_channels == 2 * module.config.in_channels,
    )
    reason = _not_ours(module, weights)
    record = {"imported from": folder.name}
    if reason is None:
        return _converted(module, weights, walk, frequencies or "diffusers", {**record, "as": "DiT"})
    if frequencies not in (None, "diffusers"):
        raise ValueError(f"{folder} stays a DiTTransformer2DModel ({reason}), which has time frequencies of its own")

    def parts(key: str, count: int) -> Iterator[Tensor]:
        yield from weights.read(key).chunk(count)

    return Dense(module, parts, walk, {**record, "as": "DiTTransformer2DModel", "because": reason})


def _transformer_config(root: Path, known: set[str]) -> dict[str, Any]:
    """Settings of a DiTTransformer2DModel, also of those that diffusers published as Transformer2DModel."""
    if not (root / "config.json").is_file():
        raise ValueError(f"{root} has no config.json, so it is not the folder of a DiTTransformer2DModel")
    config = read_json(root / "config.json")
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise ValueError(f"{root} holds a {kind}, not a DiTTransformer2DModel")
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    other = [key for key, value in plain.items() if key not in known and value not in (None, False, "default")]
    if other or plain.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise ValueError(f"{root} is a transformer, but no DiT: {', '.join(other) or 'norm_type'}")
    return {key: value for key, value in plain.items() if key in known}


def _not_ours(module: Any, weights: Weights) -> str | None:
    """Why our DiT does not compute what this model does; None where it does."""
    config = module.config
    if config.activation_fn != "gelu-approximate" or config.norm_elementwise_affine or not config.attention_bias:
        return "its activation, norms or biases are not a DiT's"
    for block in range(1, config.num_layers):
        for key in weights.shapes():
            if key.startswith("transformer_blocks.0.norm1.emb."):
                other = key.replace("blocks.0.", f"blocks.{block}.", 1)
                if not torch.equal(weights.read(key), weights.read(other)):
                    return f"its blocks have embedders of their own ({other} differs from block 0's)"
    return None


def _converted(module: Any, weights: Weights, walk: DiffusionPath, frequencies: str, record: Any) -> Dense:
    """diffusers' tensors under the names of our DiT."""
    config = module.config
    width = config.num_attention_heads * config.attention_head_dim
    rows = weights.shapes()["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"][0]
    settings = {
        "input_size": config.sample_size,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "hidden_size": width,
        "depth": config.num_layers,
        "num_heads": config.num_attention_heads,
        "num_classes": rows - 1,
        "learn_sigma": walk.learned_sigma,
        "time_frequencies": frequencies,
        "schedule": walk.schedule,
        "prediction": walk.prediction,
        "mlp_norm_eps": config.norm_eps,
    }
    with torch.device("meta"):
        ours = DiT(**settings)

    def parts(key: str, count: int) -> Iterator[Tensor]:
        if key == POSITIONS:
            yield grid_positions(width, config.sample_size // config.patch_size)
            return
        names = diffusers_keys(key, config.num_layers)[0]
        if count == 1 and len(names) > 1:
            yield torch.cat([weights.read(name) for name in names])
        elif count == len(names):
            for name in names:
                yield weights.read(name)
        else:
            yield from weights.read(names[0]).chunk(count)

    return Dense(ours, parts, walk, record)


def _scheduler_path(folder: Path) -> DiffusionPath | None:
    """The path of a pipeline's scheduler; None where there is none. Raises ValueError for one that is none of ours."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    if not (folder / "scheduler_config.json").is_file():
        return None
    scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(folder))
    for schedule in ("linear", "cosine"):
        for prediction, name in PREDICTION_TYPES.items():
            path = DiffusionPath(schedule=schedule, prediction=prediction)
            own = path.betas[: len(scheduler.betas)].float()
            if name == scheduler.config.prediction_type and own.allclose(scheduler.betas, rtol=1e-3):
                return path
    raise ValueError(
        f"{folder}: its betas or its prediction are of no path that is known here; give schedule and prediction"
    )


def _check_shapes(where: Path, found: Mapping[str, tuple[int, ...]], module: nn.Module) -> None:
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    wrong = [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} is unexpected" for key in found if key not in expected]
    wrong += [
        f"{key} has shape {list(found[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{where} is not the DiT that it seems to be: {'; '.join(wrong[:5])}{more}")
