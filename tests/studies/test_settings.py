"""The demo's settings: every scale can be trained and sampled, and the classes are what the report says they are."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest

from kindgene import DiffusionPath, DiT, KindConfig, TrainConfig, make_decomposable
from kindgene.studies.settings import BASE, NOVEL, SCALES, SINGLE, TRIO, demo_settings


def test_the_classes():
    assert sorted((*BASE, *NOVEL)) == list("0123456789")
    assert not set(BASE) & set(NOVEL)
    assert set(TRIO) < set(BASE)
    assert SINGLE in BASE
    assert SINGLE not in TRIO


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_fits_together(scale):
    settings = demo_settings(scale)
    dense = DiT.from_preset(
        settings.preset, num_classes=len(BASE), prediction=settings.prediction, schedule=settings.schedule
    )
    ranks = {"learngene_rank": settings.learngene_rank, "tailor_rank": settings.tailor_rank}
    make_decomposable(dense, KindConfig(num_classes=len(BASE), targets=settings.targets, **ranks))
    for steps in (settings.pretrain_steps, settings.transfer_steps):
        TrainConfig(
            steps=steps,
            batch_size=settings.batch_size,
            ema_decay=settings.ema_decay,
            checkpoint_every=settings.checkpoint_every,
        )
    path = DiffusionPath(schedule=settings.schedule, prediction=settings.prediction)
    assert len(path.timesteps(settings.sampling_steps)) == settings.sampling_steps
    path.scheduler(settings.scheduler, settings.sampling_steps)
    rates = [value for name, value in asdict(settings).items() if name.endswith("learning_rate")]
    assert len(rates) == 4
    assert all(0 < rate < 0.1 for rate in rates)
    assert min(settings.samples_per_class, settings.single_class_samples) >= 1


def test_components_are_thin_at_the_scale_that_is_reported():
    """DESIGN section 3: ranks pay only while G + K is at most 0.28 of the width."""
    settings = demo_settings("mini")
    width = DiT.from_preset(settings.preset).config.hidden_size
    assert settings.learngene_rank + settings.tailor_rank <= 0.28 * width


def test_they_are_plain_values():
    settings = demo_settings("mini")
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict() == asdict(settings)
    with pytest.raises(FrozenInstanceError):
        settings.batch_size = 1
    with pytest.raises(TypeError):
        SCALES["mini"] = settings


def test_an_unknown_scale():
    with pytest.raises(ValueError, match="no demo scale 'huge'; there is tiny, mini"):
        demo_settings("huge")
