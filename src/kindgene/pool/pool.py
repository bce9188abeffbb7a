"""`Pool`: a learngene and its tailors, in memory and on disk.

A pool is what a decomposed model is: everything shared (canonical) and one tailor a class. From it come static models
for a deployment (`recombine`), a trainable model (`to_model`), and a model with a frozen learngene and new tailors for
new classes (`transfer`), whose tailors are then added as files (`add`). No training code lives here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from kindgene.core.components import fill_random
from kindgene.core.config import Rank, resolve_rank
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State, canonical_pieces, canonical_state, split
from kindgene.pool import folder
from kindgene.pool.backbones import describe_backbone
from kindgene.pool.config import ClassEntry, PoolConfig, Ranks, check_class_names, compact_ranks, state_id
from kindgene.pool.recombine import assemble, merge, truncated
from kindgene.pool.tailor import Tailor


class Pool:
    """Make one with `model.decompose()` or `Pool.from_pretrained(folder)`.

    `classes` are the names of all classes, `loaded` those whose tailors are in memory; `path` is the folder the pool
    was read from or saved to (None: memory only). `add` and `remove` write to that folder too.
    """

    def __init__(
        self, config: PoolConfig, learngene: State, tailors: Sequence[Tailor], path: Path | None = None
    ) -> None:
        self.config, self.learngene, self.tailors, self.path = config, learngene, list(tailors), path

    @classmethod
    def from_model(
        cls,
        model: Decomposable,
        class_names: Sequence[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Pool:
        """Takes a model apart: canonical form of learngene and tailors (float64 inside, the model's dtype outside).

        `class_names` default to the model's own. The model is not changed.
        """
        given = class_names if class_names is not None else model.class_names
        if given is None:
            raise ValueError("this model's classes have no names yet: pass class_names=[...]")
        names = check_class_names(given)
        if len(names) != model.num_classes:
            raise ValueError(f"{len(names)} class names for a model of {model.num_classes} classes")
        ranks: Ranks = {name: layer.ranks for name, layer in model.layers.items()}
        pieces = canonical_pieces(split(model), ranks, _tailor_ranks(model))
        _check_finite(pieces.learngene)
        kind, backbone_config = describe_backbone(model.module)
        tailors = _tailors_of(model, names, pieces.tailors, pieces.labels)
        entry_ranks = compact_ranks(_tailor_ranks(model))
        config = PoolConfig(
            backbone=kind,
            backbone_config=backbone_config,
            ranks=ranks,
            label_tables=tuple(model.label_tables),
            label_argument=model.label_argument,
            learngene_id=state_id(pieces.learngene),
            learngene_sha256="",
            weights=model.weights,
            classes={
                name: ClassEntry("", "", entry_ranks, tailor.classes.index(name))
                for name in names
                for tailor in tailors
                if name in tailor.classes
            },
            provenance=dict(provenance or {}),
        )
        return cls(config, pieces.learngene, tailors)

    @classmethod
    def from_pretrained(cls, path: str | Path, classes: Sequence[str] | None = None) -> Pool:
        """Opens a pool folder: config and learngene, and the tailors of `classes` (None: all), every file's hash checked.

        Raises ValueError for a folder that is not a pool, unknown classes, and any file that is missing, damaged,
        foreign or of another learngene.
        """
        root = Path(path)
        config = folder.read_config(root)
        learngene = folder.read_learngene(root, config)
        wanted = tuple(config.classes) if classes is None else _known(config, classes)
        return cls(config, learngene, folder.read_tailors(root, config, wanted, learngene), root)

    def save_pretrained(self, path: str | Path) -> Path:
        """Writes the pool to a new (or empty) folder: tailors, learngene, model card, and config.json last.

        Raises ValueError if the folder holds anything, or if not all classes are loaded.
        """
        self._need(self.classes)
        self.config = folder.write_pool(Path(path), self.config, self.learngene, self.tailors)
        self.path = Path(path)
        return self.path

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.config.classes)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Classes in memory, in the pool's order."""
        have = {name for tailor in self.tailors for name in tailor.classes}
        return tuple(name for name in self.config.classes if name in have)

    def recombine(
        self,
        classes: Sequence[str],
        *,
        max_parameters: int | None = None,
        form: Literal["auto", "gated", "merged"] = "auto",
        backbone: nn.Module | None = None,
    ) -> nn.Module:
        """A static model for exactly these classes; their ids are their positions in `classes`.

        form: "gated" (and "auto"): learngene and a table of the chosen tailors, any number of classes, guidance;
        "merged": one class folded into plain linear layers, without a null class. Under `max_parameters` the components
        whose loss costs least relative energy a number are dropped, per matrix. Raises ValueError for unknown, repeated
        or no classes and for an impossible budget, naming the smallest possible one.
        """
        names = _known(self.config, classes)
        self._need(names)
        if form not in ("auto", "gated", "merged"):
            raise ValueError(f"form must be 'auto', 'gated' or 'merged', got {form!r}")
        if max_parameters is not None and (isinstance(max_parameters, bool) or max_parameters < 1):
            raise ValueError(f"max_parameters must be at least 1, got {max_parameters}")
        if form == "merged":
            if len(names) != 1:
                raise ValueError(f"form='merged' holds one class; {len(names)} were asked for: use form='gated'")
            tailor = next(tailor for tailor in self.tailors if names[0] in tailor.classes)
            model = merge(self.config, self.learngene, tailor, names[0], max_parameters, backbone)
        else:
            learngene, tailors, ranks, tailor_ranks = truncated(
                self.config, self.learngene, self.tailors, names, max_parameters
            )
            model = assemble(self.config, learngene, tailors, names, ranks, tailor_ranks, backbone)
        return model.requires_grad_(False).eval()

    def to_model(self, backbone: nn.Module | None = None) -> Decomposable:
        """A trainable model of all loaded classes."""
        names = self.loaded
        self._need(names or self.classes)
        learngene, tailors, ranks, tailor_ranks = truncated(self.config, self.learngene, self.tailors, names, None)
        return assemble(self.config, learngene, tailors, names, ranks, tailor_ranks, backbone)

    def transfer(
        self,
        class_names: Sequence[str],
        tailor_rank: Rank | None = None,
        *,
        init: Literal["zero", "random"] = "zero",
        generator: torch.Generator | None = None,
        backbone: nn.Module | None = None,
    ) -> Decomposable:
        """A model of new classes: the learngene frozen (null row too), new tailors and label rows trainable.

        New tailors start (ours) so that their matrices are zero (init="zero": u zero, v random) or random with a tenth
        of the learngene's entry variance (init="random"); label rows start at the null row, so that with "zero" every
        new class begins as the unconditional model. `tailor_rank` defaults to the rank of the pool's first class.
        No tailor of the pool is read.
        """
        names = check_class_names(class_names)
        if init not in ("zero", "random"):
            raise ValueError(f"init must be 'zero' or 'random', got {init!r}")
        first = next(iter(self.config.classes), None)
        if tailor_rank is None and first is None:
            raise ValueError("this pool has no class to take a tailor rank from: give tailor_rank")
        default = self.config.tailor_ranks_of(first) if first is not None else {}
        ranks = {t: default[t] if tailor_rank is None else self._new_rank(t, tailor_rank) for t in self.config.ranks}
        fresh = [Tailor((name,), self._empty_tailor(ranks), self._null_rows()) for name in names]
        model = assemble(self.config, self.learngene, fresh, names, self.config.ranks, ranks, backbone)
        self._start_tailors(model, init, generator)
        model.weights = "raw"
        return model.freeze_learngene()

    def add(self, model: Decomposable, class_names: Sequence[str] | None = None) -> None:
        """Adds a transferred model's classes: its tailors in canonical form, as new files. Nothing else changes.

        Raises ValueError unless the model's learngene is this pool's, bit for bit, and its class names are new here.
        """
        given = class_names if class_names is not None else model.class_names
        if given is None:
            raise ValueError("the model's classes have no names: pass class_names=[...]")
        names = check_class_names(given)
        if len(names) != model.num_classes:
            raise ValueError(f"{len(names)} class names for a model of {model.num_classes} classes")
        pieces = split(model)
        if state_id(pieces.learngene) != self.config.learngene_id:
            raise ValueError(
                "this model's learngene is not the pool's: tailors work with the learngene they were trained with, and it must "
                "stay frozen (train a model that pool.transfer returned)"
            )
        ranks = _tailor_ranks(model)
        tailors = [canonical_state(tailor, ranks) for tailor in pieces.tailors]
        for tailor in tailors:
            _check_finite(tailor)
        added = _tailors_of(model, names, tailors, pieces.labels)
        entries = {
            name: ClassEntry("", "", compact_ranks(ranks), tailor.classes.index(name))
            for tailor in added
            for name in tailor.classes
        }

        def change(config: PoolConfig) -> PoolConfig:
            taken = [name for name in names if name in config.classes]
            if taken:
                raise ValueError(
                    f"the pool has {', '.join(map(repr, taken))} already; remove first, or use other names"
                )
            return config.with_classes({**config.classes, **{name: entries[name] for name in names}})

        self._update(change, added)

    def remove(self, classes: Sequence[str]) -> None:
        """Removes classes with their tailors' files. The learngene, which was trained on them too, does not change.

        A tailor that other classes share stays, for them, without the removed label rows.
        """
        names = _known(self.config, classes)
        files = {self.config.classes[name].file for name in names}
        touched = [t for t in self._with_all_of(files) if set(t.classes) & set(names)]
        kept = [tailor.without(names) for tailor in touched if not set(tailor.classes) <= set(names)]

        def change(config: PoolConfig) -> PoolConfig:
            _known(config, names)
            left = {name: entry for name, entry in config.classes.items() if name not in names}
            for tailor in kept:
                for row, name in enumerate(tailor.classes):
                    left[name] = ClassEntry("", "", left[name].tailor_ranks, row)
            return config.with_classes(left)

        self.tailors = [tailor for tailor in self.tailors if not set(tailor.classes) & set(names)]
        self._update(change, kept)

    def _update(self, change: folder.Change, new: Sequence[Tailor]) -> None:
        """Applies a change of classes to the folder, if there is one, and to memory."""
        if self.path is None:
            self.config = change(self.config)
        else:
            self.config = folder.update_pool(self.path, self.config, change, new)
        self.tailors = [*self.tailors, *new]

    def _with_all_of(self, files: set[str]) -> list[Tailor]:
        """Tailors of these files: those in memory, the others read."""
        if self.path is None:
            return self.tailors
        names = [name for name, entry in self.config.classes.items() if entry.file in files]
        missing = [name for name in names if name not in self.loaded]
        return [*self.tailors, *folder.read_tailors(self.path, self.config, missing, self.learngene)]

    def _need(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self.loaded]
        if missing:
            raise ValueError(
                f"not loaded: {', '.join(map(repr, missing[:5]))}; open the pool with these classes "
                "(Pool.from_pretrained(path, classes=[...]), or without classes= for all)"
            )

    def _new_rank(self, target: str, rank: Rank) -> tuple[int, ...]:
        u, v = self.learngene[f"{target}.u"], self.learngene[f"{target}.v"]
        parts = len(self.config.ranks[target])
        return resolve_rank(rank, parts, min(u.shape[1], v.shape[1]), what="tailor_rank", name=target)

    def _empty_tailor(self, ranks: Ranks) -> State:
        state: State = {}
        for target, parts in ranks.items():
            total = sum(parts)
            for factor in "uv":
                like = self.learngene[f"{target}.{factor}"]
                state[f"{target}.{factor}"] = like.new_zeros(total, like.shape[1])
            state[f"{target}.s"] = like.new_zeros(total)
        return state

    def _null_rows(self) -> State:
        return {table: self.learngene[f"{table}.null_row"].unsqueeze(0).clone() for table in self.config.label_tables}

    def _start_tailors(self, model: Decomposable, init: str, generator: torch.Generator | None) -> None:
        table = model.bank.tailors
        with torch.no_grad():
            for layer in model.layers.values():
                for learngene, tailor in zip(layer.learngene(), layer.tailor(table.views(table.rows)), strict=True):
                    entries = learngene.u.shape[1] * learngene.v.shape[1]
                    energy = float(learngene.s.double().square().sum()) / entries  # canonical: |W|^2 / (I O)
                    fill_random(tailor, 0.1 * energy if init == "random" else 0.0, tailor.rank, generator)


def _known(config: PoolConfig, classes: Sequence[str]) -> tuple[str, ...]:
    """Checked class names that the pool has. Raises ValueError suggesting the nearest names for one it has not."""
    names = check_class_names(classes)
    for name in names:
        if name not in config.classes:
            near = difflib.get_close_matches(name, config.classes, n=3) or list(config.classes)[:10]
            raise ValueError(f"no class {name!r} in this pool; nearest: {', '.join(map(repr, near)) or 'it is empty'}")
    return names


def _tailor_ranks(model: Decomposable) -> Ranks:
    return {name: layer.tailor_ranks for name, layer in model.layers.items()}


def _tailors_of(
    model: Decomposable, names: Sequence[str], components: Sequence[State], labels: Sequence[State]
) -> list[Tailor]:
    """One `Tailor` for each row of the bank, with the label rows of all classes that share it."""
    tailors = []
    gate_map = cast("list[int]", model.bank.tailor_of.tolist())
    for index, state in enumerate(components):
        members = [label for label, row in enumerate(gate_map) if row == index]
        rows = {table: torch.stack([labels[label][table] for label in members]) for table in model.label_tables}
        tailors.append(Tailor(tuple(names[label] for label in members), state, rows))
    return tailors


def _check_finite(state: State) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"{key} has values that are not finite: the model diverged; decompose an earlier checkpoint"
            )
