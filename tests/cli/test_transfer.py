"""kindgene transfer: new tailors beside a learngene that does not move, added at once or later."""

import json
import shutil

import pytest

from kindgene import Pool

SMALL = ("--steps", 3, "--batch-size", 8)
NEW = ("--classes", "7,6", *SMALL)


def test_added_at_once_or_later_is_the_same(kindgene, shared_pool, pool, tree, tmp_path):
    before = tree(pool)
    told = kindgene("transfer", pool, *NEW, "--out", tmp_path / "later").out
    assert "numbers: bank.tailors.rows, bank.labels.rows" in told
    assert "--resume latest --add" in told
    assert tree(pool) == before
    trained = tree(tmp_path / "later" / "checkpoints")

    told = kindgene("transfer", pool, *NEW, "--out", tmp_path / "later", "--resume", "latest", "--add").out
    assert "now 0, 1, 2, 7, 6" in told
    assert tree(tmp_path / "later" / "checkpoints") == trained  # nothing was trained again
    after = tree(pool)
    assert {name: after[name] for name in before if name not in ("config.json", "README.md")} == {
        name: before[name] for name in before if name not in ("config.json", "README.md")
    }

    other = tmp_path / "other"
    shutil.copytree(shared_pool, other)
    kindgene("transfer", other, *NEW, "--out", tmp_path / "once", "--add")
    assert tree(other) == after
    assert Pool.from_pretrained(pool).classes == ("0", "1", "2", "7", "6")


def test_what_was_trained_can_be_sampled_before_it_is_added(kindgene, shared_pool, tmp_path):
    kindgene("transfer", shared_pool, *NEW, "--out", tmp_path / "run")
    told = kindgene("sample", tmp_path / "run", "--steps", 1, "--per-class", 1, "--out", tmp_path / "x.png").out
    assert "2 samples of 7, 6" in told
    facts = json.loads(kindgene("evaluate", tmp_path / "run", "--dry-run").out)
    assert (facts["classes"], facts["weights"]) == (["7", "6"], "ema")


def test_a_run_says_where_it_came_from(kindgene, shared_pool, tmp_path):
    kindgene("transfer", shared_pool, *NEW, "--out", tmp_path / "run")
    origin = json.loads((tmp_path / "run" / "run.json").read_text())["origin"]
    assert origin["pool"] == str(shared_pool)
    assert origin["data"]["data"] == "digits"
    assert origin["data"]["image_size"] == 8
    assert origin["skipped"]["total"] == 0


def test_a_dry_run_asks_nothing_of_the_folder(kindgene, shared_pool, tmp_path):
    kindgene("transfer", shared_pool, *NEW, "--out", tmp_path / "run")
    facts = json.loads(kindgene("transfer", shared_pool, *NEW, "--out", tmp_path / "run", "--dry-run").out)
    assert facts["classes"] == ["7", "6"]


def test_resuming_nothing_is_refused_before_data_are_read(kindgene, shared_pool, tmp_path):
    wrong = ("--data", tmp_path / "no-such-data", "--out", tmp_path / "run", "--resume", "latest")
    assert "holds no run to resume" in kindgene("transfer", shared_pool, *wrong, code=2).err


def test_both_starts(kindgene, pool, tmp_path):
    for start, name in (("random", "6"), ("zero", "7")):
        new = ("--classes", name, *SMALL, "--start", start, "--tailor-rank", 2)
        kindgene("transfer", pool, *new, "--out", tmp_path / start, "--add")
    kindgene("sample", pool, "--steps", 1, "--per-class", 1, "--out", tmp_path / "x.png")
    facts = json.loads(kindgene("inspect", pool, "--json").out)
    assert [facts["classes"][name]["tailor_ranks"] for name in "0167"] == [6, 6, 2, 2]
    share = {tailor["classes"][0]: tailor["energy_share"] for tailor in facts["structures"][0]["tailors"]}
    assert share["7"] < share["6"] / 10  # it began as nothing


@pytest.mark.parametrize(
    "choice",
    [
        ("--mixed-precision", "bf16", "--gradient-accumulation-steps", 2, "--checkpointing-steps", 1),
        ("--deterministic", "--ema-decay", 0, "--checkpoints-total-limit", 1),
        ("--set", "flip=true", "--set", "weight_decay=0.1", "--set", "train.schedule=constant"),
    ],
    ids=lambda choice: " ".join(map(str, choice)),
)
def test_training_choices(kindgene, shared_pool, tmp_path, choice):
    kindgene("transfer", shared_pool, *NEW, *choice, "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["label_drop"] == 0.0  # the null class is the frozen learngene


def test_a_name_with_a_comma(kindgene, images, fish_pool, tmp_path):
    pool = tmp_path / "pool"
    kindgene("recombine", fish_pool, "--classes", "cat", "--out", pool)
    names = ("--data", images, "--classes", r"tench\, Tinca tinca")
    kindgene("transfer", pool, *names, *SMALL, "--out", tmp_path / "run", "--add")
    assert Pool.from_pretrained(pool).classes == ("cat", "tench, Tinca tinca")


def test_a_dry_run_tells_and_leaves_nothing(kindgene, shared_pool, tree, tmp_path):
    before = tree(shared_pool)
    facts = json.loads(kindgene("transfer", shared_pool, *NEW, "--add", "--out", tmp_path / "run", "--dry-run").out)
    assert facts["classes"] == ["7", "6"]
    assert facts["train"]["steps"] == 3
    assert sum(facts["trained"].values()) == facts["trainable_parameters"] < facts["parameters"]
    assert facts["macs"] > 0
    assert tree(shared_pool) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--classes", "2,6", "--add"), "the pool has '2' already"),
        (("--classes", "nine"), "no class 'nine' in digits"),
        (("--classes", "6", "--start", "one"), "start must be 'random' or 'zero'"),
        (("--classes", "6", "--tailor-rank", 99), "tailor_rank"),
        (("--classes", "6", "--resume", "latest"), "holds no run to resume"),
        (("--classes", "6", "--ema-decay", 2), "ema_decay"),
        (("--classes", "6", "--set", "image_size=16"), "--set image_size: that follows from the pool"),
        (("--classes", "6", "--set", "learngene_rank=4"), "--set learngene_rank: that follows from the pool"),
        (("--classes", "6", "--set", "steps=4"), "it has an option of its own, --steps"),
        (("--classes", "6", "--set", "step=4"), "there is no such setting"),
        (("--data", "textures", "--classes", "6"), "textures is neither a folder nor one of"),
        (("--classes", "6", "--image-column", "x"), "--image-column is for Hugging Face data sets"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_leaves_nothing(refused, shared_pool, tree, tmp_path, choice, told):
    before = tree(shared_pool)
    assert told in refused("transfer", shared_pool, *SMALL, *choice, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert tree(shared_pool) == before


def test_what_is_there_is_not_touched(kindgene, refused, pool, tree, tmp_path):
    before = tree(pool)
    assert "not an empty folder" in refused("transfer", pool, *NEW, "--out", pool)
    kindgene("transfer", pool, *NEW, "--out", tmp_path / "run")
    assert "or pass --resume latest" in refused("transfer", pool, *NEW, "--out", tmp_path / "run", "--add")
    assert "is of another run" in refused(
        "transfer", pool, *NEW, "--seed", 1, "--out", tmp_path / "run", "--resume", "latest"
    )
    assert tree(pool) == before


def test_a_folder_of_images_is_one_new_class(kindgene, images, pool, tmp_path):
    told = kindgene("transfer", pool, "--data", images / "cat", *SMALL, "--out", tmp_path / "run", "--add").out
    assert "now 0, 1, 2, cat" in told


def test_a_full_disk_leaves_the_pool(kindgene, full_disk, pool, tree, tmp_path, monkeypatch):
    run = ("--out", tmp_path / "run")
    kindgene("transfer", pool, *NEW, *run)
    before = tree(pool)
    full_disk(when=lambda: len(list(pool.rglob("*.safetensors"))) >= 5)  # when a new tailor is there
    result = kindgene("transfer", pool, *NEW, *run, "--resume", "latest", "--add", code=2)
    assert result.err == "kindgene: No space left on device\n"
    assert tree(pool) == before
    monkeypatch.undo()
    kindgene("transfer", pool, *NEW, *run, "--resume", "latest", "--add")
    assert Pool.from_pretrained(pool).classes == ("0", "1", "2", "7", "6")
