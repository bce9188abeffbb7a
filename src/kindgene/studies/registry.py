"""The studies by name: settings by scale, cells of a seed, and what writes the report. Imported when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kindgene.studies.cells import Cells
from kindgene.studies.page import Report

STUDIES = ("pretrain", "deploy", "novel", "shift", "agnostic", "ablate", "elastic")


@dataclass(frozen=True)
class Study:
    """What runs a study and tells of it.

    `settings` of a scale (ValueError for one that there is not); `cells`: (folder, scale, seed, show, cache, and where
    the scale's data do not come with the package their source), the cells of a seed; `write`: (folder, results, one a
    seed), the report.
    """

    settings: Callable[[str], Any]
    cells: Callable[..., Cells]
    write: Callable[[Path, Sequence[Any]], Report]


def find_study(name: str) -> Study:
    """The study of that name. Raises ValueError, with those there are, for any other."""
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no study {name!r}; there is {', '.join(STUDIES)}{hint}")
    return _IMPORTS[name]()


def _pretrain() -> Study:
    from kindgene.studies.pretraining import Pretraining, pretrain_settings
    from kindgene.studies.pretraining_report import write_pretrain

    return Study(pretrain_settings, Pretraining, write_pretrain)


def _deploy() -> Study:
    from kindgene.studies.deploy import Deploy, deploy_settings
    from kindgene.studies.deploy_report import write_deploy

    return Study(deploy_settings, Deploy, write_deploy)


def _novel() -> Study:
    from kindgene.studies.transfer_settings import transfer_settings
    from kindgene.studies.transfers import Novel
    from kindgene.studies.transfers_report import write_transfers

    return Study(transfer_settings, Novel, write_transfers)


def _shift() -> Study:
    from kindgene.studies.transfer_settings import transfer_settings
    from kindgene.studies.transfers import Shift
    from kindgene.studies.transfers_report import write_transfers

    return Study(transfer_settings, Shift, write_transfers)


def _agnostic() -> Study:
    from kindgene.studies.agnostic import Agnostic, agnostic_settings
    from kindgene.studies.agnostic_report import write_agnostic

    return Study(agnostic_settings, Agnostic, write_agnostic)


def _ablate() -> Study:
    from kindgene.studies.ablate import Ablate, ablate_settings
    from kindgene.studies.ablate_report import write_ablate

    return Study(ablate_settings, Ablate, write_ablate)


def _elastic() -> Study:
    from kindgene.studies.elastic import Elastic, elastic_settings
    from kindgene.studies.elastic_report import write_elastic

    return Study(elastic_settings, Elastic, write_elastic)


_IMPORTS: dict[str, Callable[[], Study]] = {
    "pretrain": _pretrain,
    "deploy": _deploy,
    "novel": _novel,
    "shift": _shift,
    "agnostic": _agnostic,
    "ablate": _ablate,
    "elastic": _elastic,
}
