"""kindgene pretrain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.shared import build, class_list, load_data, save_recipe


def run(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[str, typer.Option(help="digits, or a folder with one folder of images a class.")] = "digits",
    classes: Annotated[str | None, typer.Option(help="Comma separated; all if not given.")] = None,
    preset: Annotated[str, typer.Option(help="Size of the DiT, e.g. mini/2 or DiT-S/4.")] = "mini/2",
    image_size: Annotated[int, typer.Option(help="Pixels a side (digits: 8).")] = 8,
    channels: Annotated[int, typer.Option(help="1 or 3 (digits: 1).")] = 1,
    learngene_rank: Annotated[int, typer.Option(help="N_G.")] = 20,
    tailor_rank: Annotated[int, typer.Option(help="N_T of each class.")] = 6,
    targets: Annotated[str, typer.Option(help="paper or paper+adaln.")] = "paper+adaln",
    dense: Annotated[bool, typer.Option("--dense", help="Train the dense twin instead.")] = False,
    prediction: Annotated[str, typer.Option(help="v or epsilon.")] = "v",
    steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    label_drop: float = 0.1,
    ema_decay: float = 0.995,
    gradient_accumulation_steps: int = 1,
    checkpointing_steps: int = 200,
    checkpoints_total_limit: int = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    seed: int = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and stop.")] = False,
) -> None:
    """Pre-trains a decomposable DiT.

    Example: kindgene pretrain --data digits --classes 0,1,2 --out runs/digits
    """
    from kindgene import DiT, TrainConfig, train
    from kindgene.evaluation.cost import measure_cost
    from kindgene.progress import RichProgress

    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=label_drop,
        ema_decay=ema_decay,
        gradient_accumulation_steps=gradient_accumulation_steps,
        checkpoint_every=checkpointing_steps,
        checkpoints_total_limit=checkpoints_total_limit,
        seed=seed,
    )
    images = load_data(data, class_list(classes), image_size, channels)
    names = list(images.class_names)
    shape = {
        "input_size": images.images.shape[-1],
        "in_channels": images.images.shape[1],
        "learn_sigma": False,
    }
    backbone = DiT.from_preset(preset, num_classes=len(names), class_names=names, prediction=prediction, **shape)
    kind = None
    if not dense:
        kind = {
            "num_classes": len(names),
            "learngene_rank": learngene_rank,
            "tailor_rank": tailor_rank,
            "targets": targets,
        }
    plain = {key: value for key, value in backbone.config.items() if not key.startswith("_")}
    model = build({"backbone": plain, "kind": kind}, seed)
    if dry_run:
        cost = measure_cost(model).to_dict()
        typer.echo(json.dumps({"train": config.to_dict(), "backbone": plain, "kind": kind, "cost": cost}, indent=2))
        return
    if not resume:
        _refuse_old(out)
        save_recipe(out, plain, kind)
    result = train(model, images, config, out, resume=resume, progress=RichProgress("pre-train"))
    typer.echo(f"{result.steps} steps, final loss {result.final_loss:.4f}; next: kindgene decompose {out} --out POOL")


def _refuse_old(out: Path) -> None:
    from kindgene.cli.shared import new_folder

    try:
        new_folder(out)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --resume to continue the run in it") from error
