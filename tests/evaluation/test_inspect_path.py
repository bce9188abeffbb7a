"""inspect_path: what it opens, how many tailors it looks at, and what it refuses."""

import json
import shutil

import pytest
import torch
from torch import nn

from kindgene import DiT, KindConfig, Pool, TrainConfig, load_digits, make_decomposable, train
from kindgene.evaluation import inspect_run
from kindgene.evaluation.inspect_path import inspect_path
from kindgene.evaluation.inspection import MEASURED
from kindgene.files import read_json, write_json
from kindgene.training.checkpoint import save_checkpoint

MANY = tuple(f"class {index}" for index in range(70))
DIGITS = ("0", "1", "2")


def dit(names, **settings):
    return DiT.from_preset("tiny/2", num_classes=len(names), class_names=names, **settings)


def decomposable(names, **settings):
    options = {"learngene_rank": 4, "tailor_rank": 2, "targets": "paper", **settings}
    return make_decomposable(
        dit(names), KindConfig(num_classes=len(names), **options), torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A pool of 70 classes. Not to be changed."""
    return decomposable(MANY).decompose().save_pretrained(tmp_path_factory.mktemp("many") / "pool")


def trained(model, out, **settings):
    options = {"steps": 4, "batch_size": 6, "learning_rate": 1e-3, "checkpoint_every": 2, **settings}
    return train(model, load_digits().subset(DIGITS), TrainConfig(**options), out=out)


@pytest.fixture(scope="module")
def model():
    """What `run` trains; its averages afterwards."""
    return decomposable(DIGITS)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The result of a run with averaged weights and a checkpoint at 2 and at 4. Its folder is not to be changed."""
    return trained(model, tmp_path_factory.mktemp("run") / "run", ema_decay=0.9)


def measured(found, place=0):
    return [tailor.classes for tailor in found.structures[place].tailors]


def test_of_many_tailors_some_are_measured(many):
    found = inspect_path(many)
    assert (len(found.classes), found.tailor_count) == (70, 70)
    assert measured(found) == [[MANY[index * 70 // 32]] for index in range(32)]
    assert len(found.structures[0].overlap_u) == MEASURED


def test_named_classes_alone_are_opened(many, tmp_path):
    """All other tailors are gone; sizes are told of what is here. What is to be measured must be here."""
    pool = shutil.copytree(many, tmp_path / "pool")
    wanted = ["class 60", "class 3"]
    config = Pool.from_pretrained(many, classes=wanted).config
    kept = {config.classes[name].file for name in wanted}
    for path in (pool / "tailors").rglob("*.safetensors"):
        if path.relative_to(pool).as_posix() not in kept:
            path.unlink()
    found = inspect_path(pool, wanted)
    assert measured(found) == [["class 60"], ["class 3"]]
    assert found.classes["class 3"].bytes > 0
    assert found.classes["class 4"].bytes is None
    assert found.structures == inspect_path(many, wanted).structures
    listed = inspect_path(pool, listing=True)
    assert listed.bytes == sum(path.stat().st_size for path in pool.rglob("*.safetensors"))
    assert sum(facts.bytes is not None for facts in listed.classes.values()) == 2
    for asked in (None, ["class 4"]):
        with pytest.raises(ValueError, match=r"tailors.*safetensors is missing"):
            inspect_path(pool, asked)


def test_of_a_pool_on_the_hub_only_what_is_measured_is_fetched(many, tmp_path, monkeypatch):
    def fetch(name, wanted):
        assert name == "user/many"
        config = Pool.from_pretrained(many, learngene_only=True).config
        asked.append(list(wanted(config)))
        here = tmp_path / f"fetched {len(asked)}"
        for file in ("config.json", "learngene.safetensors", *(config.classes[one].file for one in asked[-1])):
            (here / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(many / file, here / file)
        return here

    asked = []
    monkeypatch.setattr("kindgene.pool.hub.fetch", fetch)
    monkeypatch.chdir(tmp_path)
    some = inspect_path("user/many", ["class 60", "class 3"])
    assert (some.path, measured(some)) == ("user/many", [["class 60"], ["class 3"]])
    assert some.structures == inspect_path(many, ["class 60", "class 3"]).structures
    assert measured(inspect_path("user/many")) == measured(inspect_path(many))
    listed = inspect_path("user/many", listing=True)
    assert (len(listed.classes), listed.parameters) == (70, inspect_path(many, listing=True).parameters)
    assert asked == [["class 60", "class 3"], [MANY[index * 70 // 32] for index in range(32)], []]
    for listing in (False, True):
        with pytest.raises(ValueError, match="no class 'nobody'"):
            inspect_path("user/many", ["nobody"], listing=listing)


def test_classes_that_share_a_tailor(tmp_path):
    model = decomposable(("a", "b", "c"), gate_map=[0, 1, 0])
    model.decompose().save_pretrained(tmp_path / "pool")
    found = inspect_path(tmp_path / "pool")
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.tailor_count == 2
    assert measured(found) == [["a", "c"], ["b"]]
    assert found.classes["a"].file == found.classes["c"].file
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "pool").rglob("*.safetensors"))
    assert measured(inspect_path(tmp_path / "pool", ["c"])) == [["a", "c"]]


def test_a_pool_without_classes(many, tmp_path):
    pool = Pool.from_pretrained(shutil.copytree(many, tmp_path / "pool"))
    pool.remove(MANY)
    found = inspect_path(tmp_path / "pool")
    assert (found.classes, found.tailor_count, measured(found)) == ({}, 0, [])
    assert found.structures[0].layers[0].shared.rank == 4


class Net(nn.Module):
    """Two layers that no table of backbones knows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x, label):
        return self.second(self.first(x))


def test_a_pool_of_any_backbone(tmp_path):
    kind = KindConfig(
        num_classes=2,
        learngene_rank=3,
        tailor_rank=2,
        targets=["first", "second"],
        label_argument="label",
        init="random",
    )
    make_decomposable(Net(), kind).decompose(["a", "b"]).save_pretrained(tmp_path / "pool")
    found = inspect_path(tmp_path / "pool")
    assert found.backbone == "Net"
    layers = [(layer.name, layer.kind, layer.outputs, layer.inputs) for layer in found.structures[0].layers]
    assert layers == [("first", "first", 8, 6), ("second", "second", 5, 8)]


def test_a_run_is_its_latest_whole_checkpoint(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(inspect_run, "LOSSES", 3)
    found = inspect_path(run.out)
    losses = list(run.losses)
    assert (found.kind, found.record["step"], found.record["steps"]) == ("run", 4, 4)
    told = (found.record["loss_first"], found.record["loss_last"])
    assert told == pytest.approx((sum(losses[:3]) / 3, sum(losses[1:]) / 3))
    copy = shutil.copytree(run.out, tmp_path / "run")
    model = copy / "checkpoints" / "step-00000004" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    earlier = inspect_path(copy)
    assert earlier.record["step"] == 2
    assert "step-00000004" in caplog.text
    assert inspect_path(copy / "checkpoints" / "step-00000002").structures == earlier.structures
    with pytest.raises(ValueError, match=r"step-00000004/model\.safetensors: is damaged"):
        inspect_path(copy / "checkpoints" / "step-00000004")


def test_the_average_is_what_a_pool_is_made_of(model, run, tmp_path):
    """Training left the averages in the model."""
    ema, raw = inspect_path(run.out).structures
    assert (ema.weights, raw.weights) == ("ema", "raw")
    (pool,) = inspect_path(model.decompose().save_pretrained(tmp_path / "pool")).structures
    assert pool.weights == "ema"
    for mine, other, made in zip(ema.layers, raw.layers, pool.layers, strict=True):
        assert made.shared.singular_values == pytest.approx(mine.shared.singular_values, rel=1e-5)
        assert made.tailors[1].energy == pytest.approx(mine.tailors[1].energy, rel=1e-5)
        assert made.shared.singular_values != pytest.approx(other.shared.singular_values, rel=1e-5)


def test_sizes_and_classes_of_a_run(model, run):
    found = inspect_path(run.out)
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.learngene_parameters + sum(facts.parameters for facts in found.classes.values()) == found.parameters
    assert found.bytes == (run.out / "checkpoints" / "step-00000004" / "model.safetensors").stat().st_size
    assert {facts.tailor_ranks for facts in found.classes.values()} == {2}
    assert measured(found) == [["0"], ["1"], ["2"]]
    assert measured(inspect_path(run.out, ["2", "0"])) == [["2"], ["0"]]


def test_a_run_without_averages_and_a_dense_one(tmp_path):
    trained(dit(DIGITS), tmp_path / "dense", ema_decay=0.0)
    found = inspect_path(tmp_path / "dense")
    assert [structure.weights for structure in found.structures] == ["raw"]
    assert (found.learngene_parameters, found.tailor_count) == (None, 0)
    assert list(found.classes) == list(DIGITS)
    with pytest.raises(ValueError, match="plain DiT: it has no tailors"):
        inspect_path(tmp_path / "dense", ["0"])
    json.dumps(found.to_json(), allow_nan=False)


def test_a_transfer_keeps_the_learngene(many, tmp_path):
    """Its frozen learngene has no average: it is its own, and canonical, while the new tailors are not."""
    pool = Pool.from_pretrained(many, classes=["class 1"])
    trained(pool.transfer(DIGITS), tmp_path / "new", ema_decay=0.9, label_drop=0.0)
    ema, raw = inspect_path(tmp_path / "new").structures
    before = inspect_path(many, ["class 1"]).structures[0]
    for mine, same, old in zip(ema.layers, raw.layers, before.layers, strict=True):
        assert mine.shared == same.shared == old.shared
        assert mine.shared.drift_u < 1e-6 < mine.tailors[0].drift_u


def test_a_listing_measures_nothing(many, run, tmp_path):
    dit(("a",), null_row=False).save_pretrained(tmp_path / "dit")
    for path in (many, run.out, tmp_path / "dit"):
        listed, whole = inspect_path(path, listing=True), inspect_path(path)
        assert listed.structures == []
        assert {**listed.to_json(), "structures": None} == {**whole.to_json(), "structures": None}


def test_what_is_refused(many, run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        inspect_path(tmp_path / "file")
    with pytest.raises(ValueError, match="neither a pool, nor a saved DiT, nor a run, nor a checkpoint"):
        inspect_path(tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "UNet2DModel"})
    with pytest.raises(ValueError, match="holds a UNet2DModel"):
        inspect_path(tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "DiT"})
    with pytest.raises(ValueError, match="but no weights"):
        inspect_path(tmp_path)
    write_json(tmp_path / "config.json", ["no pool"])
    with pytest.raises(ValueError, match="is not a pool's config"):
        inspect_path(tmp_path)
    for arguments in ({}, {"listing": True}):
        with pytest.raises(ValueError, match="no class 'klass 3'"):
            inspect_path(many, ["klass 3"], **arguments)
        with pytest.raises(ValueError, match="no class '7'"):
            inspect_path(run.out, ["7"], **arguments)


def test_runs_that_cannot_be_inspected(run, tmp_path):
    none = tmp_path / "none"
    none.mkdir()
    shutil.copy(run.out / "run.json", none)
    with pytest.raises(ValueError, match="is a run without any checkpoint"):
        inspect_path(none)
    unknown = save_checkpoint(tmp_path, 1, {"model": {"x": torch.zeros(1)}}, {"seconds": 0.0})
    with pytest.raises(ValueError, match="does not say which run it is of"):
        inspect_path(unknown)
    state = read_json(run.out / "checkpoints" / "step-00000004" / "state.json")["state"]
    state["identity"]["model"]["backbone"] = {"sample_size": 8}
    foreign = save_checkpoint(tmp_path, 2, {"model": {"x": torch.zeros(1)}}, state)
    with pytest.raises(ValueError, match="backbone is not kindgene's DiT: DiT has no setting 'sample_size'"):
        inspect_path(foreign)
