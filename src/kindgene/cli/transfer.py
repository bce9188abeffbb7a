"""kindgene transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import options, prepare
from kindgene.cli.assign import assignments
from kindgene.cli.models import open_pool

if TYPE_CHECKING:
    from kindgene.pool.pool import Pool
    from kindgene.recipes import DataSettings

EXAMPLE = "kindgene transfer my-pool --classes 6,7 --out runs/new --add"

_OPTIONS = {
    "data.data": "--data",
    "train.steps": "--steps",
    "train.batch_size": "--batch-size",
    "train.learning_rate": "--learning-rate",
    "train.ema_decay": "--ema-decay",
    "train.gradient_accumulation_steps": "--gradient-accumulation-steps",
    "train.mixed_precision": "--mixed-precision",
    "train.deterministic": "--deterministic",
    "train.checkpoint_every": "--checkpointing-steps",
    "train.checkpoints_total_limit": "--checkpoints-total-limit",
    "train.seed": "--seed",
}
"""Settings that have an option of their own; all others of the data and the training are for --set."""
_OF_POOL = ("image_size", "channels")


def run(
    pool: options.ReadPool,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: options.Data = "digits",
    classes: options.Classes = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    strict: options.Strict = False,
    vae: options.Vae = None,
    tailor_rank: Annotated[
        int | None,
        typer.Option(help="Components of each class; the pool's if not given.", callback=options.at_least_one),
    ] = None,
    start: Annotated[str, typer.Option(help="What new tailors start from: random or zero.")] = "random",
    add: Annotated[bool, typer.Option("--add", help="Add the new tailors to the pool.")] = False,
    steps: options.Steps = 150,
    batch_size: options.BatchSize = 128,
    learning_rate: options.LearningRate = 6e-3,
    ema_decay: options.EmaDecay = 0.995,
    gradient_accumulation_steps: options.Accumulation = 1,
    mixed_precision: options.MixedPrecision = "no",
    deterministic: options.Deterministic = False,
    checkpointing_steps: options.CheckpointEvery = 200,
    checkpoints_total_limit: options.CheckpointsKept = 2,
    resume: options.Resume = None,
    seed: options.Seed = 0,
    assigned: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: --set flip=true --set weight_decay=0.01.")
    ] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Train tailors for new classes beside the frozen learngene.

    Images are brought to the pool's size, and become latents first where there is
    a --vae. Without --add the new tailors stay in the run; the same command with
    --resume latest --add adds them later, without training again.
    """
    import torch

    from kindgene import TrainConfig, train
    from kindgene.evaluation.cost import measure_cost
    from kindgene.progress import RichProgress
    from kindgene.training.processes import is_main_process
    from kindgene.training.run import Origin
    from kindgene.transfer.strategies import kind_transfer

    if is_main_process():
        prepare.check_run(out, resume, dry=dry_run)
    chosen = assignments(assigned or [], _OPTIONS)
    for name in (*chosen["model"], *chosen["kind"], *(name for name in _OF_POOL if name in chosen["data"])):
        raise ValueError(f"--set {name}: that follows from the pool")
    opened = open_pool(pool, None, learngene_only=True)
    if add and opened.path is None:
        raise ValueError(f"{pool} is on the Hub, and tailors are added to a folder; give the folder of a copy")
    shape, seen = _shape(opened), _data_settings(data, opened, vae, chosen["data"])
    source = prepare.Source(seen, options.class_list(classes), strict, image_column, label_column, vae)
    images, found = prepare.dataset_of(source, out, dry=dry_run)
    if found != shape:
        raise ValueError(f"the pool makes {_told(shape)}, and {data} gives {_told(found)}")
    taken = [name for name in images.class_names if name in opened.classes]
    if taken and add:
        raise ValueError(f"the pool has {', '.join(map(repr, taken))} already; choose other classes with --classes")
    generator = torch.Generator().manual_seed(seed)
    transfer = kind_transfer(
        opened,
        images.class_names,
        tailor_rank,
        start=start,  # type: ignore[arg-type]  # checked there
        generator=generator,
    )
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": min(50, steps // 3),
        "schedule": "cosine",
        "label_drop": transfer.label_drop,
        "ema_decay": ema_decay,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "mixed_precision": mixed_precision,
        "deterministic": deterministic,
        "checkpoint_every": checkpointing_steps,
        "checkpoints_total_limit": checkpoints_total_limit,
        "seed": seed,
    }
    config = TrainConfig(**{**settings, **chosen["train"]})
    if dry_run:
        facts = {
            "pool": str(pool),
            "learngene_id": opened.config.learngene_id,
            "out": str(out),
            "data": data,
            "images": len(images),
            "shape": list(shape),
            "classes": list(images.class_names),
            "train": config.to_dict(),
            "trained": transfer.trained,
            **measure_cost(transfer.model).to_dict(),
        }
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    about = {"pool": str(pool), "data": prepare.facts_of(source, shape, out)}
    train(
        *(transfer.model, images, config, out),
        resume=resume or False,
        progress=RichProgress("transfer"),
        origin=Origin(about, prepare.skipped_of(images)),
        decode=None if vae is None or config.sample_every is None else prepare.decoder(vae),
    )
    if not is_main_process():
        return
    typer.echo(f"trained {sum(transfer.trained.values()):,} numbers: {', '.join(transfer.trained)}")
    if add:
        opened.add(transfer.model)  # type: ignore[arg-type]  # a Decomposable, as KIND's transfer makes it
        typer.echo(f"{pool}: now {', '.join(opened.classes)}")
    else:
        where = pool if opened.path is not None else f"a folder with the learngene of {pool}"
        typer.echo(f"{out}: --resume latest --add adds its tailors to {where}")


def _data_settings(data: str, pool: Pool, vae: str | None, chosen: dict[str, Any]) -> DataSettings:
    """How images are brought to what the pool makes: to its size, or to that of which the VAE makes such latents.

    Raises ValueError for latents of another VAE than the pool's, and for images where the pool makes latents.
    """
    from kindgene.cli import vae as autoencoders
    from kindgene.data.autoencoder import side_factor
    from kindgene.data.latents import is_latents, load_latents
    from kindgene.recipes import DataSettings

    channels, side, _ = _shape(pool)
    about = pool.config.provenance.get("data")
    made_with = about.get("vae") if isinstance(about, dict) else None
    autoencoder = None if vae is None else autoencoders.load(vae)
    if made_with is not None and autoencoder is not None:
        autoencoders.check_same(autoencoder, made_with, "the pool")
    if is_latents(Path(data)):
        theirs = load_latents(Path(data)).facts["vae"]
        if made_with is not None and theirs["sha256"] != made_with["sha256"]:
            raise ValueError(f"the latents of {data} are of another VAE than those that the pool was trained on")
        return DataSettings(data=data, **chosen)
    if autoencoder is not None:
        return DataSettings(data=data, image_size=side * side_factor(autoencoder), **chosen)
    if made_with is not None or channels not in (1, 3):
        raise ValueError(
            f"the pool makes latents of {channels} channels: give --vae, the folder or Hub id of the VAE that it was "
            "trained with, or --data a folder that kindgene encode wrote"
        )
    return DataSettings(data=data, image_size=side, channels=channels, **chosen)


def _shape(pool: Pool) -> tuple[int, int, int]:
    """(C, H, W) of what the pool makes."""
    backbone = pool.config.backbone_config
    side = int(backbone["input_size"])
    return int(backbone["in_channels"]), side, side


def _told(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
