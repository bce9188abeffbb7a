"""What goes with latents: the published sizes and training, and v and grey images for all else."""

from dataclasses import asdict

import pytest

from kindgene.models.presets import find_preset
from kindgene.recipes import find_recipe, settled
from kindgene.studies.agnostic import SCALES as AGNOSTIC
from kindgene.studies.glyph_models import new_decomposable, new_dense
from kindgene.studies.latents import backbone_choices, preset_sizes, train_choices
from kindgene.studies.pretraining import SCALES
from kindgene.training.config import TrainConfig


def test_the_scale_is_the_recipe():
    recipe, settings = settled(find_recipe("imagenet-dit-b4")), SCALES["imagenet"]
    assert (recipe.train.steps, recipe.train.batch_size) == (settings.steps, settings.batch_size)
    assert settings.rates == (recipe.train.learning_rate,)
    assert settings.ema_decay == recipe.train.ema_decay
    config = TrainConfig(steps=settings.steps, **train_choices(settings))
    assert (config.gradient_clip, config.num_workers) == (recipe.train.gradient_clip, recipe.train.num_workers)
    for scales in (SCALES, AGNOSTIC):
        sizes = scales["imagenet"]
        assert (sizes.learngene_rank, sizes.tailor_rank) == (recipe.kind["learngene_rank"], recipe.kind["tailor_rank"])


@pytest.mark.parametrize(("scale", "preset"), [("imagenet", "DiT-B/4"), ("imagenet-l4", "DiT-L/4")])
def test_models_have_a_published_size(scale, preset):
    settings = SCALES[scale]
    published = find_preset(preset).config()
    built = new_dense(["a", "b"], settings, 0).config if scale == "imagenet" else published
    for key in ("input_size", "in_channels", "hidden_size", "depth", "num_heads", "patch_size", "learn_sigma"):
        assert built[key] == published[key], key
    assert {key: asdict(settings)[key] for key in preset_sizes(preset)} == preset_sizes(preset)
    assert settings.learngene_rank + settings.tailor_rank <= 0.28 * settings.width


def test_glyphs_are_grey_and_their_models_say_v():
    settings = SCALES["tiny"]
    assert backbone_choices(settings) == {"in_channels": 1, "learn_sigma": False, "prediction": "v"}
    assert train_choices(settings) == {}
    assert new_decomposable(["a", "b"], settings, 0).config.prediction == "v"
