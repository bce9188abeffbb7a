"""The metrics by name: what each needs, and its figure for samples against a reference.

| name | | needs |
|---|---|---|
| ``fd`` | Frechet distance of pooled features | any extractor |
| ``fid`` | the same, called so of Inception's alone | inception |
| ``sfid`` | Frechet distance of spatial features | inception |
| ``is`` | inception score | an extractor with classes; no reference |
| ``precision``, ``recall`` | of manifolds of nearest neighbours | any extractor, features kept in the reference |
| ``recognised`` | share taken for the class asked for, by class too | a classifier: `kindgene.evaluation.classifier` |
| ``loss`` | denoising loss at fixed noise and timesteps | the model: `kindgene.evaluation.denoising` |

Definitions are those of ADM's evaluator (Dhariwal and Nichol 2021), by which DiT's figures were made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from kindgene.evaluation.features import Extractor
from kindgene.evaluation.frechet import frechet_distance
from kindgene.evaluation.meter import Keep, Meter
from kindgene.evaluation.neighbours import precision_recall
from kindgene.evaluation.reference import Reference

OF_REFERENCE = ("fd", "fid", "sfid", "precision", "recall")
OF_FEATURES = (*OF_REFERENCE, "is")
OF_SAMPLES = (*OF_FEATURES, "recognised")
METRICS = (*OF_SAMPLES, "loss")
_OF_NEIGHBOURS = ("precision", "recall")


def all_of(extractor_name: str) -> tuple[str, ...]:
    """Every metric that the features of the extractor of that name give."""
    distances = {"inception": ("fid", "sfid", "is"), "dinov2": ("fd",)}
    return (*distances.get(extractor_name, ("fd", "is")), *_OF_NEIGHBOURS)


def check_metrics(wanted: Sequence[str]) -> None:
    """Raises ValueError for an unknown or repeated name, and for none at all."""
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise ValueError(f"unknown metric {unknown[0] if unknown else ''!r}; there are {', '.join(METRICS)}")
    repeated = [name for name in wanted if list(wanted).count(name) > 1]
    if repeated:
        raise ValueError(f"metric {repeated[0]} is named more than once")


def check_extractor_name(wanted: Collection[str], name: str) -> None:
    """Raises ValueError for what only Inception gives, before another extractor is loaded, or trained."""
    if "fid" in wanted and name != "inception":
        raise ValueError(f"fid is of Inception alone; with the {name} extractor ask for fd")
    if "sfid" in wanted and name in ("digits", "glyphs", "dinov2"):
        raise ValueError(f"the {name} extractor has no spatial features; sfid is of inception alone")


def check_extractor(wanted: Collection[str], extractor: Extractor) -> None:
    """Raises ValueError for a metric that the extractor does not give."""
    check_extractor_name(wanted, extractor.name)
    if "sfid" in wanted and not extractor.has_spatial:
        raise ValueError(f"the {extractor.name} extractor has no spatial features; sfid is of inception alone")
    if "is" in wanted and not extractor.has_logits:
        raise ValueError(f"the {extractor.name} extractor has no classes, which the inception score is of")


def check_reference(wanted: Collection[str], reference: Reference | None) -> None:
    """Raises ValueError for a metric for which the reference lacks something, or for which there is none."""
    needing = [name for name in wanted if name in OF_REFERENCE]
    if not needing:
        return
    if reference is None:
        raise ValueError(f"{needing[0]} needs a reference")
    if "sfid" in wanted and reference.spatial is None:
        raise ValueError("the reference has no spatial statistics; make it anew with the inception extractor")
    if reference.features is None and any(name in wanted for name in _OF_NEIGHBOURS):
        raise ValueError(
            "the reference keeps no features, which precision and recall need; make one of the images with kindgene "
            "reference --features, or leave the two out of --metrics"
        )


def what_to_keep(wanted: Collection[str], count: int) -> Keep:
    """What a meter of `count` samples keeps for these metrics."""
    neighbours = any(name in wanted for name in _OF_NEIGHBOURS)
    return Keep(spatial="sfid" in wanted, score="is" in wanted, features=count if neighbours else 0)


def figures(wanted: Collection[str], samples: Meter, reference: Reference | None) -> dict[str, float]:
    """The figure of each wanted metric of features, in the table's order. ValueError: see `check_reference`."""
    check_reference(wanted, reference)
    found: dict[str, float] = {}
    if reference is not None:
        for name in ("fd", "fid"):
            if name in wanted:
                found[name] = frechet_distance(reference.pooled, samples.pooled.gaussian())
        if "sfid" in wanted and reference.spatial is not None and samples.spatial is not None:
            found["sfid"] = frechet_distance(reference.spatial, samples.spatial.gaussian())
    if "is" in wanted and samples.score is not None:
        found["is"] = samples.score.value()
    drawn = samples.features()
    if reference is not None and reference.features is not None and drawn is not None:
        pair = precision_recall(reference.features, drawn, device=samples.device)
        found |= {name: value for name, value in zip(_OF_NEIGHBOURS, pair, strict=True) if name in wanted}
    return found


def notes(wanted: Collection[str], samples: Meter, reference: Reference | None) -> list[str]:
    """What a reader of the figures should know: in sentences, [] where there is nothing."""
    told: list[str] = []
    if reference is None or not any(name in wanted for name in OF_REFERENCE):
        return told
    distances = [name for name in ("fd", "fid", "sfid") if name in wanted]
    dimension = samples.pooled.dimension
    if distances and samples.count <= dimension:
        told.append(
            f"{samples.count:,} samples for {dimension:,} features: the covariance is singular, and {distances[0]} is "
            "far too high; compare it only with figures of as many samples"
        )
    if distances and reference.pooled.singular:
        told.append(f"{reference.pooled.count:,} real images for {dimension:,} features: its covariance is singular")
    if any(name in wanted for name in _OF_NEIGHBOURS) and reference.features is not None:
        kept = len(reference.features)
        if kept != samples.count:
            told.append(
                f"precision and recall of {samples.count:,} samples against {kept:,} real images: compare only at the "
                "same numbers"
            )
    return told


def class_note(reference: dict[str, Any], classes: Sequence[str]) -> list[str]:
    """A sentence if the reference is of other classes than the samples."""
    real = reference.get("classes")
    if real is None or set(real) == set(classes):
        return []
    count = "1 class" if len(real) == 1 else f"{len(real)} classes"
    return [f"the reference is of {count}, the samples are of {len(classes)}: a class subset needs its own"]
