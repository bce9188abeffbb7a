"""From a pool's pieces and a budget to a plan, and from a plan to a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kindgene.core.components import Components
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State, with_components
from kindgene.pool.backbones import cast, example_inputs, floating_dtype
from kindgene.pool.budget import Budget
from kindgene.pool.calibrate import Batch, output_importance
from kindgene.pool.classes import Ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.cost import CostModel
from kindgene.pool.latency import fit_latency, measure_latency
from kindgene.pool.parts import Part, gated_parts, merged_parts
from kindgene.pool.plan import FORMS, Form, Plan, check_dtype
from kindgene.pool.planner import Importance, energy, make_plan
from kindgene.pool.quantize import check_int8, dtype_error, quantize_int8, random_batch
from kindgene.pool.recombine import assemble, cut_to, gated_model, plain_model, whole_model
from kindgene.pool.tailor import Tailor
from kindgene.pool.tensors import state_id

ERROR_BATCHES = 8
"""Calibration batches that a smaller dtype's error is measured on."""


@dataclass(frozen=True, eq=False)
class PoolPieces:
    """What a plan is made of and carried out with: the tailors are those of the chosen classes, in their order."""

    config: PoolConfig
    learngene: State
    tailors: list[Tailor]

    def parts(self, form: Form) -> list[Part]:
        if form == "gated":
            return gated_parts(self.config, self.learngene, self.tailors)
        return merged_parts(self.config, self.learngene, self.tailors[0])


def plan_for(
    pieces: PoolPieces,
    classes: Sequence[str],
    form: str,
    dtype: str | None,
    budget: Budget,
    device: str = "cpu",
    calibration: Iterable[Batch] | None = None,
    backbone: nn.Module | None = None,
) -> Plan:
    """The plan for these classes within the budget (arguments as in `Pool.plan`)."""
    chosen_form = _checked_form(form, classes)
    if chosen_form == "dense" and budget.limits():
        raise ValueError("form='dense' has one size, so no budget can be met by it; use form='merged'")
    own = str(floating_dtype(pieces.learngene)).removeprefix("torch.")
    name = own if dtype is None else dtype
    check_dtype(chosen_form, name)
    gated, int8 = chosen_form == "gated", name == "int8"
    if int8:
        check_int8(floating_dtype(pieces.learngene))
    parts = pieces.parts(chosen_form)
    itemsize = getattr(torch, own if int8 else name).itemsize
    costs = CostModel(pieces.config, pieces.learngene, parts, len(classes), gated, itemsize, int8, backbone)
    importance, batches = energy(parts), None if calibration is None else list(calibration)
    if batches is not None:
        importance = _measured(pieces, classes, parts, gated, batches, backbone)

    def within(limits: Budget) -> Plan:
        return make_plan(costs, classes, chosen_form, name, limits, importance)

    def latency(plan: Plan) -> float:
        model = build(pieces, plan, backbone)
        inputs = example_inputs(pieces.config.backbone, getattr(model, "module", model))
        return measure_latency(model, inputs, device)

    if budget.max_latency_ms is None:
        found = within(budget)
    else:
        found, milliseconds = fit_latency(within, latency, budget)
        found = replace(found, latency_ms=milliseconds, device=device, budget=budget.limits())
    if name == own or not costs.counts_macs:
        return found
    return replace(found, error=_error_of(pieces, found, own, batches, backbone))


def _error_of(
    pieces: PoolPieces, plan: Plan, own: str, batches: Sequence[Batch] | None, backbone: nn.Module | None
) -> float:
    """What the plan's dtype does to the output: on calibration batches, else on random images (see quantize.py).

    Raises ValueError where the output overflows.
    """
    model, small = build(pieces, replace(plan, dtype=own), backbone), build(pieces, plan, backbone)
    random = [random_batch(pieces.config.backbone, model, len(plan.classes))]
    error = dtype_error(model, small, random if batches is None else batches[:ERROR_BATCHES])
    if not math.isfinite(error):
        raise ValueError(
            f"this model's output is not finite in {plan.dtype}: use another dtype (bfloat16 reaches further)"
        )
    return error


def build(pieces: PoolPieces, plan: Plan, backbone: nn.Module | None = None) -> nn.Module:
    """The static model that a plan describes, in eval mode, nothing trainable."""
    model: nn.Module
    if plan.form == "gated":
        model = gated_model(pieces.config, pieces.learngene, pieces.tailors, plan, backbone)
    else:
        parts = pieces.parts(plan.form)
        model = plain_model(pieces.config, pieces.learngene, pieces.tailors[0], parts, plan, backbone)
    model = model.requires_grad_(False).eval()
    if plan.dtype == "int8":
        return quantize_int8(model, plan.ranks.keys())
    return cast(model, getattr(torch, plan.dtype))


def cut_pool(pieces: PoolPieces, plan: Plan) -> tuple[PoolConfig, State, list[Tailor]]:
    """Config, learngene and tailors of a pool of just what a gated plan keeps."""
    if plan.form != "gated":
        raise ValueError(f"a {plan.form} model is no pool any more; make a plan with form='gated'")
    learngene, cut, ranks = cut_to(pieces.config, pieces.learngene, pieces.tailors, plan)
    dtype = getattr(torch, plan.dtype)
    learngene = _cast_state(learngene, dtype)
    wanted = set(plan.classes)
    tailors = []
    for tailor in cut:
        tailors.append(tailor.only(wanted).to(dtype))
    tailor_ranks: Ranks = {target: tuple(parts) for target, parts in plan.tailor_ranks.items()}
    entries = {name: entry for tailor in tailors for name, entry in tailor.entries(tailor_ranks).items()}
    config = replace(
        pieces.config,
        ranks=ranks,
        learngene_id=pieces.config.learngene_id if ranks == pieces.config.ranks else state_id(learngene),
        learngene_sha256="",
        classes={name: entries[name] for name in plan.classes},
        generation=0,
        provenance={**pieces.config.provenance, "cut from learngene": pieces.config.learngene_id},
    )
    return config, learngene, tailors


def _checked_form(form: str, classes: Sequence[str]) -> Form:
    if form not in ("auto", *FORMS):
        raise ValueError(f"form must be 'auto', 'gated', 'merged' or 'dense', got {form!r}")
    if form in ("merged", "dense") and len(classes) != 1:
        raise ValueError(f"form={form!r} holds one class; {len(classes)} were asked for: use form='gated'")
    return next((known for known in FORMS if known == form), "gated")


def _measured(
    pieces: PoolPieces,
    classes: Sequence[str],
    parts: Sequence[Part],
    gated: bool,
    calibration: Iterable[Batch],
    backbone: nn.Module | None,
) -> Importance:
    if gated:
        model = whole_model(pieces.config, pieces.learngene, pieces.tailors, classes, backbone)
    else:
        model = _merged_as_gated(pieces, classes, parts, backbone)
    return output_importance(model.eval(), calibration)


def _merged_as_gated(
    pieces: PoolPieces, classes: Sequence[str], parts: Sequence[Part], backbone: nn.Module | None
) -> Decomposable:
    """A class's merged matrices in the learngene's place, with a tailor of zeros: what a merged plan would cut."""
    dtype = floating_dtype(pieces.learngene)
    by_target: dict[str, list[Components]] = {}
    for part in parts:
        by_target.setdefault(part.target, []).append(part.shared.to(dtype))
    learngene, nothing = pieces.learngene, dict(pieces.tailors[0].components)
    ranks: Ranks = {target: tuple(part.rank for part in own) for target, own in by_target.items()}
    for target, own in by_target.items():
        learngene = with_components(learngene, target, own)
        for factor in "usv":
            key = f"{target}.{factor}"
            nothing[key] = _zeros_like_first(nothing[key], len(own))
    empty = Tailor(pieces.tailors[0].classes, nothing, pieces.tailors[0].rows)
    ones: Ranks = {target: (1,) * len(own) for target, own in by_target.items()}
    return assemble(pieces.config, learngene, [empty], classes, ranks, ones, backbone)


def _zeros_like_first(value: Tensor, count: int) -> Tensor:
    return value.new_zeros(count, *value.shape[1:])


def _cast_state(state: State, dtype: torch.dtype) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
