"""kindgene pretrain: every choice runs; what was begun is never lost, and resumed it is what it would have been."""

import json
import shutil
import signal
import time

import pytest
import torch

from kindgene.training.checkpoint import latest_checkpoint, open_checkpoint

SMALL = ("--classes", "0,1", "--preset", "tiny/2", "--batch-size", 4)
LONG = (*SMALL, "--steps", 80, "--checkpointing-steps", 10)  # long enough to be interrupted
SHORT = (*SMALL, "--steps", 4, "--checkpointing-steps", 2)


def same(a, b):
    """Whether two runs ended alike, bit for bit: last checkpoints, and logs but for the speed."""
    one, other = latest_checkpoint(a / "checkpoints"), latest_checkpoint(b / "checkpoints")
    assert (one.step, one.names) == (other.step, other.names)
    for name in one.names:
        mine, theirs = one.tensors(name), other.tensors(name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    return log(a) == log(b)


def log(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def long(kindgene, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("long") / "run"
    kindgene("pretrain", "--out", folder, *LONG)
    return folder


@pytest.fixture(scope="module")
def short(kindgene, tmp_path_factory):
    """A short one."""
    folder = tmp_path_factory.mktemp("short") / "run"
    kindgene("pretrain", "--out", folder, *SHORT)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_interrupted_and_resumed_is_uninterrupted(kindgene, start, refused, long, tmp_path, number):
    run = tmp_path / "run"
    process = start("pretrain", "--out", run, *LONG)
    until = time.monotonic() + 60
    while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_bytes():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    checkpoint = latest_checkpoint(run / "checkpoints")
    assert 0 <= checkpoint.step < 80
    if number == signal.SIGINT:
        assert process.returncode == 130
        step = f"SIGINT after step {checkpoint.step} of 80"
        assert err == f"kindgene: interrupted: {step}; add --resume latest to the same command to go on from there\n"
    assert "or pass --resume latest" in refused("pretrain", "--out", run, *LONG)

    kindgene("pretrain", "--out", run, *LONG, "--resume", "latest")
    assert same(run, long)


@pytest.mark.parametrize("noticed", ["flush", "write"])
def test_a_full_disk_leaves_the_last_checkpoint(kindgene, refused, full_disk, short, tmp_path, monkeypatch, noticed):
    run = tmp_path / "run"
    second = run / "checkpoints" / "step-00000002"
    full_disk(noticed, when=second.exists)
    assert "No space left on device" in refused("pretrain", "--out", run, *SHORT)
    assert latest_checkpoint(run / "checkpoints").path == second
    assert not list(run.rglob(".tmp-*"))

    monkeypatch.undo()
    kindgene("pretrain", "--out", run, *SHORT, "--resume", "latest")
    assert same(run, short)


def test_a_damaged_checkpoint_is_passed_over_and_said(kindgene, short, tmp_path):
    run = tmp_path / "run"
    kindgene("pretrain", "--out", run, *SHORT)
    (run / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"damaged")
    err = kindgene("pretrain", "--out", run, *SHORT, "--resume", "latest").err
    assert err.startswith("kindgene: passing over a damaged checkpoint")
    assert same(run, short)


@pytest.mark.parametrize(
    "choice",
    [
        ("--dense",),
        ("--set", "targets=paper"),
        ("--set", "targets=paper+adaln", "--learngene-rank", 4, "--tailor-rank", 2),
        ("--set", "prediction=v"),
        ("--set", "prediction=epsilon"),
        ("--mixed-precision", "bf16", "--gradient-accumulation-steps", 2),
        ("--set", "deterministic=true", "--set", "ema_decay=0.0", "--set", "label_drop=0.5"),
        ("--preset", "tiny/4", "--learning-rate", 1e-4, "--checkpoints-total-limit", 1),
        ("--seed", 2**64 - 1),
    ],
    ids=lambda choice: " ".join(map(str, choice)),
)
def test_every_choice_runs(kindgene, tmp_path, choice):
    run = tmp_path / "run"
    told = kindgene("pretrain", "--out", run, *SMALL, "--steps", 2, *choice).out
    following = "sample" if "--dense" in choice else "decompose"
    assert f"next: kindgene {following} {run}" in told
    assert len(log(run)) == 1
    facts = json.loads((run / "run.json").read_text())
    assert (facts["model"]["kind"] is None) == ("--dense" in choice)
    recorded = {**facts["config"], **facts["model"]["backbone"], **(facts["model"]["kind"] or {})}
    for option, value in zip(choice, (*choice[1:], "--"), strict=True):
        name = str(option).removeprefix("--").replace("-", "_")
        if name == "set":
            name, _, value = value.partition("=")
            assert str(recorded[name]).lower() == value, name
        elif str(option).startswith("--") and name not in ("dense", "preset"):
            assert recorded[name] == value, name


def test_the_seed_decides_first_weights_and_all_that_follows(kindgene, tmp_path):
    weights = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        kindgene("pretrain", "--out", tmp_path / name, *SMALL, "--steps", 1, "--seed", seed)
        for step in (0, 1):
            checkpoint = open_checkpoint(tmp_path / name / "checkpoints" / f"step-0000000{step}")
            values = checkpoint.tensors("model").values()
            weights[name, step] = torch.cat([value.flatten().double() for value in values])
    for step in (0, 1):
        assert torch.equal(weights["a", step], weights["b", step])
        assert not torch.equal(weights["a", step], weights["c", step])


def test_images_of_ones_own(kindgene, images, tmp_path):
    look = ("--data", images, "--image-size", 8, "--set", "channels=3", "--classes", r"zebra,tench\, Tinca tinca")
    kindgene("pretrain", "--out", tmp_path / "run", *look, "--preset", "tiny/2", "--steps", 1, "--batch-size", 2)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["data"]["class_names"] == ["zebra", "tench, Tinca tinca"]
    assert facts["model"]["backbone"]["in_channels"] == 3


def test_a_dry_run_tells_and_leaves_nothing(kindgene, tmp_path):
    facts = json.loads(kindgene("pretrain", "--out", tmp_path / "run", "--dry-run", "--steps", 7).out)
    assert facts["train"]["steps"] == 7
    assert facts["backbone"]["hidden_size"] == 96
    assert facts["kind"]["learngene_rank"] == 20
    assert (facts["images"], facts["parameters"], facts["macs"]) == (1797, 832_068, 3_432_960)
    dense = json.loads(kindgene("pretrain", "--out", tmp_path / "run", "--dry-run", "--dense").out)
    assert (dense["kind"], dense["parameters"]) == (None, 725_380)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_of_which_settings_it_knows_what_to_expect(kindgene, run):
    def expected(*choice):
        return json.loads(kindgene("pretrain", "--dry-run", *choice).out)["expect"]

    # That there is a run already does not matter.
    assert expected("--out", run).startswith("Two CPU cores")
    told = expected("--out", run, "--resume", "latest", "--steps", 7, "--classes", "0,1", "--set", "depth=1", "--dense")
    assert told.startswith("Not known for this run, which has its own depth, steps, warmup_steps, classes, dense. The")


def test_where_there_is_no_run_to_go_on_with_no_data_are_read(refused, monkeypatch, run, tmp_path):
    def read(*arguments, **options):
        raise AssertionError("data were read")

    monkeypatch.setattr("kindgene.cli.prepare.dataset_of", read)
    for name, resume, told in (
        ("nowhere", "latest", "holds no run to resume: start one without resume"),
        ("empty", "latest", "holds no run to resume"),
        ("early", "latest", "holds latents that a run made before it began: leave out --resume to begin with them"),
        (run, "step-99", "step-99 is not a checkpoint of"),
    ):
        if name in ("empty", "early"):
            (tmp_path / name / ("latents" if name == "early" else "")).mkdir(parents=True)
        assert told in refused("pretrain", "--out", tmp_path / name, *SMALL, "--resume", resume)


def test_where_it_comes_from_is_written_down(kindgene, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "photos")
    (data / "cat" / "broken.png").write_bytes(b"")
    (data / "cat" / "notes.txt").write_text("mine")
    look = ("--recipe", "folder-32", "--data", data, "--image-size", 8, "--preset", "tiny/2", "--set", "num_workers=0")
    small = ("--learngene-rank", 4, "--tailor-rank", 2, "--steps", 1, "--batch-size", 2, "--out", tmp_path / "run")
    kindgene("pretrain", *look, *small)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["origin"]
    assert (facts["recipe"], facts["preset"]) == ("folder-32", "tiny/2")
    assert facts["data"] == {
        "data": str(data),
        "image_size": 8,
        "channels": None,
        "flip": True,
        "min_side": 1,
        "check": "headers",
        "split": None,
        "superclasses": None,
        "vae": None,
    }
    assert facts["skipped"] == {"total": 2, "kinds": {"other suffix": 1, "broken": 1}}
    lines = list(map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()))
    assert [line["path"] for line in lines] == [str(data / "cat" / name) for name in ("notes.txt", "broken.png")]
    assert lines[1]["reason"].startswith("cannot be read")
    kindgene("pretrain", *SHORT, "--out", tmp_path / "digits")
    assert json.loads((tmp_path / "digits" / "run.json").read_text())["origin"]["data"]["image_size"] == 8
    assert not (tmp_path / "digits" / "skipped.jsonl").exists()


def test_trackers_are_words_with_commas(kindgene, refused, tmp_path):
    look = ("pretrain", *SMALL, "--steps", 1, "--out", tmp_path / "run", "--report-to")
    assert json.loads(kindgene(*look, " tensorboard, wandb ", "--dry-run").out)["train"]["report_to"] == [
        "tensorboard",
        "wandb",
    ]
    assert "each of report_to must be one of 'tensorboard'" in refused(*look, "tensorboard,")


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--dense", "--tailor-rank", 4), "leave out what is said of them (tailor_rank)"),
        (("--dense", "--set", "targets=paper"), "leave out what is said of them (targets)"),
        (("--image-size", 16), "digits have 8 pixels a side"),
        (("--set", "channels=3"), "digits is grey"),
        (("--preset", "minni/4"), "did you mean 'mini/4'"),
        (("--set", "targets=all"), "targets must be"),
        (("--set", "prediction=x"), "takes epsilon or v"),
        (("--learngene-rank", 99), "learngene_rank"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--set", "label_drop=2"), "label_drop"),
        (("--set", "ema_decay=1"), "ema_decay"),
        (("--mixed-precision", "fp8"), "mixed_precision"),
        (("--gradient-accumulation-steps", 5), "gradient_accumulation_steps is 5"),
        (("--classes", "0,nobody"), "no class 'nobody' in digits; nearest"),
        (("--classes", "0,0"), "more than once"),
        (("--data", "nowhere", "--image-size", 8), "nowhere is neither a folder nor one of digits"),
        (("--resume", "latest"), "holds no run to resume"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_leaves_nothing(refused, tmp_path, choice, told):
    assert told in refused("pretrain", "--out", tmp_path / "run", *SMALL, *choice)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_touched(refused, tree, tmp_path, run):
    (tmp_path / "mine").write_text("mine")
    assert "not an empty folder" in refused("pretrain", "--out", tmp_path, *SMALL)
    assert "not an empty folder" in refused("pretrain", "--out", tmp_path / "mine", *SMALL)
    assert (tmp_path / "mine").read_text() == "mine"
    before = tree(run)
    assert "is of another run" in refused("pretrain", "--out", run, *SMALL, "--resume", "latest")
    assert tree(run) == before


def test_elastic_training_is_asked_for_by_its_shares(kindgene, refused, tmp_path):
    small = ("--preset", "tiny/2", "--steps", 2, "--batch-size", 8, "--classes", "0,1")
    kindgene("pretrain", *small, "--set", "elastic_shares=0.5,1", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["elastic_shares"] == [0.5, 1.0]
    out = ("--out", tmp_path / "x")
    assert "must have 1.0" in refused("pretrain", *small, "--set", "elastic_shares=0.5", *out)
    assert "--set elastic_shares takes values with commas" in refused(
        "pretrain", *small, "--set", "elastic_shares=half", *out
    )
    assert "here is none to train" in refused("pretrain", *small, "--dense", "--set", "elastic_shares=0.5,1", *out)
    assert not (tmp_path / "x").exists()
