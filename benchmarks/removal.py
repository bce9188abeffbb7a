"""What remains of a class after it was removed from a pool: measured on real digits.

Pre-trains on the digits 0-5, removes "4", and asks (1) how often the learngene alone still draws a 4, and (2) whether a
removed class is learned again faster than a new one: fresh tailors for "4" (removed) and for "7" (never seen) beside
that learngene, and for both beside one that never saw a 4 (pre-trained on 0-3 and 5), the control.

Example: python benchmarks/removal.py --seeds 3 --json docs/results/removal.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from kindgene import DiT, KindConfig, Pool, TrainConfig, load_digits, make_decomposable, sample, train
from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.classifier import Classifier, recognised, train_classifier
from kindgene.evaluation.denoising import validation_loss

SEEN, CONTROL = ("0", "1", "2", "3", "4", "5"), ("0", "1", "2", "3", "5")
REMOVED, NEW = "4", "7"
SAMPLING = {"steps": 30, "scheduler": "ddim", "clip": 1.0}


def pretrain(data: ArrayDataset, preset: str, steps: int, seed: int) -> Pool:
    """A pool of all classes of `data`, trained as the demo trains."""
    names = list(data.class_names)
    torch.manual_seed(seed)
    dense = DiT.from_preset(preset, num_classes=len(names), class_names=names, prediction="v")
    kind = KindConfig(num_classes=len(names), learngene_rank=20, tailor_rank=6, targets="paper+adaln")
    model = make_decomposable(dense, kind, torch.Generator().manual_seed(seed))
    train(model, data, settings(steps, seed, learning_rate=3e-3, label_drop=0.1))
    return model.decompose()


def settings(steps: int, seed: int, learning_rate: float, label_drop: float) -> TrainConfig:
    """A cosine run with a short warm-up."""
    return TrainConfig(
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=min(50, steps // 3),
        schedule="cosine",
        label_drop=label_drop,
        ema_decay=0.995 if steps > 200 else 0.9,
        seed=seed,
    )


def drawn_by_the_learngene(pool: Pool, classifier: Classifier, count: int, seed: int) -> dict[str, float]:
    """Share of each digit among samples of the null class, as the classifier sees them."""
    model = pool.recombine([pool.classes[0]])
    images = sample(model, [None] * count, generator=torch.Generator().manual_seed(seed), **SAMPLING)
    labels = classifier.predict(images)
    return {name: float((labels == index).double().mean()) for index, name in enumerate(classifier.class_names)}


def relearned(
    pool: Pool, name: str, data: ArrayDataset, held_out: ArrayDataset, classifier: Classifier, steps: int, seed: int
) -> dict[str, float]:
    """Fresh tailors for one class, `steps` steps: validation loss, and share of samples that are recognised."""
    fresh: Decomposable = pool.transfer([name], generator=torch.Generator().manual_seed(seed))
    train(fresh, data.subset([name]), settings(steps, seed, learning_rate=6e-3, label_drop=0.0))
    images = sample(fresh, [name] * 100, guidance=1.5, generator=torch.Generator().manual_seed(seed), **SAMPLING)
    share = recognised(classifier, images, [name] * 100).share
    return {"validation_loss": validation_loss(fresh, held_out.subset([name])), "recognised": share}


def run(
    seed: int, preset: str = "mini/2", pretrain_steps: int = 600, steps: tuple[int, ...] = (10, 25, 50, 100)
) -> Any:
    """One seed's figures."""
    data, held_out = load_digits().split(0.2, seed=0)
    classifier = train_classifier(data, held_out, seed=0)
    say = sys.stderr.write
    say(f"seed {seed}: pre-training on {', '.join(SEEN)}\n")
    pool = pretrain(data.subset(SEEN), preset, pretrain_steps, seed)
    pool.remove([REMOVED])
    say(f"seed {seed}: pre-training on {', '.join(CONTROL)}\n")
    control = pretrain(data.subset(CONTROL), preset, pretrain_steps, seed)
    cases = {
        "removed 4": (pool, REMOVED),
        "new 7": (pool, NEW),
        "4, learngene never saw it": (control, REMOVED),
        "7, learngene never saw 4": (control, NEW),
    }
    result: dict[str, Any] = {
        "seed": seed,
        "learngene_draws": drawn_by_the_learngene(pool, classifier, 500, seed),
        "control_draws": drawn_by_the_learngene(control, classifier, 500, seed),
        "relearned": {},
    }
    for case, (where, name) in cases.items():
        say(f"seed {seed}: {case}\n")
        result["relearned"][case] = {
            count: relearned(where, name, data, held_out, classifier, count, seed) for count in steps
        }
    return result


def table(results: list[Any]) -> str:
    """Markdown: means over seeds, least and most in brackets."""
    lines = []
    for key, title in (("learngene_draws", "learngene after removal"), ("control_draws", "learngene that never saw 4")):
        shares = {name: [result[key][name] for result in results] for name in results[0][key]}
        lines.append(f"| {title} | " + " | ".join(f"{100 * sum(v) / len(v):.1f} %" for v in shares.values()) + " |")
    digits = list(results[0]["learngene_draws"])
    head = "| null samples taken for | " + " | ".join(digits) + " |\n|---|" + "---|" * len(digits) + "\n"
    out = head + "\n".join(lines) + "\n\n"
    counts = list(next(iter(results[0]["relearned"].values())))
    out += "| validation loss after | " + " | ".join(f"{count} steps" for count in counts) + " |\n"
    out += "|---|" + "---|" * len(counts) + "\n"
    for case in results[0]["relearned"]:
        cells = []
        for count in counts:
            losses = [result["relearned"][case][count]["validation_loss"] for result in results]
            cells.append(f"{sum(losses) / len(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})")
        out += f"| {case} | " + " | ".join(cells) + " |\n"
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    choices = parser.parse_args()
    results = [run(seed) for seed in range(choices.seed, choices.seed + choices.seeds)]
    sys.stdout.write(table(results))
    if choices.json is not None:
        choices.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
