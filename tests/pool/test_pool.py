"""Pools: guarantees 4, 5, 6 and 10, budgets, both forms, bad input."""

import json
import subprocess
import sys

import pytest
import torch

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool

NAMES = ["a", "../../x", "CON", "é", "d/e"]


def make_model():
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=5)
    for value in dense.parameters():
        if value.abs().sum() == 0:
            torch.nn.init.normal_(value, std=0.1)
    config = KindConfig(num_classes=5, learngene_rank=6, tailor_rank=2, targets="paper+adaln")
    return make_decomposable(dense.double(), config)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def folder(model, tmp_path):
    return model.decompose(NAMES).save_pretrained(tmp_path / "pool")


def inputs(count=6):
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(count) * 100


def count(model):
    return sum(value.numel() for value in model.parameters())


def test_recombined_models_give_what_the_full_model_gives(model, folder):
    x, t = inputs(3)
    pool = Pool.from_pretrained(folder, classes=["CON", "a"])
    assert pool.loaded == ("a", "CON")
    expected = model(x, t, torch.tensor([2, 0, 5]))
    gated = pool.recombine(["CON", "a"])
    assert (gated(x, t, torch.tensor([0, 1, 2])) - expected).norm() <= 1e-10 * expected.norm()
    merged = pool.recombine(["CON"], form="merged")
    assert merged.null_class is None
    found = merged(x[:1], t[:1], torch.tensor([0]))
    assert (found - expected[:1]).norm() <= 1e-10 * expected[:1].norm()


@pytest.mark.parametrize("form", ["gated", "merged"])
def test_budgets_are_kept_and_the_smallest_is_named(folder, form):
    pool = Pool.from_pretrained(folder)
    full = count(pool.recombine(["a"], form=form))
    assert count(pool.recombine(["a"], form=form, max_parameters=int(0.8 * full))) <= int(0.8 * full)
    with pytest.raises(ValueError, match="smallest model has") as refused:
        pool.recombine(["a"], form=form, max_parameters=10)
    smallest = int(str(refused.value).partition("smallest model has ")[2].split()[0].replace(",", ""))
    assert count(pool.recombine(["a"], form=form, max_parameters=smallest)) == smallest


def test_adding_and_removing_classes_moves_no_bit_of_the_others(folder):
    x, t = inputs()
    y = torch.tensor([0, 1, 2, 3, 4, 5])
    pool = Pool.from_pretrained(folder)
    before = pool.recombine(NAMES)(x, t, y)
    fresh = pool.transfer(["new", "newer"], start="zero")
    assert [name for name, value in fresh.named_parameters() if value.requires_grad] == [
        "bank.tailors.rows",
        "bank.labels.rows",
    ]
    null = fresh(x, t, torch.full((6,), 2))
    assert torch.equal(fresh(x, t, torch.zeros(6, dtype=torch.long)), null)
    torch.nn.init.normal_(fresh.bank.tailors.rows)
    pool.add(fresh)
    grown = Pool.from_pretrained(folder)
    assert torch.equal(grown.recombine(NAMES)(x, t, y), before)
    labels = torch.tensor([0, 1, 2, 3, 4, 7])
    assert torch.equal(grown.to_model()(x, t, labels), before)
    row = grown.recombine(["a"]).bank.labels.rows[0].numpy().tobytes()
    tailor = next(t for t in grown.tailors if t.classes == ("a",)).components["blocks.0.attn.proj.u"].numpy().tobytes()
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert row in everything
    assert tailor in everything
    grown.remove(["a"])
    left = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert row not in left
    assert tailor not in left
    shrunk = Pool.from_pretrained(folder)
    assert "a" not in shrunk.classes
    others = torch.tensor([0, 1, 2, 3, 4])
    assert torch.equal(shrunk.recombine(NAMES[1:])(x[1:], t[1:], others), before[1:])


def test_a_trained_learngene_is_refused_and_so_is_a_pool_changed_meanwhile(folder):
    pool, other = Pool.from_pretrained(folder), Pool.from_pretrained(folder)
    fresh = pool.transfer(["new"])
    with torch.no_grad():
        fresh.module.pos_embed.add_(1)
    with pytest.raises(ValueError, match="learngene is not the pool's"):
        pool.add(fresh)
    pool.remove(["a"])
    with pytest.raises(ValueError, match="changed by another process"):
        other.remove(["CON"])
    assert "CON" in Pool.from_pretrained(folder).classes


@pytest.mark.parametrize("call", range(1, 4))
def test_a_write_that_fails_leaves_the_old_pool(folder, monkeypatch, call):
    pool = Pool.from_pretrained(folder)
    fresh = pool.transfer(["new"])
    calls = []

    def fail(path, *args):
        calls.append(path)
        if len(calls) >= call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("kindgene.pool.tailor.write_bytes", fail)
    monkeypatch.setattr("kindgene.pool.folder.write_json", fail)
    monkeypatch.setattr("kindgene.pool.folder.write_bytes", fail)
    with pytest.raises((OSError, ValueError)):
        pool.add(fresh)
    assert Pool.from_pretrained(folder).classes == tuple(NAMES)


def test_damaged_missing_foreign_and_newer_files_are_named(folder):
    entry = json.loads((folder / "config.json").read_text())["classes"]["a"]
    path = folder / entry["file"]
    good = path.read_bytes()
    for bad in (good[:-5], good[:-1] + bytes([good[-1] ^ 1]), b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="not the file this pool was written with"):
            Pool.from_pretrained(folder)
    Pool.from_pretrained(folder, classes=["CON"])
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        Pool.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(ValueError, match="newer kindgene"):
        Pool.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Pool.from_pretrained(folder)


@pytest.mark.parametrize("names", [[], ["a", "a"], ["nobody"], [""], ["x" * 300], "a"])
def test_impossible_class_lists_are_refused(folder, names):
    with pytest.raises(ValueError, match="class"):
        Pool.from_pretrained(folder).recombine(names)


def test_a_folder_that_holds_something_is_not_written_to(model, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="not empty"):
        model.decompose(NAMES).save_pretrained(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_merged_model_needs_nothing_of_the_method(folder, tmp_path):
    merged = Pool.from_pretrained(folder).recombine(["a"], form="merged")
    merged.save_pretrained(tmp_path / "merged")
    program = (
        "import sys\n"
        "for name in ('kindgene.core', 'kindgene.pool', 'kindgene.training'): sys.modules[name] = None\n"
        "import torch\nfrom kindgene import DiT\n"
        f"model = DiT.from_pretrained({str(tmp_path / 'merged')!r})\n"
        "print(model(torch.ones(1, 1, 8, 8), torch.tensor([7]), torch.tensor([0])).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1, 1, 8, 8]" in done.stdout
