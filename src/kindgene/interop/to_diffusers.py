"""To diffusers: a `DiTTransformer2DModel`, and with a VAE the folder of a stock `DiTPipeline`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.diffusion.path import PREDICTION_TYPES, DiffusionPath
from kindgene.files import StrPath, write_safetensors
from kindgene.interop.checkpoint import WEIGHTS_FILE
from kindgene.interop.folder import Export, whole_folder, write_record
from kindgene.interop.keys import SCHEDULER, TRANSFORMER, VAE, to_diffusers_state
from kindgene.interop.public import (
    NO_GUIDANCE,
    PUBLIC_CLASSES,
    WEIGHTS_FORMAT,
    Differences,
    differences_of,
    judged,
    plain_dit,
    public_rows,
)
from kindgene.interop.source import Chosen, Source, choose, diffusion_path
from kindgene.interop.vae import check_vae, load_vae
from kindgene.models.dit import DiT

LABEL_TABLE = "norm1.emb.class_embedder.embedding_table.weight"
NO_VAE = (
    "no VAE, so no DiTPipeline: transformer/ and scheduler/ alone. Give the VAE of a latent-space model (--vae); a "
    "pixel-space model has none: export it to pipeline"
)
MLP_RATIO = 4
"""diffusers' feed-forward layer is four times as wide as the model, always."""


def export_diffusers(
    source: Source,
    out: StrPath,
    classes: Sequence[str] | None = None,
    *,
    dtype: str | None = None,
    vae: StrPath | None = None,
    approximate: bool = False,
) -> Export:
    """Writes one class of a pool (or a plain DiT) as diffusers knows it: transformer/ and scheduler/.

    With `vae`, the folder of an `AutoencoderKL`, the whole is one that ``DiTPipeline.from_pretrained`` loads. The label
    tables, one in every block, have 1001 rows (see `public.py`). It is checked by loading the folder with diffusers.
    diffusers divides time frequencies by 127: a model that does not is refused unless `approximate`, and then the error
    is measured. Raises ValueError for what cannot be exported, with nothing written.
    """
    with whole_folder(out) as folder:
        chosen = choose(source, classes, "dense", dtype)
        path = diffusion_path(source)
        decoder = None if vae is None else load_vae(vae, chosen.dtype)
        if decoder is not None:
            check_vae(decoder, int(chosen.config["in_channels"]))
        config, state, differences = _translated(chosen)
        write_transformer(folder / TRANSFORMER, config, state)
        transformer = load_transformer(folder / TRANSFORMER, chosen.dtype)
        error, reasons = judged(chosen, transformer, differences, approximate, "diffusers")
        stock_scheduler(path).save_pretrained(folder / SCHEDULER)
        if decoder is not None:
            _write_pipeline(folder, transformer, decoder, chosen)
        notes = [NO_GUIDANCE] if chosen.null is None else []
        notes += [NO_VAE] if decoder is None else []
        return write_record(folder, Export.of("diffusers", chosen, transformer, error, reasons, notes))


def write_transformer(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """A DiTTransformer2DModel's folder, written without building the model."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.device("meta"):
        empty = DiTTransformer2DModel(**config)
    folder.mkdir()
    empty.save_config(folder)
    write_safetensors(folder / WEIGHTS_FILE, state, WEIGHTS_FORMAT)


def load_transformer(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of such a folder. Raises ValueError where keys are missing, foreign or misshapen."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    options = {"torch_dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = DiTTransformer2DModel.from_pretrained(folder, **options)
    wrong = {what: keys for what, keys in info.items() if keys}
    if wrong:
        raise ValueError(f"{folder}: diffusers does not read all of it: {wrong}")
    found: nn.Module = model
    return found


def stock_scheduler(path: DiffusionPath) -> Any:
    """The DDIM scheduler of a stock pipeline, over the timesteps that `kindgene.sample` uses.

    diffusers steps by a whole number of timesteps: its noise levels are those of `sample` for a number of steps that
    divides them (1000 on a linear path, 996 on a cosine one), near them for others.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    usable = path.timesteps(1)[0] + 1
    return DDIMScheduler(
        num_train_timesteps=usable,
        trained_betas=path.betas[:usable].tolist(),
        prediction_type=PREDICTION_TYPES[path.prediction],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def _translated(chosen: Chosen) -> tuple[dict[str, Any], dict[str, Tensor], Differences]:
    """Configuration and state of the transformer, and what diffusers does otherwise."""
    if type(chosen.model).__name__ == "DiTTransformer2DModel":
        return _own(chosen.model, chosen.null is not None)
    model = plain_dit(chosen)
    config = transformer_config(model)
    state = dict(to_diffusers_state(model.state_dict(), model.config.depth))
    return (
        config,
        _with_public_rows(state, chosen.null is not None),
        differences_of(model, {"time_frequencies": "diffusers"}),
    )


def _own(model: Any, null_row: bool) -> tuple[dict[str, Any], dict[str, Tensor], Differences]:
    """A backbone that is diffusers' own: only its label tables change."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    state = _with_public_rows(dict(model.state_dict()), null_row)
    return {**config, "num_embeds_ada_norm": PUBLIC_CLASSES}, state, {}


def transformer_config(model: DiT) -> dict[str, Any]:
    """diffusers' settings for a DiT of ours. Raises ValueError for one that it cannot hold."""
    own = model.config
    if int(own.hidden_size * own.mlp_ratio) != MLP_RATIO * own.hidden_size:
        raise ValueError(
            f"diffusers' MLP is {MLP_RATIO} times as wide as the model; this one has mlp_ratio {own.mlp_ratio}"
        )
    return {
        "num_attention_heads": own.num_heads,
        "attention_head_dim": own.hidden_size // own.num_heads,
        "in_channels": own.in_channels,
        "out_channels": model.out_channels,
        "num_layers": own.depth,
        "sample_size": own.input_size,
        "patch_size": own.patch_size,
        "num_embeds_ada_norm": PUBLIC_CLASSES,
        "norm_eps": own.mlp_norm_eps,
    }


def _with_public_rows(state: dict[str, Tensor], null_row: bool) -> dict[str, Tensor]:
    return {key: public_rows(value, null_row) if key.endswith(LABEL_TABLE) else value for key, value in state.items()}


def _write_pipeline(folder: Path, transformer: nn.Module, vae: Any, chosen: Chosen) -> None:
    """vae/ and model_index.json, and a trial of the whole: one step of the stock pipeline."""
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    vae.save_pretrained(folder / VAE)
    parts = {
        "transformer": transformer,
        "vae": load_vae(folder / VAE, chosen.dtype),
        "scheduler": DDIMScheduler.from_pretrained(folder / SCHEDULER),
    }
    pipeline = DiTPipeline(**parts)
    pipeline.register_to_config(id2label={str(label): name for name, label in chosen.classes.items()})
    pipeline.save_config(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline([0], num_inference_steps=1, output_type="pt", generator=torch.Generator().manual_seed(0))
