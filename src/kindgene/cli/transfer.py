"""kindgene transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import load_data, open_pool

EXAMPLE = "kindgene transfer my-pool --classes 6,7 --out runs/new --add"


def run(
    pool: options.ReadPool,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: options.Data = "digits",
    classes: options.Classes = None,
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
    dry_run: options.DryRun = False,
) -> None:
    """Train tailors for new classes beside the frozen learngene.

    Without --add the new tailors stay in the run; the same command with
    --resume latest --add adds them later, without training again.
    """
    import torch

    from kindgene import TrainConfig, train
    from kindgene.evaluation.cost import measure_cost
    from kindgene.progress import RichProgress
    from kindgene.training.processes import is_main_process
    from kindgene.transfer.strategies import kind_transfer

    if not resume and is_main_process():
        options.new_run(out)
    names = options.class_list(classes)
    opened = open_pool(pool, None, learngene_only=True)
    if add and opened.path is None:
        raise ValueError(f"{pool} is on the Hub, and tailors are added to a folder; give the folder of a copy")
    backbone = opened.config.backbone_config
    images = load_data(data, names, int(backbone["input_size"]), int(backbone["in_channels"]))
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
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=transfer.label_drop,
        ema_decay=ema_decay,
        gradient_accumulation_steps=gradient_accumulation_steps,
        mixed_precision=mixed_precision,  # type: ignore[arg-type]  # checked there
        deterministic=deterministic,
        checkpoint_every=checkpointing_steps,
        checkpoints_total_limit=checkpoints_total_limit,
        seed=seed,
    )
    if dry_run:
        facts = {
            "pool": str(pool),
            "learngene_id": opened.config.learngene_id,
            "out": str(out),
            "data": data,
            "images": len(images),
            "classes": list(images.class_names),
            "train": config.to_dict(),
            "trained": transfer.trained,
            **measure_cost(transfer.model).to_dict(),
        }
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    train(transfer.model, images, config, out, resume=resume or False, progress=RichProgress("transfer"))
    if not is_main_process():
        return
    typer.echo(f"trained {sum(transfer.trained.values()):,} numbers: {', '.join(transfer.trained)}")
    if add:
        opened.add(transfer.model)  # type: ignore[arg-type]  # a Decomposable, as KIND's transfer makes it
        typer.echo(f"{pool}: now {', '.join(opened.classes)}")
    else:
        where = pool if opened.path is not None else f"a folder with the learngene of {pool}"
        typer.echo(f"{out}: --resume latest --add adds its tailors to {where}")
