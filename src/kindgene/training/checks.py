"""What is refused before a run begins: a model, data and settings that do not fit together."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.training.batches import Dataset
from kindgene.training.config import TrainConfig
from kindgene.training.optimizer import row_tables, shared_parameters
from kindgene.training.processes import Processes


def check_fit(model: nn.Module, dataset: Dataset, config: TrainConfig) -> None:
    """Refuses a model, data and settings that do not fit together."""
    facts = cast(Any, model)
    names: tuple[str, ...] | None = facts.class_names
    if len(dataset.class_names) != facts.num_classes:
        raise ValueError(
            f"the data has {len(dataset.class_names)} classes, the model {facts.num_classes}: "
            "take dataset.subset(...) or a model with as many"
        )
    if names is not None and tuple(names) != tuple(dataset.class_names):
        raise ValueError(
            f"the model's classes are {list(names)[:10]}, the data's {list(dataset.class_names)[:10]}: "
            "dataset.subset(model.class_names) puts them in the model's order"
        )
    if config.elastic_shares and not (isinstance(model, Decomposable) and shared_parameters(model)):
        raise ValueError("elastic_shares trains a learngene, and here is none to train: leave it out")
    without_class = int((dataset.labels >= facts.num_classes).sum())
    if facts.null_class is None and (config.label_drop > 0 or without_class):
        what = "set label_drop=0" if config.label_drop > 0 else f"leave out the {without_class} images without class"
        raise ValueError(f"this model has no null label: {what}")
    # Where the null class has a tailor of its own (its label is a row of the bank), samples without a label train that.
    closed = isinstance(model, Decomposable) and facts.null_class == model.bank.num_classes
    if closed and not shared_parameters(model):
        frozen = "the learngene is frozen, so samples without a label would train nothing:"
        if config.label_drop > 0:
            raise ValueError(f"{frozen} set label_drop=0")
        if without_class:
            raise ValueError(f"{frozen} leave out the {without_class} images without class")


def check_spread(model: nn.Module, config: TrainConfig, out: object, processes: Processes) -> None:
    """Refuses ways of spreading a model that cannot be, or whose result would be lost."""
    if config.parallel == "tailor" and not (isinstance(model, Decomposable) and row_tables(model)):
        raise ValueError("parallel='tailor' gives each process tailors of its own, and here are none to train")
    if config.shard_learngene and not shared_parameters(model):
        raise ValueError("shard_learngene shards what is shared for its training, and here it is frozen: leave it out")
    spread = processes.size > 1 and (config.parallel == "tailor" or config.shard_learngene)
    if spread and out is None:
        raise ValueError("no process has the whole model in the end (parallel='tailor', shard_learngene): give out")
