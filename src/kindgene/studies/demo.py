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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene._version import __version__
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.data.digits import load_digits
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import Classifier, recognised, train_classifier
from kindgene.evaluation.cost import measure_cost
from kindgene.files import read_json, write_json
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool
from kindgene.progress import NoProgress, Progress
from kindgene.studies.report import write_report
from kindgene.studies.settings import BASE, NOVEL, SINGLE, TRIO, DemoSettings, demo_settings
from kindgene.training.checkpoint import latest_checkpoint
from kindgene.training.config import TrainConfig
from kindgene.training.trainer import TrainResult, train
from kindgene.transfer.strategies import Transfer, full_finetuning, kind_transfer

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
OWN_FOLDERS = ("pretrain", "dense", "transfer-kind", "transfer-full", "pool")

ShowProgress = Callable[[str], Progress]


@dataclass
class Measured:
    """One model's row: what it is, what it costs, how its samples were recognised, and the samples."""

    title: str
    row: dict[str, Any]
    images: Tensor
    asked: list[str]


@dataclass
class DemoResult:
    """Everything the report shows."""

    settings: DemoSettings
    seed: int
    real: ArrayDataset
    gate_images: Tensor  # [noises, 1 + base classes, C, H, W]: one noise a row; learngene alone, then each tailor
    models: dict[str, Measured] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    pool: Pool | None = None
    half: Decomposable | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """report.json: facts, then base, dense, recombined[...], transfer[...]."""
        out: dict[str, Any] = {**self.facts, "recombined": {}, "transfer": {}}
        for key, measured in self.models.items():
            group, _, name = key.partition(":")
            if name:
                out[group][name] = measured.row
            else:
                out[group] = measured.row
        return out


def describe_demo(scale: str = "mini") -> dict[str, Any]:
    """What the demo would do, without doing it."""
    settings = demo_settings(scale)
    return {**settings.to_dict(), "base_classes": list(BASE), "novel_classes": list(NOVEL)}


def run_demo(
    out: str | Path, *, seed: int = 0, scale: str = "mini", progress: ShowProgress | None = None
) -> dict[str, Any]:
    """Runs the demo into the folder `out` and returns what report.json holds.

    `progress` makes a `Progress` for each stage from its description. Raises ValueError where `out` holds something
    that is not a demo's.
    """
    settings = demo_settings(scale)
    out = _own_folder(Path(out), seed, scale)
    show = progress or (lambda description: NoProgress())
    started = time.perf_counter()

    data, held_out = load_digits().split(0.2, seed=0)
    classifier = train_classifier(data, held_out, seed=0)
    base_data, novel_data = data.subset(BASE), data.subset(NOVEL)
    bench = _Bench(settings, seed, classifier)

    # 1. Pre-train, once: decomposable, and the dense twin to compare with.
    model = _new_decomposable(settings, seed)
    pretrained = _train(model, base_data, settings, out / "pretrain", show("1/4 pre-train, decomposable"), seed=seed)
    dense = _new_dense(settings, seed)
    dense_run = _train(
        dense,
        base_data,
        settings,
        out / "dense",
        show("2/4 pre-train, dense twin"),
        seed=seed,
        lr=settings.dense_learning_rate,
    )

    # 2. Decompose into a pool of files.
    provenance = {
        "recipe": "demo",
        "scale": scale,
        "seed": seed,
        "data": "scikit-learn digits",
        "steps": pretrained.steps,
    }
    shutil.rmtree(out / "pool", ignore_errors=True)
    tick = time.perf_counter()
    model.decompose(BASE, provenance=provenance).save_pretrained(out / "pool")
    decompose_seconds = time.perf_counter() - tick
    pool = Pool.from_pretrained(out / "pool")

    # 3. Recombine: three classes, one class, one class in half the parameters, one class as a plain model.
    trio, trio_seconds = _timed(lambda: pool.recombine(TRIO))
    single, single_seconds = _timed(lambda: pool.recombine([SINGLE]))
    budget = measure_cost(single).parameters // 2
    half, half_seconds = _timed(lambda: pool.recombine([SINGLE], max_parameters=budget))
    merged, merged_seconds = _timed(lambda: pool.recombine([SINGLE], form="merged"))

    # 4. Transfer to novel classes: the learngene with fresh tailors; the dense twin, fine-tuned as a whole.
    generator = torch.Generator().manual_seed(seed)
    kind = kind_transfer(pool, NOVEL, settings.tailor_rank, generator=generator)
    kind_run = _transfer(kind, novel_data, settings, out / "transfer-kind", show("3/4 transfer, KIND"), seed)
    full = full_finetuning(dense, NOVEL)
    full_run = _transfer(
        full, novel_data, settings, out / "transfer-full", show("4/4 transfer, full fine-tuning"), seed
    )

    # Measure.
    result = DemoResult(settings, seed, data, _gate_images(model, settings, seed), pool=pool)
    assert isinstance(half, Decomposable)
    result.half = half
    rows = (
        ("base", "decomposable, all base classes", model, BASE, pretrained.seconds, pretrained),
        ("dense", "dense twin", dense, BASE, dense_run.seconds, dense_run),
        ("recombined:0,1,2", "recombined {0,1,2}", trio, TRIO, trio_seconds, None),
        ("recombined:4", "recombined {4}", single, (SINGLE,), single_seconds, None),
        ("recombined:4@half", "recombined {4}, half the parameters", half, (SINGLE,), half_seconds, None),
        (
            "recombined:4 merged",
            "recombined {4}, plain merged model",
            merged,
            (SINGLE,),
            merged_seconds,
            None,
        ),
        ("transfer:kind", "KIND transfer to {6,7,8,9}", kind.model, NOVEL, kind_run.seconds, kind_run),
        (
            "transfer:full_finetune",
            "full fine-tuning to {6,7,8,9}",
            full.model,
            NOVEL,
            full_run.seconds,
            full_run,
        ),
    )
    for key, title, measured, classes, seconds, run in rows:
        result.models[key] = bench.measure(title, measured, classes, seconds, run)
    result.models["transfer:kind"].row["trained"] = kind.trained
    result.models["transfer:full_finetune"].row["trained"] = {"everything": sum(full.trained.values())}
    result.models["recombined:4@half"].row["budget"] = budget
    result.curves = {
        "decomposable": pretrained.losses,
        "dense twin": dense_run.losses,
        "KIND (tailors only)": kind_run.losses,
        "full fine-tuning": full_run.losses,
    }
    result.facts = {
        "seed": seed,
        "scale": scale,
        "settings": settings.to_dict(),
        "environment": _environment(),
        "classifier": "scikit-learn SVC (RBF), trained on the real training digits 0-9",
        "classifier_accuracy": classifier.accuracy,
        "decompose_seconds": decompose_seconds,
        "pool_bytes": sum(path.stat().st_size for path in (out / "pool").rglob("*") if path.is_file()),
        "recombined_difference_from_base": _difference(model, trio),
        "wall_seconds": time.perf_counter() - started,
    }
    report = result.to_json()
    write_report(out / REPORT_HTML, result)
    write_json(out / REPORT_JSON, report)
    return report


class _Bench:
    """Measures every model in the same way."""

    def __init__(self, settings: DemoSettings, seed: int, classifier: Classifier) -> None:
        self.settings, self.seed, self.classifier = settings, seed, classifier

    def measure(
        self, title: str, model: Any, classes: Sequence[str], seconds: float, run: TrainResult | None
    ) -> Measured:
        settings = self.settings
        count = settings.single_class_samples if len(classes) == 1 else settings.samples_per_class
        asked = [name for name in classes for _ in range(count)]
        guidance = settings.guidance if model.null_class is not None else 1.0
        generator = torch.Generator().manual_seed(self.seed)
        tick = time.perf_counter()
        images = sample(
            model,
            asked,
            guidance=guidance,
            steps=settings.sampling_steps,
            scheduler=settings.scheduler,
            clip=settings.clip,
            generator=generator,
        )
        sampling_seconds = time.perf_counter() - tick
        seen = recognised(self.classifier, images, asked)
        row: dict[str, Any] = {
            "title": title,
            "classes": list(classes),
            "recognised": seen.share,
            "per_class": seen.per_class,
            "samples": seen.count,
            "guidance": guidance,
            **measure_cost(model).to_dict(),
            "seconds": seconds,
            "sampling_seconds": sampling_seconds,
        }
        if run is not None:
            row |= {"steps": run.steps, "images_seen": run.images, "final_loss": run.final_loss}
        return Measured(title, row, images, asked)


def _new_dense(settings: DemoSettings, seed: int, classes: Sequence[str] = BASE) -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense: DiT = DiT.from_preset(
            settings.preset,
            num_classes=len(classes),
            class_names=list(classes),
            prediction=settings.prediction,
            schedule=settings.schedule,
        )
        return dense


def _new_decomposable(settings: DemoSettings, seed: int) -> Decomposable:
    config = KindConfig(
        num_classes=len(BASE),
        learngene_rank=settings.learngene_rank,
        tailor_rank=settings.tailor_rank,
        targets=settings.targets,
    )
    return make_decomposable(_new_dense(settings, seed), config, generator=torch.Generator().manual_seed(seed))


def _train(
    model: nn.Module,
    data: ArrayDataset,
    settings: DemoSettings,
    out: Path,
    shown: Progress,
    *,
    seed: int,
    steps: int | None = None,
    lr: float | None = None,
    label_drop: float = 0.1,
) -> TrainResult:
    steps = steps or settings.pretrain_steps
    config = TrainConfig(
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=lr or settings.learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=label_drop,
        ema_decay=settings.ema_decay,
        seed=seed,
        checkpoint_every=settings.checkpoint_every,
        checkpoints_total_limit=1,
    )
    resume = latest_checkpoint(out / "checkpoints") is not None
    if not resume:
        shutil.rmtree(out, ignore_errors=True)  # killed before its first checkpoint
    return train(model, data, config, out, resume=resume, progress=shown)


def _transfer(
    transfer: Transfer, data: ArrayDataset, settings: DemoSettings, out: Path, shown: Progress, seed: int
) -> TrainResult:
    kind = transfer.strategy == "kind"
    return _train(
        transfer.model,
        data,
        settings,
        out,
        shown,
        seed=seed,
        steps=settings.transfer_steps,
        lr=settings.tailor_learning_rate if kind else settings.finetune_learning_rate,
        label_drop=transfer.label_drop,
    )


def _gate_images(model: Decomposable, settings: DemoSettings, seed: int, noises: int = 4) -> Tensor:
    """The same noises through the learngene alone and with each tailor: [noises, 1 + classes, C, H, W]."""
    columns: list[str | None] = [None, *BASE]
    images = [
        sample(
            model,
            [column] * noises,
            steps=settings.sampling_steps,
            scheduler=settings.scheduler,
            clip=settings.clip,
            guidance=1.0 if column is None else settings.guidance,
            generator=torch.Generator().manual_seed(seed),
        )
        for column in columns
    ]
    return torch.stack(images, dim=1)


def _difference(model: Decomposable, trio: Any) -> float:
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


def _timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
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
    path = out / "demo.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not path.exists())):
        raise ValueError(f"{out} exists and is not a demo's folder; choose another with --out (nothing was changed)")
    out.mkdir(parents=True, exist_ok=True)
    if path.exists() and ((out / REPORT_JSON).exists() or read_json(path) != marker):
        for name in OWN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (REPORT_JSON, REPORT_HTML):
            (out / name).unlink(missing_ok=True)
    write_json(path, marker)
    return out
