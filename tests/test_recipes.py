"""Recipes: every row makes a model, fits the limits it names, and yields to what is chosen."""

import json

import pytest

from kindgene import DiT, KindConfig, make_decomposable
from kindgene.cli.assign import assignments, settings
from kindgene.models.presets import find_preset
from kindgene.recipes import RECIPES, changed, find_recipe, settled

OPTIONS = {"train.steps": "--steps", "train.seed": "--seed"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_makes_a_model(name):
    settings = settled(find_recipe(name))
    dense = DiT.from_preset(settings.preset, num_classes=2, **{**settings.model, "depth": 1})
    model = make_decomposable(dense, KindConfig(num_classes=2, **settings.kind))
    assert model.null_class == 2
    width = find_preset(settings.preset).hidden_size
    assert settings.kind["learngene_rank"] + settings.kind["tailor_rank"] <= 0.28 * width  # factors pay when thin
    assert settings.train.steps >= 600
    assert RECIPES[name].expect
    assert json.loads(json.dumps(settings.to_dict()))["recipe"] == name


def test_imagenet_is_trained_as_the_public_dit():
    settings = settled(find_recipe("imagenet-dit-b4"))
    train, data = settings.train, settings.data
    assert (settings.preset, settings.kind) == (
        "DiT-B/4",
        {"learngene_rank": 168, "tailor_rank": 4, "targets": "paper+adaln"},
    )
    assert (train.steps, train.batch_size, train.learning_rate) == (400_000, 256, 1e-4)
    assert (train.schedule, train.warmup_steps, train.weight_decay, train.gradient_clip) == ("constant", 0, 0.0, None)
    assert (train.label_drop, train.ema_decay) == (0.1, 0.9999)
    assert (data.superclasses, data.image_size, data.latents, data.flip, data.min_side) == ("base", 256, True, True, 1)
    config = {**find_preset(settings.preset).config(), **settings.model}
    assert (config["learn_sigma"], config["input_size"], config["in_channels"]) == (True, 32, 4)


def test_what_is_chosen_takes_the_place_of_the_recipes():
    recipe = find_recipe("digits")
    assert settled(recipe).train.warmup_steps == 50
    assert settled(recipe, {"train": {"steps": 9}}).train.warmup_steps == 3
    assert settled(recipe, {"train": {"warmup_steps": 5}}).train.warmup_steps == 5
    with pytest.raises(ValueError, match="warmup_steps is 50, more than the 9 steps"):
        settled(recipe, {"train": {"steps": 9, "warmup_steps": 50}})
    chosen = {"data": {"flip": True}, "model": {"prediction": "epsilon"}, "kind": {"tailor_rank": 2}}
    settings = settled(recipe, chosen, preset="tiny/4")
    assert (settings.data.flip, settings.data.data, settings.preset) == (True, "digits", "tiny/4")
    assert settings.model == {"learn_sigma": False, "prediction": "epsilon"}
    assert settings.kind == {"learngene_rank": 20, "tailor_rank": 2, "targets": "paper+adaln"}
    assert settled(recipe).kind["tailor_rank"] == 6


def test_diagnostics_that_nobody_chose_come_with_a_line_of_the_log():
    recipe = find_recipe("folder-32")
    assert settled(recipe).train.diagnose_every == 5000
    assert settled(recipe, {"train": {"log_every": 300}}).train.diagnose_every == 5100
    assert settled(recipe, {"train": {"diagnose_every": None}}).train.diagnose_every is None
    with pytest.raises(ValueError, match="diagnose_every is 50, no multiple of log_every, 300"):
        settled(recipe, {"train": {"log_every": 300, "diagnose_every": 50}})
    with pytest.raises(ValueError, match="log_every must be"):
        settled(recipe, {"train": {"log_every": 0}})


def test_a_long_run_is_watched():
    for row in RECIPES.values():
        train = settled(row).train
        assert 3 <= train.steps / (train.sample_every or 1) <= 50
        assert train.steps < 5000 or 6 <= train.steps / (train.diagnose_every or 1) <= 50


def test_what_is_changed_of_a_recipe():
    recipe = find_recipe("digits")
    assert changed(settled(recipe)) == []
    assert changed(settled(recipe, {"train": {"steps": 600}}, preset="mini/2")) == []
    chosen = {"data": {"flip": True}, "model": {"schedule": "cosine"}, "kind": {"tailor_rank": 2}, "train": {"seed": 1}}
    assert changed(settled(recipe, chosen, preset="tiny/4")) == ["preset", "flip", "schedule", "tailor_rank", "seed"]
    assert changed(settled(recipe, {"data": {"data": "glyphs"}})) == ["data"]
    own = find_recipe("latents")
    assert changed(settled(own, {"data": {"data": "photos", "image_size": 64}})) == []


def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"there are digits, .*; did you mean 'imagenet-dit-b4'\?"):
        find_recipe("imagenet-dit-b")


@pytest.mark.parametrize(
    ("text", "part", "name", "value"),
    [
        ("betas=0.9,0.95", "train", "betas", (0.9, 0.95)),
        ("weight_decay=0.01", "train", "weight_decay", 0.01),
        ("weight_decay=0", "train", "weight_decay", 0.0),
        ("compile=true", "train", "compile", True),
        ("compile=False", "train", "compile", False),
        ("on_nonfinite=skip", "train", "on_nonfinite", "skip"),
        ("gradient_clip=none", "train", "gradient_clip", None),
        ("gradient_clip=0.5", "train", "gradient_clip", 0.5),
        ("num_workers=4", "train", "num_workers", 4),
        ("elastic_shares=0.5,1", "train", "elastic_shares", (0.5, 1.0)),
        ("elastic_shares=", "train", "elastic_shares", ()),
        ("train.schedule=cosine", "train", "schedule", "cosine"),
        ("model.schedule=linear", "model", "schedule", "linear"),
        (" mlp_ratio = 2 ", "model", "mlp_ratio", 2.0),
        ("learn_sigma=true", "model", "learn_sigma", True),
        ("time_frequencies=dit", "model", "time_frequencies", "dit"),
        ("depth=3", "model", "depth", 3),
        ("gate_map=0,0,1", "kind", "gate_map", (0, 0, 1)),
        ("init=svd", "kind", "init", "svd"),
        ("learngene_rank=0.2", "kind", "learngene_rank", 0.2),
        ("learngene_rank=4", "kind", "learngene_rank", 4),
        ("learngene_rank=4,5,6", "kind", "learngene_rank", (4, 5, 6)),
        ('tailor_rank={"*.q": 3, "*": 2}', "kind", "tailor_rank", {"*.q": 3, "*": 2}),
        ("channels=1", "data", "channels", 1),
        ("min_side=none", "data", "min_side", None),
        ("superclasses=novel", "data", "superclasses", "novel"),
        ("split=test", "data", "split", "test"),
    ],
)
def test_any_setting_can_be_set(text, part, name, value):
    chosen = assignments([text], OPTIONS)
    assert chosen.pop(part) == {name: value}
    assert type(assignments([text], {})[part][name]) is type(value)
    assert not any(chosen.values())


def test_a_list_of_patterns_is_a_list():
    assert assignments(["targets=blocks.*.q,blocks.*.k"], {})["kind"] == {"targets": ("blocks.*.q", "blocks.*.k")}
    assert assignments(["targets=paper"], {})["kind"] == {"targets": "paper"}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["weight_decay"], "takes KEY=VALUE, got 'weight_decay'"),
        (["=3"], "takes KEY=VALUE"),
        (["weight_decy=0"], "there is no such setting; nearest: weight_decay"),
        (["model.weight_decay=0"], "there is no such setting; nearest: weight_decay, train.weight_decay"),
        (["schedule=cosine"], "say which, model.schedule or train.schedule"),
        (["steps=3"], "it has an option of its own, --steps"),
        (["train.seed=3"], "it has an option of its own, --seed"),
        (["compile=1"], "--set compile takes true or false, got '1'"),
        (["num_workers=many"], "takes a whole number, got 'many'"),
        (["num_workers=1.5"], "takes a whole number"),
        (["gradient_clip=much"], "takes a number or none"),
        (["betas=0.9"], "takes values with commas between them"),
        (["betas=a,b"], "takes values with commas between them"),
        (["on_nonfinite=go"], "takes stop or skip"),
        (["tailor_rank={]"], "--set tailor_rank takes"),
        (["depth=3", "model.depth=4"], "given twice"),
        (["num_classes=3"], "no such setting"),
        (["class_names=a,b"], "no such setting"),
    ],
)
def test_what_cannot_be_set(texts, told):
    with pytest.raises(ValueError, match=told):
        assignments(texts, OPTIONS)


TEXTS = {"data.data", "data.split", "kind.targets", "train.report_to"}
KEYS = [f"{part}.{name}" for part, names in settings().items() for name in names]


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_type_that_can_be_written(key):
    """What a configuration gains later can be set, or this fails."""
    if key in TEXTS:
        part, _, name = key.partition(".")
        assert assignments([f"{key}=x"], {})[part][name] in ("x", ("x",))
    else:
        with pytest.raises(ValueError, match=f"--set {key} takes .*, got 'x'"):
            assignments([f"{key}=x"], {})
