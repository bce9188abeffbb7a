"""From a plain module to a decomposable one: find the targets, check them, put gated layers in their place.

`make_decomposable` consumes the dense module: its target ``nn.Linear`` modules are replaced in place by `KindLinear`,
its label tables by `ClassRows`; every other parameter stays as it is and becomes part of the learngene.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from kindgene.core.bank import RowTable, TailorBank
from kindgene.core.components import fill_random, from_matrix
from kindgene.core.config import KindConfig, Rank, resolve_rank
from kindgene.core.decomposable import Decomposable
from kindgene.core.gate import Gate
from kindgene.core.linear import ClassRows, KindLinear
from kindgene.core.targets import BACKBONES, TargetNames


@dataclass(frozen=True)
class Target:
    """One module to decompose: its name and the ranks of each of its parts."""

    name: str
    ranks: tuple[int, ...]
    tailor_ranks: tuple[int, ...]


def make_decomposable(
    module: nn.Module,
    config: KindConfig,
    generator: torch.Generator | None = None,
    *,
    tailors: Tensor | None = None,
    filled: bool = True,
) -> Decomposable:
    """Makes `module` decomposable: every target becomes learngene components plus a tailor a class, behind one gate.

    The module is consumed: use the returned model in its place. Random components are drawn with `generator` (torch's
    default one if None). `tailors` are the ids, ascending, of those that this process holds, one of several that train
    tailors of their own (`training/placement.py`): it never has memory for the others. Not `filled`, components and
    label rows stay at zero: for whoever loads others at once.

    Raises ValueError, naming the layer, for a pattern that matches nothing, a target that is not exactly ``nn.Linear``,
    tied weights, impossible ranks, and loaded weights that would be thrown away unasked; the module is as it was then.
    """
    names = _names(module, config)
    targets = find_targets(module, config, names)
    tables = _label_tables(module, config, names)
    init = config.init or _default_init(module)
    label_argument = names.label_argument if config.label_argument is None else config.label_argument
    _check_label_argument(module, label_argument)
    gate = Gate()

    layers = {target.name: _gated_layer(module, target, gate) for target in targets}
    rows = {name: _gated_table(module, name, gate) for name in tables}
    some = next(iter(layers.values()))
    bank = TailorBank(
        config.tailor_of,
        {piece: shape for layer in layers.values() for piece, shape in layer.piece_shapes.items()},
        {piece: shape for table in rows.values() for piece, shape in table.piece_shapes.items()},
        dtype=some.v.dtype,
        held=tailors,
    ).to(some.v.device)
    with torch.no_grad():
        for name, layer in layers.items() if filled else ():
            _fill(layer, bank, module.get_parameter(f"{name}.weight"), init, generator)
        for name, table in rows.items() if filled else ():
            _fill_table(table, bank, module.get_parameter(f"{name}.weight"), name)

    # What could fail has not: the module is changed from here on.
    for name, new in {**layers, **rows}.items():
        module.set_submodule(name, new)
    for name in rows:
        _never_drop_labels(module.get_submodule(name.rpartition(".")[0]))
    return Decomposable(module, bank, gate, config, label_argument)


def find_targets(module: nn.Module, config: KindConfig, names: TargetNames | None = None) -> list[Target]:
    """The modules that the config's patterns name, in the module's own order, with their ranks."""
    names = _names(module, config) if names is None else names
    modules = _inner_modules(module)
    patterns = [*names.paper, *names.adaln]
    chosen = _match(patterns, modules, what="target pattern", offer=_linear_names(module))
    fused = _parts(chosen, names.fused, modules)
    _check_linear(module, chosen, modules)
    if config.fused is not None:
        _used_once(config.fused, chosen, "fused")
    _used_once(config.learngene_rank, chosen, "learngene_rank")
    _used_once(config.tailor_rank, chosen, "tailor_rank")
    return [
        Target(
            name,
            _rank(config.learngene_rank, name, fused.get(name, 1), modules[name], "learngene_rank"),
            _rank(config.tailor_rank, name, fused.get(name, 1), modules[name], "tailor_rank"),
        )
        for name in chosen
    ]


def _names(module: nn.Module, config: KindConfig) -> TargetNames:
    """The backbone's own names, overridden by what the config says."""
    kind = type(module).__name__
    known = BACKBONES.get(kind)
    if isinstance(config.targets, str):
        if config.targets not in ("paper", "paper+adaln"):
            raise ValueError(f"targets must be 'paper', 'paper+adaln' or a list of patterns, got {config.targets!r}")
        if known is None:
            raise ValueError(
                f"targets={config.targets!r} has no meaning yet for {kind} (known: {', '.join(BACKBONES)}); "
                f"give a list of patterns. Linear modules: {_listing(_linear_names(module))}"
            )
        if config.targets == "paper+adaln" and not known.adaln:
            raise ValueError(f"{kind} has no adaLN modulation: use targets='paper'")
        paper, adaln = known.paper, known.adaln if config.targets == "paper+adaln" else ()
    else:
        paper, adaln = tuple(config.targets), ()
    fallback = known or TargetNames(paper=())
    return TargetNames(
        paper=paper,
        adaln=adaln,
        fused=fallback.fused if config.fused is None else config.fused,
        class_rows=fallback.class_rows if config.class_rows is None else tuple(config.class_rows),
        label_argument=fallback.label_argument,
    )


def _match(patterns: Sequence[str], modules: Mapping[str, nn.Module], *, what: str, offer: list[str]) -> list[str]:
    """Module names that match any pattern, in the module's order; every pattern must match something."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(f"{what} {pattern!r} matches nothing; there is: {_listing(offer)}")
    return [name for name in modules if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _inner_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Everything but the module itself, which cannot be replaced within itself."""
    return {name: child for name, child in module.named_modules() if child is not module}


def _linear_names(module: nn.Module) -> list[str]:
    return [name for name, child in _inner_modules(module).items() if type(child) is nn.Linear]


def _listing(names: Sequence[str], most: int = 40) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _parts(chosen: Sequence[str], fused: Mapping[str, int], modules: Mapping[str, nn.Module]) -> dict[str, int]:
    parts = {}
    for name in chosen:
        for pattern, count in fused.items():
            if fnmatchcase(name, pattern):
                features = getattr(modules[name], "out_features", count)
                if count < 1 or features % count:
                    raise ValueError(f"{name} has {features} outputs, which do not divide into {count} fused parts")
                parts[name] = count
    return parts


def _check_linear(module: nn.Module, chosen: Sequence[str], modules: Mapping[str, nn.Module]) -> None:
    owners = _owners(module)
    for name in chosen:
        child = modules[name]
        if type(child) is not nn.Linear:
            raise ValueError(
                f"target {name} is a {type(child).__name__}; only modules of exactly nn.Linear can be targets"
            )
        _check_weight("target", name, child.weight, owners)


def _owners(module: nn.Module) -> dict[int, list[str]]:
    """All names of every parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return owners


def _check_weight(what: str, name: str, weight: Tensor, owners: Mapping[int, Sequence[str]]) -> None:
    """Refuses a weight that is computed from others, and one that others have too."""
    if id(weight) not in owners:
        raise ValueError(
            f"{what} {name} computes its weight from others (weight_norm?); make it a plain parameter first"
        )
    shared = [owner for owner in owners[id(weight)] if owner != f"{name}.weight"]
    if shared:
        raise ValueError(f"{what} {name} shares its weight with {', '.join(shared)}: tied weights cannot be decomposed")


def _used_once(setting: Rank | Mapping[str, Rank], chosen: Sequence[str], what: str) -> None:
    if isinstance(setting, Mapping):
        for pattern in setting:
            if not any(fnmatchcase(name, pattern) for name in chosen):
                raise ValueError(f"{what} pattern {pattern!r} matches no target; targets: {_listing(chosen)}")


def _rank(rank: Rank | Mapping[str, Rank], name: str, parts: int, linear: nn.Module, what: str) -> tuple[int, ...]:
    assert isinstance(linear, nn.Linear)
    width = min(linear.in_features, linear.out_features // parts)
    if isinstance(rank, Mapping):
        if name in rank:
            return resolve_rank(rank[name], parts, width, what=what, name=name)
        matching = [value for pattern, value in rank.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"{what} has no pattern for target {name}; patterns: {_listing(list(rank))}")
        rank = matching[-1]
    return resolve_rank(rank, parts, width, what=what, name=name)


def _label_tables(module: nn.Module, config: KindConfig, names: TargetNames) -> list[str]:
    """Label tables to put behind the gate: nn.Embedding with one row a class, or one more for null (the last)."""
    modules = _inner_modules(module)
    owners = _owners(module)
    embeddings = [name for name, child in modules.items() if type(child) is nn.Embedding]
    found = _match(names.class_rows, modules, what="class_rows pattern", offer=embeddings)
    for name in found:
        table = modules[name]
        if type(table) is not nn.Embedding:
            raise ValueError(f"class_rows {name} is a {type(table).__name__}; only nn.Embedding can hold label rows")
        if table.num_embeddings not in (config.num_classes, config.num_classes + 1):
            raise ValueError(
                f"label table {name} has {table.num_embeddings} rows; {config.num_classes} classes need "
                f"{config.num_classes}, or {config.num_classes + 1} with the null row last"
            )
        _check_weight("label table", name, table.weight, owners)
    return found


def _default_init(module: nn.Module) -> str:
    """ "random" for a model that says it is fresh (our DiT); weights are never thrown away without being told to."""
    if getattr(module, "weights_loaded", True):
        raise ValueError(
            "this model's weights were loaded, or it cannot tell: say init='svd' to keep them (the learngene takes "
            "their best part, tailors start at zero), or init='random' to replace them by fresh components"
        )
    return "random"


def _gated_layer(module: nn.Module, target: Target, gate: Gate) -> KindLinear:
    """What stands in a target's place: its bias, components that are still zero."""
    old = module.get_submodule(target.name)
    assert isinstance(old, nn.Linear)
    new = KindLinear(
        old.in_features,
        old.out_features,
        target.ranks,
        target.tailor_ranks,
        bias=old.bias is not None,
        gate=gate,
        name=target.name,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    if old.bias is not None:
        new.bias = old.bias
    new.train(old.training)
    return new


def _gated_table(module: nn.Module, name: str, gate: Gate) -> ClassRows:
    """What stands in a label table's place."""
    old = module.get_submodule(name)
    assert isinstance(old, nn.Embedding)
    new = ClassRows(old.embedding_dim, gate=gate, name=name, dtype=old.weight.dtype).to(old.weight.device)
    new.train(old.training)
    return new


def _never_drop_labels(embedder: nn.Module) -> None:
    """Sets the label dropout of diffusers' embedders to 0: labels are dropped by the training loss alone."""
    if isinstance(getattr(embedder, "dropout_prob", None), float):
        embedder.dropout_prob = 0.0  # type: ignore[assignment]


def _fill(layer: KindLinear, bank: TailorBank, weight_OI: Tensor, init: str, generator: torch.Generator | None) -> None:
    """Gives one layer's learngene and tailors their first values."""
    if not torch.isfinite(weight_OI).all():
        raise ValueError(f"the weight of target {layer.name} is not finite everywhere")
    weights = weight_OI.chunk(layer.parts)
    with _all_rows(bank.tailors, layer.piece_shapes) as pieces:
        for learngene, tailor, weight in zip(layer.learngene(), layer.tailor(pieces), weights, strict=True):
            if init == "svd":
                for factor, value in zip(learngene, from_matrix(weight, learngene.rank), strict=True):
                    factor.copy_(value)
                fill_random(tailor, 0.0, 1, generator)
            else:
                active = learngene.rank + tailor.rank
                variance = float(weight.double().pow(2).mean())
                fill_random(learngene, variance, active, generator)
                fill_random(tailor, variance, active, generator)


@contextmanager
def _all_rows(table: RowTable, pieces: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, Tensor]]:
    """These pieces of every row of a table, to be filled: of a table that holds some rows, the others are let go then.

    So a row's first values do not depend on who holds it. Rows stand apart in memory as in the whole table, because
    what torch draws for a tensor depends on whether it is contiguous.
    """
    mine = table.views(table.rows)
    if table.held is None:
        yield mine
        return
    whole = {}
    for name, shape in pieces.items():
        apart = table.rows.new_zeros(table.count, math.prod(shape) + 1)
        whole[name] = apart[:, :-1].unflatten(1, shape)
    yield whole
    for name, values in whole.items():
        mine[name].copy_(values[table.held])


def _fill_table(table: ClassRows, bank: TailorBank, weight: Tensor, name: str) -> None:
    """Label rows as the dense table had them; the null row its last one (zeros where it had none)."""
    held = slice(bank.num_classes) if bank.labels.held is None else bank.labels.held
    bank.labels.views(bank.labels.rows)[name].copy_(weight[held])
    if weight.shape[0] > bank.num_classes:
        table.null_row.copy_(weight[-1])


def _check_label_argument(module: nn.Module, label_argument: str) -> None:
    parameters = inspect.signature(module.forward).parameters
    if label_argument and label_argument not in parameters:
        raise ValueError(
            f"{type(module).__name__}.forward has no argument {label_argument!r} (it has {', '.join(parameters)}); "
            'give label_argument="" and open the gate by hand: `with model.gate(y): ...`'
        )
