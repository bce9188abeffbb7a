"""kindgene pretrain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import load_data

EXAMPLE = "kindgene pretrain --data digits --classes 0,1,2 --out runs/digits"

_MODEL = "Model"
_RANKS = (20, 6)
_TARGETS = "paper+adaln"


def run(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: options.Data = "digits",
    classes: options.Classes = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; a folder needs it.", callback=options.at_least_one)
    ] = None,
    channels: Annotated[int | None, typer.Option(help="1 (grey) or 3; of a folder 3 if not given.")] = None,
    preset: Annotated[str, typer.Option(help="mini/2, tiny/2, DiT-S/4, ...", rich_help_panel=_MODEL)] = "mini/2",
    learngene_rank: Annotated[
        int, typer.Option(help="Components all classes share.", callback=options.at_least_one, rich_help_panel=_MODEL)
    ] = _RANKS[0],
    tailor_rank: Annotated[
        int, typer.Option(help="Components of each class.", callback=options.at_least_one, rich_help_panel=_MODEL)
    ] = _RANKS[1],
    targets: Annotated[
        str, typer.Option(help="What is decomposed: paper or paper+adaln.", rich_help_panel=_MODEL)
    ] = _TARGETS,
    dense: Annotated[
        bool, typer.Option("--dense", help="Train the dense twin instead.", rich_help_panel=_MODEL)
    ] = False,
    prediction: Annotated[str, typer.Option(help="v or epsilon.", rich_help_panel=_MODEL)] = "v",
    steps: options.Steps = 600,
    batch_size: options.BatchSize = 128,
    learning_rate: options.LearningRate = 3e-3,
    label_drop: options.LabelDrop = 0.1,
    ema_decay: options.EmaDecay = 0.995,
    gradient_accumulation_steps: options.Accumulation = 1,
    elastic_shares: Annotated[
        str | None,
        typer.Option(
            help="Shares of the learngene, one drawn a step: 0.25,0.5,1. If not given, always all of it.",
            rich_help_panel="Training",
        ),
    ] = None,
    mixed_precision: options.MixedPrecision = "no",
    deterministic: options.Deterministic = False,
    checkpointing_steps: options.CheckpointEvery = 200,
    checkpoints_total_limit: options.CheckpointsKept = 2,
    resume: options.Resume = False,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
) -> None:
    """Pre-train a decomposable DiT.

    Ctrl-C saves a checkpoint; the same command with --resume goes on from it.
    """
    import torch

    from kindgene import DiT, KindConfig, TrainConfig, make_decomposable, train
    from kindgene.evaluation.cost import measure_cost
    from kindgene.progress import RichProgress

    if not resume:
        options.new_run(out)
    if dense and (learngene_rank, tailor_rank, targets) != (*_RANKS, _TARGETS):
        raise ValueError("--dense trains no components: leave out --learngene-rank, --tailor-rank and --targets")
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=label_drop,
        ema_decay=ema_decay,
        gradient_accumulation_steps=gradient_accumulation_steps,
        elastic_shares=options.numbers(elastic_shares),
        mixed_precision=mixed_precision,  # type: ignore[arg-type]  # checked there
        deterministic=deterministic,
        checkpoint_every=checkpointing_steps,
        checkpoints_total_limit=checkpoints_total_limit,
        seed=seed,
    )
    images = load_data(data, options.class_list(classes), image_size, channels)
    names = list(images.class_names)
    kind = KindConfig(num_classes=len(names), learngene_rank=learngene_rank, tailor_rank=tailor_rank, targets=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = DiT.from_preset(
            preset,
            num_classes=len(names),
            class_names=names,
            input_size=images.images.shape[-1],
            in_channels=images.images.shape[1],
            learn_sigma=False,
            prediction=prediction,
        )
        model = backbone if dense else make_decomposable(backbone, kind)
    if dry_run:
        facts = {
            "out": str(out),
            "data": data,
            "images": len(images),
            "train": config.to_dict(),
            "backbone": {key: value for key, value in backbone.config.items() if not key.startswith("_")},
            "kind": None if dense else kind.to_dict(),
            **measure_cost(model).to_dict(),
        }
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    result = train(model, images, config, out, resume=resume, progress=RichProgress("pre-train"))
    following = f"sample {out} --out samples.png" if dense else f"decompose {out} --out POOL"
    typer.echo(f"{result.steps} steps, final loss {result.final_loss:.4f}; next: kindgene {following}")
