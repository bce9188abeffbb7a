"""kindgene study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import extractors, options
from kindgene.cli import vae as autoencoders

if TYPE_CHECKING:
    from kindgene.studies.imagenet_source import ImageNet

EXAMPLE = "kindgene study novel --scale mini --seeds 3"

STUDIES = ("pretrain", "deploy", "novel", "shift", "agnostic", "ablate", "elastic")  # registry.py's, without torch


def _imagenet(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Scale imagenet")


def run(
    name: Annotated[str, typer.Argument(help=f"Which: {', '.join(STUDIES)}.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the studies; they share what is pre-trained.")] = Path(
        "runs/studies"
    ),
    scale: Annotated[
        str, typer.Option(help="tiny (seconds, a try), mini (two CPU cores), full (a GPU), imagenet (the paper's).")
    ] = "mini",
    seeds: Annotated[int, typer.Option(help="How many seeds.", callback=options.at_least_one)] = 1,
    seed: options.Seed = 0,
    cells: Annotated[str, typer.Option(help='Only the cells of that name; * stands for anything: "dense/*".')] = "*",
    minutes: Annotated[float | None, typer.Option(help="Begin no cell after so many minutes.")] = None,
    show_cells: Annotated[bool, typer.Option("--list", help="List the cells, and which are finished.")] = False,
    data: Annotated[str | None, _imagenet("ImageNet-1K: the folder of train/, and of val/ where there is one.")] = None,
    vae: Annotated[str | None, _imagenet("Folder or Hub id of the AutoencoderKL that makes the latents.")] = None,
    weights: Annotated[Path | None, _imagenet("What sees: Inception's weight file, or a DINOv2's folder.")] = None,
    far: Annotated[Path | None, _imagenet("Folder of the far sets, a folder each; for shift.")] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Run a study: train, measure, and write tables, pictures, JSON and a page.

    Each training is a cell: interrupted, or run by several commands one after
    the other, what is finished is not computed again. The report is written
    once all cells are there.
    """
    from kindgene.progress import RichProgress
    from kindgene.studies.cells import run_cells
    from kindgene.studies.registry import find_study

    study = find_study(name)
    settings = study.settings(scale)  # refused before any work
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {minutes:g}")
    source = _source(scale, out, data=data, vae=vae, weights=weights, far=far, dry=dry_run)
    if source is not None and name == "shift" and far is None:
        raise ValueError(f"the shift study needs the far sets at --scale {scale}: name their folder with --far")
    given = {} if source is None else {"source": source}
    if dry_run:
        planned = study.cells(out, scale=scale, seed=seed, **given)
        told = {"study": name, "scale": scale, "seeds": seeds, **asdict(settings), **planned.outlook()}
        if source is not None:
            told["data"] = source.facts()
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return

    def one_seed(number: int):  # type: ignore[no-untyped-def]
        def show(cell: str) -> RichProgress:
            return RichProgress(f"seed {number}, {cell}")

        return study.cells(out, scale=scale, seed=number, show=show, **given)

    all_seeds = [one_seed(number) for number in range(seed, seed + seeds)]
    if show_cells:
        for one in all_seeds:
            for cell in one.names():
                typer.echo(f"{'finished' if one.has(cell) else '-':8} seed {one.seed} {cell}")
        return
    done, of = run_cells(all_seeds, cells, minutes)
    if done < of:
        typer.echo(f"{done} of {of} cells are finished; the report needs all of them: give the command again")
        return
    report = study.write(out / name / scale, [one.result() for one in all_seeds])
    typer.echo(report.text())
    typer.echo(f"report: {out / name / scale / f'{name}.html'}")


def _source(
    scale: str, out: Path, *, data: str | None, vae: str | None, weights: Path | None, far: Path | None, dry: bool
) -> ImageNet | None:
    """What the scale's data are read from; None where they come with the package.

    Raises ValueError for what the scale does not take, and for what it needs.
    """
    from kindgene.progress import RichProgress

    given = {"--data": data, "--vae": vae, "--weights": weights, "--far": far}
    if scale.partition("-")[0] != "imagenet":
        extra = [option for option, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{extra[0]} is for --scale imagenet; at --scale {scale} the data come with the package")
        return None
    if data is None:
        raise ValueError(f"--scale {scale} needs ImageNet-1K: name its folder with --data")
    if vae is None and not dry:
        raise ValueError(f"--scale {scale} trains on latents: name the VAE that makes them with --vae")

    from kindgene.evaluation.dino import load_dino
    from kindgene.studies.cell import best_device
    from kindgene.studies.imagenet_source import ImageNet

    extractor = None
    if weights is not None:
        device = best_device()
        dino = weights.is_dir()
        extractor = load_dino(str(weights), device) if dino else extractors.load_inception(weights, device)
    return ImageNet(
        data,
        out / "latents",
        vae=None if vae is None else autoencoders.load(vae),
        vae_name="" if vae is None else autoencoders.recorded_name(vae),
        extractor=extractor,
        far=far,
        show=RichProgress,
    )
