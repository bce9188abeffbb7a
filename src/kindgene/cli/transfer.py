"""kindgene transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.shared import class_list, load_data


def run(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[str, typer.Option(help="digits, or a folder with one folder of images a class.")] = "digits",
    classes: Annotated[str | None, typer.Option(help="New classes, comma separated; all if not given.")] = None,
    tailor_rank: Annotated[int | None, typer.Option(help="Default: the pool's.")] = None,
    steps: int = 150,
    batch_size: int = 128,
    learning_rate: float = 6e-3,
    ema_decay: float = 0.995,
    add: Annotated[bool, typer.Option("--add", help="Add the new tailors to the pool.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    seed: int = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and stop.")] = False,
) -> None:
    """Trains tailors for new classes beside the frozen learngene.

    Without --add the new tailors stay in the run; the same command with --resume --add adds them later.

    Example: kindgene transfer my-pool --data digits --classes 6,7 --out runs/new --add
    """
    import torch

    from kindgene import Pool, TrainConfig, train
    from kindgene.progress import RichProgress
    from kindgene.transfer.strategies import kind_transfer

    opened = Pool.from_pretrained(pool, classes=None)
    config = opened.config.backbone_config
    images = load_data(data, class_list(classes), int(config["input_size"]), int(config["in_channels"]))
    taken = [name for name in images.class_names if name in opened.classes]
    if taken and add:
        raise ValueError(f"the pool has {', '.join(map(repr, taken))} already; choose other classes with --classes")
    generator = torch.Generator().manual_seed(seed)
    transfer = kind_transfer(opened, images.class_names, tailor_rank, generator=generator)
    for name, count in transfer.trained.items():
        typer.echo(f"trained: {name}, {count:,} numbers")
    settings = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=transfer.label_drop,
        ema_decay=ema_decay,
        seed=seed,
    )
    if dry_run:
        return
    train(transfer.model, images, settings, out, resume=resume, progress=RichProgress("transfer"))
    if add:
        opened.add(transfer.model)  # type: ignore[arg-type]
        typer.echo(f"{pool}: now {', '.join(opened.classes)}")
