"""The demo: KIND's whole main job on real handwritten digits, on two CPU cores, in minutes.

Pre-train on the digits 0-5, decompose into a pool, recombine for {0,1,2}, for {4} and for {4} in half the parameters,
transfer the learngene to the novel digits 6-9, each beside the dense way of doing it; measure everything; write
report.html and report.json. Interrupted, it goes on where it was; run again after it finished, it starts anew.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kindgene._version import __version__
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.data.digits import load_digits
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.classifier import train_classifier
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.denoising import calibration_batches
from kindgene.evaluation.pareto import measure_pareto
from kindgene.files import read_json, write_json
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool
from kindgene.progress import NoProgress, Progress
from kindgene.studies.bench import Bench
from kindgene.studies.cell import train_cell
from kindgene.studies.report import write_report
from kindgene.studies.result import DemoResult, Measured
from kindgene.studies.settings import BASE, NOVEL, SINGLE, TRIO, DemoSettings, demo_settings
from kindgene.training.config import TrainConfig
from kindgene.training.trainer import TrainResult
from kindgene.transfer.strategies import Transfer, full_finetuning, kind_transfer

MARKER_FILE = "demo.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
POOL_FOLDER = "pool"
RUN_FOLDERS = ("pretrain", "dense", "transfer-kind", "transfer-full")
GATE_NOISES = 4

ShowProgress = Callable[[str], Progress]
Made = TypeVar("Made")


def describe_demo(scale: str = "mini") -> dict[str, Any]:
    """What the demo would do, without doing it, and what the two models that are pre-trained cost."""
    settings = demo_settings(scale)
    facts = {**settings.to_dict(), "base_classes": list(BASE), "novel_classes": list(NOVEL)}
    dense, model = new_dense(settings, seed=0), new_decomposable(settings, seed=0)
    return {**facts, "base": measure_cost(model).to_dict(), "dense": measure_cost(dense).to_dict()}


def run_demo(
    out: str | Path, *, seed: int = 0, scale: str = "mini", progress: ShowProgress | None = None
) -> dict[str, Any]:
    """Runs the demo into the folder `out` and returns what report.json holds.

    `progress` makes a `Progress` for each stage from its description. Raises ValueError where `out` holds something
    that is not a demo's.
    """
    started = time.perf_counter()
    settings = demo_settings(scale)
    stages = _Stages(_own_folder(Path(out), seed, scale), settings, seed, progress or (lambda stage: NoProgress()))
    data, held_out = load_digits().split(0.2, seed=0)
    classifier = train_classifier(data, held_out, seed=0)
    bench = Bench(settings, seed, classifier)
    models: dict[str, Measured] = {}

    # Pre-train, once: decomposable, and the dense twin to compare with.
    base_data = data.subset(BASE)
    model, run = stages.pretrain(base_data)
    models["base"] = bench.measure("decomposable, digits 0-5", model, BASE, run.seconds, run)
    dense, dense_run = stages.pretrain_dense(base_data)
    models["dense"] = bench.measure("dense twin, digits 0-5", dense, BASE, dense_run.seconds, dense_run)

    # Decompose into a pool of files.
    (pool, pool_folder), decompose_seconds = _timed(lambda: stages.decompose(model, run))

    # Recombine: three classes; one; one in half the parameters; one as a plain model.
    trio, seconds = _timed(lambda: pool.recombine(TRIO))
    models["recombined:0,1,2"] = bench.measure("recombined {0,1,2}", trio, TRIO, seconds)
    single, seconds = _timed(lambda: pool.recombine([SINGLE]))
    models["recombined:4"] = bench.measure("recombined {4}", single, [SINGLE], seconds)
    budget = measure_cost(single).parameters // 2
    single_data = data.subset([SINGLE])
    batches = list(calibration_batches(single_data, DiffusionPath.of(dense)))
    plan = pool.plan([SINGLE], max_parameters=budget, calibration=batches)
    half, seconds = _timed(lambda: pool.recombine(plan=plan))
    models["recombined:4@half"] = bench.measure("recombined {4}, half the parameters", half, [SINGLE], seconds)
    models["recombined:4@half"].row["budget"] = budget
    merged, seconds = _timed(lambda: pool.recombine([SINGLE], form="merged"))
    models["recombined:4 merged"] = bench.measure("recombined {4}, plain merged model", merged, [SINGLE], seconds)

    # Transfer to novel classes: the learngene with fresh tailors; the dense twin, fine-tuned as a whole.
    novel_data = data.subset(NOVEL)
    kind, kind_run = stages.transfer_kind(pool, novel_data)
    models["transfer:kind"] = bench.measure("KIND transfer to {6,7,8,9}", kind.model, NOVEL, kind_run.seconds, kind_run)
    models["transfer:kind"].row["trained"] = kind.trained
    full, full_run = stages.transfer_full(dense, novel_data)
    title = "full fine-tuning to {6,7,8,9}"
    models["transfer:full_finetune"] = bench.measure(title, full.model, NOVEL, full_run.seconds, full_run)
    models["transfer:full_finetune"].row["trained"] = {"everything": sum(full.trained.values())}

    own_held_out = held_out.subset([SINGLE])
    pareto = measure_pareto(pool, [SINGLE], data=single_data, held_out=own_held_out, points=settings.pareto_points)
    result = DemoResult(
        settings=settings,
        real=data,
        pool=pool,
        half=plan,
        gate_images=_gate_images(bench, model),
        pareto=pareto,
        models=models,
        curves={
            "decomposable": run.losses,
            "dense twin": dense_run.losses,
            "KIND (tailors only)": kind_run.losses,
            "full fine-tuning": full_run.losses,
        },
        facts={
            "seed": seed,
            "scale": scale,
            "settings": settings.to_dict(),
            "environment": _environment(),
            "classifier": "scikit-learn SVC (RBF), trained on the real training digits 0-9",
            "classifier_accuracy": classifier.accuracy,
            "decompose_seconds": decompose_seconds,
            "pool_bytes": sum(path.stat().st_size for path in pool_folder.rglob("*") if path.is_file()),
            "pareto": [
                {"parameters": p.plan.cost.parameters, "macs": p.plan.cost.macs, "validation_loss": p.validation_loss}
                for p in pareto
            ],
            "one_class_share_of_dense": _one_class_shares(settings, measure_cost(dense).parameters),
            "recombined_difference_from_base": _difference(model, trio),
            "wall_seconds": time.perf_counter() - started,
        },
    )
    report = result.to_json()
    write_report(Path(out) / REPORT_HTML, result)
    write_json(Path(out) / REPORT_JSON, report)  # last: a folder that has it is a finished demo's
    return report


@dataclass(frozen=True)
class _Stages:
    """The trainings, each in a folder of its own under `out`, resumed where it was interrupted."""

    out: Path
    settings: DemoSettings
    seed: int
    show: ShowProgress

    def pretrain(self, data: ArrayDataset) -> tuple[Decomposable, TrainResult]:
        settings, model = self.settings, new_decomposable(self.settings, self.seed)
        shown = self.show("1/4 pre-train, decomposable")
        return model, self._train(model, data, "pretrain", shown, settings.pretrain_steps, settings.learning_rate)

    def pretrain_dense(self, data: ArrayDataset) -> tuple[DiT, TrainResult]:
        settings, dense = self.settings, new_dense(self.settings, self.seed)
        shown = self.show("2/4 pre-train, dense twin")
        return dense, self._train(dense, data, "dense", shown, settings.pretrain_steps, settings.dense_learning_rate)

    def decompose(self, model: Decomposable, run: TrainResult) -> tuple[Pool, Path]:
        """The pool as it is read back from its files."""
        folder = self.out / POOL_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        provenance = {"recipe": "demo", "seed": self.seed, "data": "scikit-learn digits", "steps": run.steps}
        model.decompose(BASE, provenance=provenance).save_pretrained(folder)
        return Pool.from_pretrained(folder), folder

    def transfer_kind(self, pool: Pool, data: ArrayDataset) -> tuple[Transfer, TrainResult]:
        generator = torch.Generator().manual_seed(self.seed)
        transfer = kind_transfer(pool, NOVEL, self.settings.tailor_rank, generator=generator)
        shown = self.show("3/4 transfer, KIND")
        return transfer, self._transfer(transfer, data, "transfer-kind", shown, self.settings.tailor_learning_rate)

    def transfer_full(self, dense: DiT, data: ArrayDataset) -> tuple[Transfer, TrainResult]:
        transfer = full_finetuning(dense, NOVEL)
        shown = self.show("4/4 transfer, full fine-tuning")
        return transfer, self._transfer(transfer, data, "transfer-full", shown, self.settings.finetune_learning_rate)

    def _transfer(self, transfer: Transfer, data: ArrayDataset, name: str, shown: Progress, lr: float) -> TrainResult:
        steps = self.settings.transfer_steps
        return self._train(transfer.model, data, name, shown, steps, lr, label_drop=transfer.label_drop)

    def _train(
        self,
        model: nn.Module,
        data: ArrayDataset,
        name: str,
        shown: Progress,
        steps: int,
        learning_rate: float,
        label_drop: float = 0.1,
    ) -> TrainResult:
        settings = self.settings
        config = TrainConfig(
            steps=steps,
            batch_size=settings.batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(50, steps // 3),
            schedule="cosine",
            label_drop=label_drop,
            ema_decay=settings.ema_decay,
            seed=self.seed,
            checkpoint_every=settings.checkpoint_every,
            checkpoints_total_limit=1,
        )
        return train_cell(model, data, config, self.out / name, shown)


def new_dense(settings: DemoSettings, seed: int) -> DiT:
    """A fresh dense DiT; the same for every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense: DiT = DiT.from_preset(
            settings.preset,
            num_classes=len(BASE),
            class_names=list(BASE),
            prediction=settings.prediction,
            schedule=settings.schedule,
        )
    return dense


def new_decomposable(settings: DemoSettings, seed: int, targets: str | None = None) -> Decomposable:
    """A fresh decomposable DiT of the same size; `targets` are the settings' if not given."""
    config = KindConfig(
        num_classes=len(BASE),
        learngene_rank=settings.learngene_rank,
        tailor_rank=settings.tailor_rank,
        targets=targets or settings.targets,
    )
    return make_decomposable(new_dense(settings, seed), config, generator=torch.Generator().manual_seed(seed))


def _one_class_shares(settings: DemoSettings, dense: int) -> dict[str, float]:
    """Parameters of a one-class model against the dense twin's, for either choice of targets (nothing is trained)."""
    shares = {}
    for targets in ("paper", "paper+adaln"):
        pool = new_decomposable(settings, 0, targets).decompose(BASE)
        shares[targets] = pool.plan([SINGLE]).cost.parameters / dense
    return shares


def _gate_images(bench: Bench, model: Decomposable) -> Tensor:
    """The same noises through the learngene alone and with each tailor: [noises, 1 + classes, C, H, W]."""
    columns: Sequence[str | None] = [None, *BASE]
    return torch.stack([bench.draw(model, [column] * GATE_NOISES) for column in columns], dim=1)


def _difference(model: Decomposable, trio: nn.Module) -> float:
    """How far the recombined model is from the pre-trained one on its own classes and null, relative to the output."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.input_size
    x = torch.randn(16, model.config.in_channels, size, size, generator=generator)
    t = torch.randint(1000, (16,), generator=generator)
    position = torch.arange(16) % (len(TRIO) + 1)
    in_base = torch.where(position == len(TRIO), model.null_class, position)
    with torch.no_grad():
        expected, found = model(x, t, in_base), trio(x, t, position)
    return float((found - expected).norm() / expected.norm())


def _timed(make: Callable[[], Made]) -> tuple[Made, float]:
    tick = time.perf_counter()
    made = make()
    return made, time.perf_counter() - tick


def _environment() -> dict[str, Any]:
    return {
        "kindgene": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def _own_folder(out: Path, seed: int, scale: str) -> Path:
    """The demo's folder: new, one to go on in, or a finished one whose outputs are removed first."""
    settings = demo_settings(scale).to_dict()
    marker = {"demo": "kindgene", "seed": seed, "scale": scale, "version": __version__, "settings": settings}
    path = out / MARKER_FILE
    old = read_json(path) if path.exists() else None
    ours = isinstance(old, dict) and old.get("demo") == "kindgene"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours)):
        raise ValueError(f"{out} exists and is not a demo's folder; choose another with --out (nothing was changed)")
    out.mkdir(parents=True, exist_ok=True)
    if ours and ((out / REPORT_JSON).exists() or old != marker):
        for name in (*RUN_FOLDERS, POOL_FOLDER):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (REPORT_JSON, REPORT_HTML):
            (out / name).unlink(missing_ok=True)
    write_json(path, marker)
    return out
