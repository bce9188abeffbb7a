"""kindgene pretrain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import options, prepare
from kindgene.cli.assign import assignments

if TYPE_CHECKING:
    from kindgene.core.decomposable import Decomposable
    from kindgene.data.dataset import Dataset
    from kindgene.models.dit import DiT
    from kindgene.recipes import Part, Settings

EXAMPLE = "kindgene pretrain --data digits --classes 0,1,2 --out runs/digits"

_MODEL, _TRAINING, _RUN = "Model", "Training", "Run"
_OPTIONS = {
    "data.data": "--data",
    "data.image_size": "--image-size",
    "kind.learngene_rank": "--learngene-rank",
    "kind.tailor_rank": "--tailor-rank",
    "train.steps": "--steps",
    "train.batch_size": "--batch-size",
    "train.learning_rate": "--learning-rate",
    "train.gradient_accumulation_steps": "--gradient-accumulation-steps",
    "train.mixed_precision": "--mixed-precision",
    "train.checkpoint_every": "--checkpointing-steps",
    "train.checkpoints_total_limit": "--checkpoints-total-limit",
    "train.report_to": "--report-to",
    "train.seed": "--seed",
}
"""Settings that have an option of their own; all others are for --set."""


def _count(text: str, panel: str | None = None) -> Any:
    return typer.Option(help=text, callback=options.at_least_one, rich_help_panel=panel)


def run(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    recipe: Annotated[
        str, typer.Option(help="Whence all that is not given: digits, glyphs, folder-32, imagenet-dit-b4, ...")
    ] = "digits",
    data: Annotated[str | None, typer.Option(help=f"{options.DATA_HELP} The recipe's if not given.")] = None,
    classes: options.Classes = None,
    image_size: Annotated[int | None, _count("Pixels a side.")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    strict: options.Strict = False,
    vae: options.Vae = None,
    preset: Annotated[str | None, typer.Option(help="mini/2, tiny/2, DiT-S/4, ...", rich_help_panel=_MODEL)] = None,
    learngene_rank: Annotated[int | None, _count("Components all classes share.", _MODEL)] = None,
    tailor_rank: Annotated[int | None, _count("Components of each class.", _MODEL)] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Train the dense twin instead.", rich_help_panel=_MODEL)
    ] = False,
    steps: Annotated[int | None, _count("Optimizer steps.", _TRAINING)] = None,
    batch_size: Annotated[int | None, _count("Samples a step, of all processes.", _TRAINING)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.", rich_help_panel=_TRAINING)] = None,
    gradient_accumulation_steps: Annotated[int | None, _count("Parts a step is cut into.", _TRAINING)] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.", rich_help_panel=_TRAINING)] = None,
    checkpointing_steps: Annotated[int | None, _count("Steps between checkpoints.", _RUN)] = None,
    checkpoints_total_limit: Annotated[int | None, _count("Checkpoints that are kept.", _RUN)] = None,
    resume: options.Resume = None,
    report_to: Annotated[
        str | None, typer.Option(help="Trackers: tensorboard,wandb,trackio.", rich_help_panel=_RUN)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all that is random; 0 if not given.", callback=options.seed)
    ] = None,
    assigned: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: --set ema_decay=0.99 --set channels=1.")
    ] = None,
    dry_run: options.DryRunTimed = False,
) -> None:
    """Pre-train a decomposable DiT.

    Ctrl-C saves a checkpoint; the same command with --resume latest goes on from
    it. Images become latents first where there is a --vae.
    """
    from kindgene import train
    from kindgene.progress import RichProgress
    from kindgene.recipes import find_recipe, settled
    from kindgene.training.processes import is_main_process
    from kindgene.training.run import Origin

    if is_main_process():
        prepare.check_run(out, resume, dry=dry_run)
    given = {
        "data.data": data,
        "data.image_size": image_size,
        "kind.learngene_rank": learngene_rank,
        "kind.tailor_rank": tailor_rank,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.learning_rate": learning_rate,
        "train.gradient_accumulation_steps": gradient_accumulation_steps,
        "train.mixed_precision": mixed_precision,
        "train.checkpoint_every": checkpointing_steps,
        "train.checkpoints_total_limit": checkpoints_total_limit,
        "train.report_to": options.words(report_to),
        "train.seed": seed,
    }
    chosen = _chosen(given, assigned or [])
    if dense and chosen["kind"]:
        raise ValueError(f"--dense trains no components: leave out what is said of them ({', '.join(chosen['kind'])})")
    row, names = find_recipe(recipe), options.class_list(classes)
    settings = settled(row, chosen, preset)
    source = prepare.Source(settings.data, names, strict, image_column, label_column, vae)
    dataset, shape = prepare.dataset_of(source, out, dry=dry_run)
    model = _model(settings, dataset, shape, dense=dense, whole=dry_run)
    if dry_run:
        facts = {"out": str(out), "images": len(dataset), "shape": list(shape), **settings.to_dict()}
        facts |= _measured(model, shape, settings)
        facts["expect"] = _expected(settings, [*["classes"] * (names is not None), *["dense"] * dense])
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    about = {"recipe": settings.recipe, "preset": settings.preset, "data": prepare.facts_of(source, shape, out)}
    result = train(
        *(model, dataset, settings.train, out),
        resume=resume or False,
        progress=RichProgress("pre-train"),
        origin=Origin(about, prepare.skipped_of(dataset)),
        decode=None if vae is None or settings.train.sample_every is None else prepare.decoder(vae),
    )
    following = f"sample {out} --out samples.png" if dense else f"decompose {out} --out POOL"
    if is_main_process():
        typer.echo(f"{result.steps} steps, final loss {result.final_loss:.4f}; next: kindgene {following}")


def _chosen(given: dict[str, Any], assigned: list[str]) -> dict[Part, dict[str, Any]]:
    """What options and --set say, by part and name."""
    chosen = assignments(assigned, _OPTIONS)
    for key, value in given.items():
        part, _, name = key.partition(".")
        if value is not None:
            chosen[part][name] = value  # type: ignore[index]  # one of the four
    return chosen


def _model(
    settings: Settings, dataset: Dataset, shape: tuple[int, int, int], *, dense: bool, whole: bool
) -> DiT | Decomposable:
    """The model at its first step, its weights drawn by the seed; unless `whole`, with this process's tailors only."""
    import os

    import torch

    from kindgene import DiT, KindConfig, make_decomposable
    from kindgene.training.placement import Placement

    channels, height, width = shape
    if height != width:
        raise ValueError(f"a DiT takes square images, and these are {height}x{width}")
    names = list(dataset.class_names)
    kind = KindConfig(num_classes=len(names), **settings.kind)
    tailors, processes = None, int(os.environ.get("WORLD_SIZE", "1"))
    if settings.train.parallel == "tailor" and processes > 1 and not whole:
        placement = Placement.for_data(kind.tailor_of, dataset.labels, processes)
        tailors = placement.tailors(int(os.environ.get("RANK", "0")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        backbone = DiT.from_preset(
            settings.preset,
            num_classes=len(names),
            class_names=names,
            input_size=height,
            in_channels=channels,
            **settings.model,
        )
        return backbone if dense else make_decomposable(backbone, kind, tailors=tailors)


def _measured(model: DiT | Decomposable, shape: tuple[int, int, int], settings: Settings) -> dict[str, Any]:
    """What a model is, and what training it here takes."""
    import os

    from kindgene.core.decomposable import Decomposable
    from kindgene.evaluation.cost import measure_cost
    from kindgene.training.estimate import estimate

    cost = measure_cost(model)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        "backbone": {key: value for key, value in model.config.items() if not key.startswith("_")},
        "kind": model.kind.to_dict() if isinstance(model, Decomposable) else None,
        **cost.to_dict(),
        "estimate": estimate(model, shape, settings.train, processes, macs=cost.macs),
    }


def _expected(settings: Settings, more: list[str]) -> str:
    """What the recipe says is to be expected; and of which settings, and `more`, this run has others."""
    from kindgene.recipes import changed, find_recipe

    recipe, others = find_recipe(settings.recipe), [*changed(settings), *more]
    if not others:
        return recipe.expect
    return f"Not known for this run, which has its own {', '.join(others)}. The recipe unchanged: {recipe.expect}"
