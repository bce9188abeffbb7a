"""Samples in, block by block; figures out. What the command line and the studies measure with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kindgene.evaluation.classifier import Judge, Recognised, tally
from kindgene.evaluation.features import Extractor, to_pixels
from kindgene.evaluation.meter import Meter
from kindgene.evaluation.metrics import (
    OF_FEATURES,
    check_extractor,
    check_metrics,
    check_reference,
    figures,
    notes,
    what_to_keep,
)
from kindgene.evaluation.reference import Reference
from kindgene.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Evaluated:
    """Figures by metric, in the order of `kindgene.evaluation.metrics`; `recognised` where there was a judge.

    `notes` are sentences that a reader of the figures should know.
    """

    figures: dict[str, float]
    recognised: Recognised | None
    notes: list[str]


def evaluate_samples(
    blocks: Iterable[tuple[Tensor, range]],
    asked: Sequence[str],
    wanted: Sequence[str],
    *,
    extractor: Extractor | None = None,
    reference: Reference | None = None,
    judge: Judge | None = None,
    batch_size: int = 64,
    processes: Processes = ALONE,
) -> Evaluated:
    """The metrics `wanted` of samples, of which number i was asked to be of the class `asked[i]`.

    `blocks` are (images [N, C, H, W] in [-1, 1], their numbers), as `kindgene.evaluation.drawing.drawn` gives them;
    each is forgotten when it is measured. Metrics of features need an extractor, and all but the inception score a
    reference made with it; ``recognised`` needs a judge; ``loss`` is not of samples. Raises ValueError where one lacks
    what it needs.

    Of several `processes`, each of which has blocks of its own, all have the figures of all samples in the end.
    """
    check_metrics(wanted)
    if "loss" in wanted:
        raise ValueError("loss is a model's, not its samples': see kindgene.evaluation.denoising.validation_loss")
    _check_given(wanted, extractor, judge)
    meter = None
    if extractor is not None and any(name in wanted for name in OF_FEATURES):
        check_extractor(wanted, extractor)
        check_reference(wanted, reference)
        meter = Meter(extractor, len(asked), what_to_keep(wanted, len(asked)))
    predicted_N = torch.full((len(asked),), -1)  # by no process yet
    for images, numbers in blocks:
        if meter is not None:
            for part, part_numbers in zip(
                to_pixels(images).split(batch_size), torch.tensor(numbers).split(batch_size), strict=True
            ):
                meter.update(part, part_numbers)
        if judge is not None and "recognised" in wanted:
            predicted_N[numbers.start : numbers.stop] = judge.predict(images)
    if processes.size > 1:
        meter = None if meter is None else meter.gathered(processes)
        predicted_N = torch.stack(processes.gather(predicted_N)).amax(0)
    found = {} if meter is None else figures(wanted, meter, reference)
    told = [] if meter is None else notes(wanted, meter, reference)
    seen = tally(judge, predicted_N, asked) if judge is not None and "recognised" in wanted else None
    return Evaluated(found, seen, told)


def _check_given(wanted: Collection[str], extractor: Extractor | None, judge: Judge | None) -> None:
    needing = [name for name in wanted if name in OF_FEATURES]
    if needing and extractor is None:
        raise ValueError(f"{needing[0]} needs an extractor")
    if "recognised" in wanted and judge is None:
        raise ValueError("recognised needs a classifier")
