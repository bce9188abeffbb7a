"""kindgene study."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import extractors, options
from kindgene.cli import vae as autoencoders

if TYPE_CHECKING:
    from kindgene.studies.cells import Cells
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
    jobs: Annotated[
        int,
        typer.Option(help="Processes that share the cells, and the cores.", callback=options.at_least_one),
    ] = 1,
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
    from kindgene.studies.cells import finished, run_cells
    from kindgene.studies.registry import find_study

    study = find_study(name)
    settings = study.settings(scale)  # refused before any work
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {minutes:g}")
    inputs = _Inputs(data, vae, weights, far)
    if dry_run:
        source = _source(name, scale, out, inputs, dry=True)
        given = {} if source is None else {"source": source}
        planned = study.cells(out, scale=scale, seed=seed, **given)
        told = {"study": name, "scale": scale, "seeds": seeds, **asdict(settings), **planned.outlook()}
        if source is not None:
            told["data"] = source.facts()
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    work = _Work(name, out, scale, range(seed, seed + seeds), cells, minutes, inputs)
    all_seeds = work.cells(quiet=False)
    if show_cells:
        for one in all_seeds:
            for cell in one.names():
                typer.echo(f"{'finished' if one.has(cell) else '-':8} seed {one.seed} {cell}")
        return
    with _helpers(work, jobs):
        run_cells(all_seeds, cells, minutes, lambda told: typer.echo(told, err=True))
    done, of = finished(all_seeds)
    if done < of:
        typer.echo(f"{done} of {of} cells are finished; the report needs all of them: give the command again")
        return
    report = study.write(out / name / scale, [one.result() for one in all_seeds])
    typer.echo(report.text())
    typer.echo(f"report: {out / name / scale / f'{name}.html'}")


@dataclass(frozen=True)
class _Inputs:
    """What a scale of ImageNet is given."""

    data: str | None
    vae: str | None
    weights: Path | None
    far: Path | None


@dataclass(frozen=True)
class _Work:
    """What the processes of one command do, as they can be told."""

    name: str
    out: Path
    scale: str
    seeds: Sequence[int]
    wanted: str
    minutes: float | None
    inputs: _Inputs

    def cells(self, *, quiet: bool) -> list[Cells]:
        """A study a seed."""
        from kindgene.progress import RichProgress
        from kindgene.studies.registry import find_study

        study = find_study(self.name)
        source = _source(self.name, self.scale, self.out, self.inputs)
        given = {} if source is None else {"source": source}

        def one_seed(seed: int) -> Cells:
            def show(cell: str) -> RichProgress:
                return RichProgress(f"seed {seed}, {cell}")

            return study.cells(self.out, scale=self.scale, seed=seed, show=None if quiet else show, **given)

        return [one_seed(seed) for seed in self.seeds]


@contextmanager
def _helpers(work: _Work, jobs: int) -> Iterator[None]:
    """Meanwhile ``jobs - 1`` other processes take part; each process has its share of the cores.

    They end what they have begun; stopped by an error or by Ctrl-C, they save it and end at once.
    """
    if jobs == 1:
        yield
        return
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    helpers = [spawn.Process(target=_help, args=(work, threads), daemon=True) for _ in range(jobs - 1)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for helper in helpers:
            helper.start()
        yield
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    finally:
        for helper in helpers:
            helper.join()
        torch.set_num_threads(before)


def _help(work: _Work, threads: int) -> None:
    """What a process that takes part does: silently, since the one that it helps meets the same errors."""
    import torch

    from kindgene.studies.cells import run_cells

    torch.set_num_threads(threads)
    with suppress(Exception, KeyboardInterrupt):
        run_cells(work.cells(quiet=True), work.wanted, work.minutes)


def _source(name: str, scale: str, out: Path, inputs: _Inputs, *, dry: bool = False) -> ImageNet | None:
    """What the scale's data are read from; None where they come with the package.

    Raises ValueError for what the scale does not take, and for what it needs.
    """
    from kindgene.progress import RichProgress

    data, vae, weights, far = inputs.data, inputs.vae, inputs.weights, inputs.far
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
    if name == "shift" and far is None:
        raise ValueError(f"the shift study needs the far sets at --scale {scale}: name their folder with --far")

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
