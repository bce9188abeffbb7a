"""`Pool`: a learngene and its tailors, in memory and on disk.

A pool is what a decomposed model is: everything shared (canonical) and one tailor a class. From it come static models
for a deployment (`recombine`), a trainable model (`to_model`), and a model with a frozen learngene and new tailors for
new classes (`transfer`), whose tailors are then added as files (`add`). No training code lives here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kindgene.core.config import Rank
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State
from kindgene.pool import deploy, folder, hub
from kindgene.pool.backbones import floating_dtype
from kindgene.pool.budget import Budget
from kindgene.pool.calibrate import Batch
from kindgene.pool.classes import ClassEntry
from kindgene.pool.config import PoolConfig
from kindgene.pool.decompose import decompose_model, new_tailors, tailor_ranks_of
from kindgene.pool.fresh import TailorStart, fresh_model
from kindgene.pool.names import check_class_names, known_names, quoted
from kindgene.pool.plan import Plan
from kindgene.pool.recombine import whole_model
from kindgene.pool.tailor import Tailor, tailors_by_class


class Pool:
    """Make one with `model.decompose()` or `Pool.from_pretrained(folder)`.

    `classes` are the names of all classes, `loaded` those whose tailors are in memory; `path` is the folder the pool
    was read from or saved to, to which `add`, `merge` and `remove` write too. It is None for a pool in memory only, as
    one from the Hub is.
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

        `class_names` default to the model's own. The model is not changed. Raises ValueError for classes without names
        and for weights that are not finite.
        """
        return cls(*decompose_model(model, class_names, provenance))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        classes: Sequence[str] | None = None,
        *,
        learngene_only: bool = False,
        revision: str | None = None,
        token: str | None = None,
    ) -> Pool:
        """Opens a pool: config, learngene, and the tailors of `classes` (None: all); hashes are checked.

        `path` is a folder, or, where there is none of that name, a Hub repository (``user/name``): then only these
        files are fetched, of `revision`, and the pool is in memory (`path` None): what is added or removed there
        reaches a folder by `save_pretrained`, the Hub by `push_to_hub`, and both need all classes loaded.
        `learngene_only` reads no tailor at all, which is enough for `transfer`. Raises ValueError for what is not a
        pool, unknown classes, and any file that is missing, damaged, foreign or of another learngene.
        """

        def wanted(config: PoolConfig) -> Sequence[str]:
            names = tuple(config.classes) if classes is None else known_names(config.classes, classes)
            return () if learngene_only else names

        root = Path(path)
        if not root.exists() and isinstance(path, str):
            hub.check_readable(path)
            return cls(*_read(hub.fetch(path, wanted, revision, token), wanted))
        if revision is not None:
            raise ValueError(f"a revision is of a Hub repository, and {path} is not one: leave it out")
        return cls(*_read(root, wanted), root)

    def save_pretrained(self, path: str | Path) -> Path:
        """Writes the pool to a new (or empty) folder: tailors, learngene, model card, and config.json last.

        Raises ValueError if the folder holds anything, or if not all classes are loaded.
        """
        self._need(self.classes)
        self.config = folder.write_pool(Path(path), self.config, self.learngene, self.tailors)
        self.path = Path(path)
        return self.path

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        commit_message: str = "Push a kindgene pool",
        token: str | None = None,
    ) -> str:
        """Makes a Hub repository's head what this pool is; returns the commit's address.

        A pool with a folder is pushed as it lies there (verified first; who wants to change it waits), one in memory as
        it would be saved. Removed tailors vanish from the head; the repository keeps its history, and them in it.
        `private` is of a repository that is made. Raises ValueError for a damaged pool, for one in memory whose classes
        are not all loaded, and where the Hub refuses or cannot be reached.
        """
        hub.check_id(repository)
        if self.path is not None:
            with folder.locked(self.path):
                folder.verify(self.path)
                return hub.push(self.path, repository, private=private, commit_message=commit_message, token=token)
        with tempfile.TemporaryDirectory() as place:
            root = Pool(self.config, self.learngene, self.tailors).save_pretrained(Path(place) / "pool")
            return hub.push(root, repository, private=private, commit_message=commit_message, token=token)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, in the pool's order."""
        return tuple(self.config.classes)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Classes whose tailors are in memory, in the pool's order."""
        have = tailors_by_class(self.tailors)
        return tuple(name for name in self.config.classes if name in have)

    def plan(
        self,
        classes: Sequence[str],
        *,
        max_parameters: int | None = None,
        max_macs: int | None = None,
        max_bytes: int | None = None,
        max_latency_ms: float | None = None,
        device: str = "cpu",
        form: Literal["auto", "gated", "merged", "dense"] = "auto",
        dtype: str | None = None,
        calibration: Iterable[Batch] | None = None,
        backbone: nn.Module | None = None,
    ) -> Plan:
        """What `recombine` would build for these classes within a budget, as a value: see there.

        `max_macs` are multiply-adds of one forward of one sample, `max_latency_ms` the median time of one, measured on
        `device`; guidance runs two. `calibration` are batches of the model's inputs, labels as positions in `classes`:
        with them, what a component is worth is measured on the model's output; without, it is its share of its matrix's
        energy. Of a `dtype` other than the pool's the error is measured: on the first of these, or on random images.
        """
        budget = Budget(max_parameters, max_macs, max_bytes, max_latency_ms)
        names = self._chosen(classes)
        return deploy.plan_for(self._pieces(names), names, form, dtype, budget, device, calibration, backbone)

    def recombine(
        self,
        classes: Sequence[str] | None = None,
        *,
        plan: Plan | None = None,
        max_parameters: int | None = None,
        max_macs: int | None = None,
        max_bytes: int | None = None,
        max_latency_ms: float | None = None,
        device: str = "cpu",
        form: Literal["auto", "gated", "merged", "dense"] = "auto",
        dtype: str | None = None,
        calibration: Iterable[Batch] | None = None,
        backbone: nn.Module | None = None,
    ) -> nn.Module:
        """A static model for exactly these classes; their ids are their positions in `classes`.

        form: "gated" (and "auto"): learngene and a table of the chosen tailors, any number of classes, guidance;
        "merged": one class folded into plain linear layers, each dense or a thin pair, whichever is cheaper, without a
        null class; "dense": the same with every layer dense, as other software knows it. `dtype` ("float32",
        "bfloat16", "float16", ...) is what it is kept in, by default the pool's; "int8", for plain models, is what the
        targets' weights are kept in (needs torchao; such a model is not saved, see `quantize.py`). Under a budget (see
        `plan`) the components whose loss costs least quality are dropped, per matrix.

        A `plan` made before says all of this instead. Raises ValueError for unknown, repeated or no classes, a plan of
        another pool, and an impossible budget, naming the smallest possible one.
        """
        if plan is None:
            if classes is None:
                raise ValueError("name the classes to recombine, or give a plan")
            plan = self.plan(
                classes,
                max_parameters=max_parameters,
                max_macs=max_macs,
                max_bytes=max_bytes,
                max_latency_ms=max_latency_ms,
                device=device,
                form=form,
                dtype=dtype,
                calibration=calibration,
                backbone=backbone,
            )
        elif classes is not None and tuple(classes) != plan.classes:
            raise ValueError(f"the plan is for {quoted(plan.classes)}; leave out classes, or make a plan for them")
        plan.check(self.config)
        return deploy.build(self._pieces(self._chosen(plan.classes)), plan, backbone)

    def subset(self, plan: Plan) -> Pool:
        """A pool of its own that holds just what a gated plan keeps: prefixes of a canonical form are canonical.

        Its learngene is another one (another id) unless the plan drops nothing of it, whatever the dtype; nothing is
        written.
        """
        plan.check(self.config)
        pieces = self._pieces(self._chosen(plan.classes))
        return Pool(*deploy.cut_pool(pieces, plan))

    def to_model(self, backbone: nn.Module | None = None) -> Decomposable:
        """A trainable model of all loaded classes. Raises ValueError where there is none."""
        if not self.classes:
            raise ValueError(
                "this pool has no classes left, so there is no model of them; pool.transfer makes new ones"
            )
        self._need(self.loaded or self.classes)
        return whole_model(self.config, self.learngene, self.tailors, self.loaded, backbone)

    def transfer(
        self,
        class_names: Sequence[str],
        tailor_rank: Rank | None = None,
        *,
        start: TailorStart = "random",
        generator: torch.Generator | None = None,
        backbone: nn.Module | None = None,
    ) -> Decomposable:
        """A model of new classes: the learngene frozen (null row too), new tailors and label rows trainable.

        `tailor_rank` defaults to that of the pool's first class. start: "random" gives each new tailor a tenth of the
        learngene's entry variance, drawn with `generator`; "zero" lets it start as the zero matrix that still learns.
        Label rows start at the null row, so with "zero" a new class begins as the unconditional model (both ours). No
        tailor of the pool is read. Raises ValueError for impossible names and ranks.
        """
        names = check_class_names(class_names)
        return fresh_model(self.config, self.learngene, names, tailor_rank, start, generator, backbone)

    def add(self, source: Decomposable | Pool, class_names: Sequence[str] | None = None) -> None:
        """Adds classes: a transferred model's tailors in canonical form, or another pool's (see `merge`), as new files.

        Nothing else changes, and what other processes add to the same folder meanwhile stays. Raises ValueError unless
        the learngene of `source` is this pool's, bit for bit, and its class names are new here.
        """
        if isinstance(source, Pool):
            self.merge(source, class_names)
            return
        added = new_tailors(source, class_names, self.learngene)
        ranks = tailor_ranks_of(source)
        self._add(added, {name: entry for tailor in added for name, entry in tailor.entries(ranks).items()})

    def merge(self, other: Pool, classes: Sequence[str] | None = None) -> None:
        """Adds the tailors of another pool that grew from the same learngene: of `classes`, or of all of its classes.

        Raises ValueError for another learngene, for names that are taken here, and for classes not loaded there.
        """
        if other.config.learngene_id != self.config.learngene_id:
            raise ValueError(
                f"these pools have different learngenes ({self.config.learngene_id[:16]} and "
                f"{other.config.learngene_id[:16]}): a tailor works only with the learngene it was trained with"
            )
        names = other.classes if classes is None else known_names(other.config.classes, classes)
        other._need(names)
        dtype = floating_dtype(self.learngene)
        tailors = [
            tailor.only(names).to(dtype) for tailor in other.tailors if any(name in names for name in tailor.classes)
        ]
        ranks = {tailor.classes: other.config.tailor_ranks_of(tailor.classes[0]) for tailor in tailors}
        self._add(tailors, {name: e for t in tailors for name, e in t.entries(ranks[t.classes]).items()})

    def verify(self) -> None:
        """Reads every file of the pool's folder and checks it: hashes, names, shapes, finite numbers.

        Raises ValueError naming the first that is wrong.
        """
        if self.path is None:
            raise ValueError("this pool is in memory only, there is no folder to verify: save_pretrained first")
        folder.verify(self.path)

    def _add(self, added: Sequence[Tailor], entries: Mapping[str, ClassEntry]) -> None:
        def change(config: PoolConfig) -> PoolConfig:
            taken = [name for name in entries if name in config.classes]
            if taken:
                raise ValueError(f"the pool has {quoted(taken)} already; remove first, or use other names")
            return config.with_classes({**config.classes, **entries})

        self._update(change, added)

    def remove(self, classes: Sequence[str]) -> None:
        """Removes classes with their tailors' files. The learngene, which was trained on them too, does not change.

        A tailor that other classes share stays, for them, without the removed label rows.
        """
        names = known_names(self.config.classes, classes)
        gone = set(names)
        kept = [tailor.without(names) for tailor in self._touched(gone) if not set(tailor.classes) <= gone]
        rows = {name: row for tailor in kept for row, name in enumerate(tailor.classes)}
        before = self.config

        def change(config: PoolConfig) -> PoolConfig:
            if self.path is not None:
                _check_same_files(before, config, names)
            left = {name: entry for name, entry in config.classes.items() if name not in gone}
            ranks = {name: left[name].tailor_ranks for name in rows}
            return config.with_classes({**left, **{n: ClassEntry("", "", ranks[n], row) for n, row in rows.items()}})

        self._update(change, kept)

    def _chosen(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Checked names of loaded classes."""
        names = known_names(self.config.classes, classes)
        self._need(names)
        return names

    def _pieces(self, names: Sequence[str]) -> deploy.PoolPieces:
        """Config, learngene and the tailors of these classes, in the order in which they are named."""
        tailor_of = tailors_by_class(self.tailors)
        return deploy.PoolPieces(self.config, self.learngene, list(dict.fromkeys(tailor_of[name] for name in names)))

    def _update(self, change: folder.Change, new: Sequence[Tailor]) -> None:
        """Applies a change of classes to the folder, if there is one, and to memory; memory follows the commit."""
        with nullcontext() if self.path is None else folder.locked(self.path):
            before = self.config
            if self.path is None:
                self.config = change(before)
            else:
                self.config = folder.commit(self.path, before, change, new)
            fresh = tailors_by_class(new)
            self.tailors = [
                tailor
                for tailor in self.tailors
                if all(name in self.config.classes and name not in fresh for name in tailor.classes)
            ]
            self.tailors += new
            if self.path is not None:
                folder.tidy(self.path, self.config, self.learngene)

    def _touched(self, names: set[str]) -> list[Tailor]:
        """The tailors of these classes: those in memory, and, read, those that serve other classes as well."""
        here = [tailor for tailor in self.tailors if names & set(tailor.classes)]
        absent = sorted(names - set(tailors_by_class(here)))
        if not absent or self.path is None:
            return here
        shared = {entry.file for name, entry in self.config.classes.items() if name not in names}
        read = [name for name in absent if self.config.classes[name].file in shared]
        return [*here, *folder.read_tailors(self.path, self.config, read, self.learngene)]

    def _need(self, names: Sequence[str]) -> None:
        have = tailors_by_class(self.tailors)
        missing = [name for name in names if name not in have]
        if missing:
            raise ValueError(
                f"not loaded: {quoted(missing, 5)}; open the pool with these classes "
                "(Pool.from_pretrained(path, classes=[...]), or without classes= for all)"
            )


def _check_same_files(before: PoolConfig, now: PoolConfig, names: Sequence[str]) -> None:
    """Raises ValueError unless the tailors of these classes are what they were, and serve the same classes."""
    for name in names:
        entry = before.classes[name]
        if now.classes.get(name) != entry or now.members(entry.file) != before.members(entry.file):
            raise ValueError(f"class {name!r} was changed since it was opened here: open the pool again and repeat")


def _read(root: Path, wanted: hub.Wanted) -> tuple[PoolConfig, State, list[Tailor]]:
    """Config, learngene and the wanted classes' tailors of a folder."""
    config = folder.read_config(root)
    while True:
        try:
            names = wanted(config)
            return config, *folder.read_parts(root, config, names)
        except ValueError:  # a class may have been removed while its file was about to be read
            before, config = config, folder.read_config(root)
            if config.generation == before.generation:
                raise
