"""What remains of a class after it was removed from a pool: measured on real digits.

Pre-trains on the digits 0-5 with the demo's settings, removes "4", and asks (1) how often the learngene alone still
draws a 4, and (2) whether a removed class is learned again faster than a new one: fresh tailors for "4" (removed) and
for "7" (never seen) beside that learngene, and for both beside one that never saw a 4 (pre-trained on 0-3 and 5, as
many steps): the control, without which a digit that is simply easy would look remembered. 0 steps are the learngene
alone.

Example: nice -n 5 python benchmarks/removal.py --seeds 3 --json docs/results/removal.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kindgene import DiT, KindConfig, Pool, TrainConfig, load_digits, make_decomposable, sample, train
from kindgene._version import __version__
from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.classifier import Classifier, recognised, train_classifier
from kindgene.evaluation.denoising import validation_loss
from kindgene.studies.settings import BASE, demo_settings
from kindgene.transfer.strategies import kind_transfer

REMOVED, NEW = "4", "7"
CONTROL = tuple(name for name in BASE if name != REMOVED)
CASES = ("removed 4", "new 7", "4, learngene never saw it", "7, learngene never saw 4")
STEPS = (10, 25, 50, 100)
DEMO = demo_settings("mini")
DRAWN_ALONE, DRAWN_OF_CLASS = 500, 100


def pretrain(data: ArrayDataset, preset: str, steps: int, seed: int) -> Pool:
    """A pool of all classes of `data`, trained as the demo trains."""
    names = list(data.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DiT.from_preset(
            preset, num_classes=len(names), class_names=names, prediction=DEMO.prediction, schedule=DEMO.schedule
        )
    kind = KindConfig(
        num_classes=len(names),
        learngene_rank=DEMO.learngene_rank,
        tailor_rank=DEMO.tailor_rank,
        targets=DEMO.targets,
    )
    model = make_decomposable(dense, kind, torch.Generator().manual_seed(seed))
    train(model, data, settings(steps, seed, DEMO.learning_rate, label_drop=0.1))
    return model.decompose()


def settings(steps: int, seed: int, learning_rate: float, label_drop: float) -> TrainConfig:
    """The demo's run: half a cosine after a short warm-up."""
    return TrainConfig(
        steps=steps,
        batch_size=DEMO.batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=label_drop,
        ema_decay=DEMO.ema_decay,
        seed=seed,
    )


def draw(model: Any, asked: Sequence[str | None], guidance: float, seed: int) -> torch.Tensor:
    """Samples, drawn as the demo draws them."""
    return sample(
        model,
        asked,
        guidance=guidance,
        steps=DEMO.sampling_steps,
        scheduler=DEMO.scheduler,
        clip=DEMO.clip,
        generator=torch.Generator().manual_seed(seed),
    )


def drawn_by_the_learngene(pool: Pool, classifier: Classifier, seed: int) -> dict[str, float]:
    """Share of each digit among samples of the null class, as the classifier sees them."""
    labels = classifier.predict(draw(pool.recombine([pool.classes[0]]), [None] * DRAWN_ALONE, 1.0, seed))
    return {name: float((labels == index).double().mean()) for index, name in enumerate(classifier.class_names)}


def alone(pool: Pool, name: str, held_out: ArrayDataset) -> float:
    """Validation loss of the learngene alone on a class: a tailor that is still zero, its label row the null row."""
    return validation_loss(pool.transfer([name], start="zero"), held_out.subset([name]))


def relearned(
    pool: Pool, name: str, data: ArrayDataset, held_out: ArrayDataset, classifier: Classifier, steps: int, seed: int
) -> dict[str, float]:
    """Fresh tailors for one class, `steps` steps: validation loss, and share of samples that are recognised."""
    transfer = kind_transfer(pool, [name], generator=torch.Generator().manual_seed(seed))
    train(transfer.model, data.subset([name]), settings(steps, seed, DEMO.tailor_learning_rate, transfer.label_drop))
    images = draw(transfer.model, [name] * DRAWN_OF_CLASS, DEMO.guidance, seed)
    share = recognised(classifier, images, [name] * DRAWN_OF_CLASS).share
    return {"validation_loss": validation_loss(transfer.model, held_out.subset([name])), "recognised": share}


def run(seed: int, preset: str = DEMO.preset, pretrain_steps: int = 400, steps: Sequence[int] = STEPS) -> Any:
    """One seed's figures."""
    began = time.perf_counter()

    def say(what: str) -> None:
        sys.stderr.write(f"seed {seed}, {time.perf_counter() - began:.0f} s: {what}\n")

    data, held_out = load_digits().split(0.2, seed=0)
    classifier = train_classifier(data, held_out, seed=0)
    say(f"pre-training on {', '.join(BASE)}")
    pool = pretrain(data.subset(BASE), preset, pretrain_steps, seed)
    before = drawn_by_the_learngene(pool, classifier, seed)
    pool.remove([REMOVED])
    say(f"pre-training on {', '.join(CONTROL)}")
    control = pretrain(data.subset(CONTROL), preset, pretrain_steps, seed)
    drawn = {"removed": drawn_by_the_learngene(pool, classifier, seed)}
    drawn["control"] = drawn_by_the_learngene(control, classifier, seed)
    again: dict[str, dict[int, dict[str, float]]] = {}
    for case, where, name in zip(CASES, (pool, pool, control, control), (REMOVED, NEW) * 2, strict=True):
        share = drawn["removed" if where is pool else "control"][name]
        again[case] = {0: {"validation_loss": alone(where, name, held_out), "recognised": share}}
        for count in steps:
            say(f"{case}, {count} steps")
            again[case][count] = relearned(where, name, data, held_out, classifier, count, seed)
    return {
        "seed": seed,
        "pretrain_steps": pretrain_steps,
        "classifier_accuracy": classifier.accuracy,
        "same_draws_before_removal": before == drawn["removed"],
        "learngene_draws": drawn["removed"],
        "control_draws": drawn["control"],
        "relearned": again,
        "seconds": time.perf_counter() - began,
    }


def table(results: Sequence[Any]) -> str:
    """Markdown: means over seeds, least and most in brackets; losses of 4 against the control's, seed by seed."""
    digits = list(results[0]["learngene_draws"])
    lines = _head("samples of the learngene alone, taken for", digits)
    for key, title in (("learngene_draws", "learngene, 4 removed"), ("control_draws", "learngene that never saw 4")):
        lines += [_row(title, [_spread([100 * r[key][name] for r in results], 1) for name in digits])]
    counts = list(results[0]["relearned"][CASES[0]])
    steps = [f"{count} steps" for count in counts]
    for key, title, scale, places in (
        ("validation_loss", "validation loss after", 1, 3),
        ("recognised", "recognised, %, after", 100, 0),
    ):
        lines += ["", *_head(title, steps)]
        for case in CASES:
            cells = ([scale * r["relearned"][case][count][key] for r in results] for count in counts)
            lines += [_row(case, [_spread(cell, places) for cell in cells])]
    lines += ["", *_head("loss beside that learngene / beside the control", steps)]
    for name, first, second in ((REMOVED, CASES[0], CASES[2]), (NEW, CASES[1], CASES[3])):
        ratios = [[_loss(r, first, count) / _loss(r, second, count) for r in results] for count in counts]
        lines += [_row(name, [_spread(ratio, 3) for ratio in ratios])]
    return "\n".join(lines) + "\n"


def _loss(result: Any, case: str, count: int) -> float:
    return float(result["relearned"][case][count]["validation_loss"])


def _spread(values: Sequence[float], places: int) -> str:
    mean = f"{statistics.mean(values):.{places}f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.{places}f} to {max(values):.{places}f})"


def _head(title: str, columns: Sequence[str]) -> list[str]:
    return [_row(title, columns), "|---|" + "---:|" * len(columns)]


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "kindgene": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, one after the other (default: 3)")
    parser.add_argument("--preset", default=DEMO.preset, help=f"size of the DiT (default: {DEMO.preset})")
    parser.add_argument("--pretrain-steps", type=int, default=400, help="of each of the two learngenes (default: 400)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of the transfers (default: 10 25 50 100)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, after every seed")
    choices = parser.parse_args(arguments)
    results: list[Any] = []
    for seed in range(choices.seed, choices.seed + choices.seeds):
        results.append(run(seed, choices.preset, choices.pretrain_steps, choices.steps))
        if choices.json is not None:
            record = {"settings": DEMO.to_dict(), "environment": environment(), "results": results}
            choices.json.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(table(results))


if __name__ == "__main__":
    main()
