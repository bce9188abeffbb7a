"""kindgene plan, and plans in kindgene recombine: units, files, curves, and what is impossible."""

import json
import subprocess
import sys

import pytest

from kindgene import Pool
from kindgene.pool.plan import Plan

ONE = ("--classes", "1")


def test_a_plan_is_printed_saved_and_carried_out(kindgene, shared_pool, tmp_path):
    whole = Pool.from_pretrained(shared_pool).plan(["1"]).cost
    budget = ("--max-params", f"{whole.parameters * 0.8 / 1000:.1f}k", "--max-bytes", "10MB", "--max-macs", "1G")
    told = kindgene("plan", shared_pool, *ONE, *budget, "--out", tmp_path / "one.json").out
    plan = Plan.load(tmp_path / "one.json")
    assert str(plan) == told.rstrip("\n")
    assert told.startswith("gated model of 1 class in float32: 1\n")
    assert plan.budget == {
        "max_parameters": int(round(whole.parameters * 0.8 / 1000, 1) * 1000),
        "max_macs": 10**9,
        "max_bytes": 10**7,
    }
    kindgene("recombine", shared_pool, "--plan", tmp_path / "one.json", "--out", tmp_path / "one")
    assert Pool.from_pretrained(tmp_path / "one").plan(["1"]).cost == plan.cost


def test_json_calibration_and_the_curve(kindgene, shared_pool, tmp_path):
    curve = ("--pareto", tmp_path / "curve.png", "--points", 2, "--json")
    facts = json.loads(kindgene("plan", shared_pool, *ONE, "--calibrate", "digits", *curve).out)
    assert facts["measure"] == "output"
    assert len(facts["pareto"]) == 2
    assert facts["pareto"][0]["validation_loss"] > 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    small = ("--max-params", facts["pareto"][1]["plan"]["cost"]["parameters"], "--form", "gated")
    kindgene("recombine", shared_pool, *ONE, *small, "--calibrate", "digits", "--out", tmp_path / "small")
    measured = kindgene("plan", shared_pool, *ONE, "--max-latency", "10s", "--device", "cpu").out
    assert "ms a forward on cpu" in measured


def test_int8_is_planned_and_not_saved(kindgene, refused, shared_pool, tmp_path):
    pytest.importorskip("torchao")
    asked = (*ONE, "--form", "merged", "--dtype", "int8")
    told = kindgene("plan", shared_pool, *asked, "--out", tmp_path / "one.json").out
    assert "in int8" in told
    assert "measured error of int8" in told
    out = ("--out", tmp_path / "one")
    assert kindgene("recombine", shared_pool, *asked, *out, "--dry-run").out == told
    assert "int8 models are not saved" in refused("recombine", shared_pool, "--plan", tmp_path / "one.json", *out)
    assert not (tmp_path / "one").exists()


def test_an_installed_torchao_does_not_speak_up(shared_pool, tmp_path):
    """In a process of its own: diffusers imports it, which logs lines about kernels of other machines."""
    command = [sys.executable, "-c", "from kindgene.cli.main import main; main()", "recombine", shared_pool, *ONE]
    command += ["--form", "merged", "--dtype", "int8", "--out", tmp_path / "one"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("kindgene: int8 models are not saved")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-params", "0"), "max_parameters must be a whole number above 0"),
        (("--max-params", "-3"), "a limit is written 300k"),
        (("--max-params", "3MB"), "a limit is written 300k"),
        (("--max-macs", "1ms"), "a limit is written 300k"),
        (("--max-bytes", "6 stones"), "a number of bytes is written 6MB"),
        (("--max-bytes", "1"), "a budget of 1 bytes is impossible"),
        (("--max-latency", "20GB"), "a time is written 20ms"),
        (("--max-latency", "0ms"), "max_latency_ms must be"),
        (("--max-latency", "0.00001ms", "--device", "cpu"), "the smallest model"),
        (("--max-params", "10"), "the smallest model has"),
        (("--classes", "nobody"), "no class 'nobody'"),
        (("--form", "dense", "--max-params", "1M"), "one size"),
        (("--dtype", "int7"), "dtype must be one of"),
        (("--dtype", "int8"), "use form='merged' or 'dense'"),
        (("--calibrate", "nowhere"), "neither a folder nor"),
        (("--calibrate", "glyphs"), "no class|glyph"),
        (("--pareto", "curve.jpg"), "must end in .png"),
        (("--points", "0"), "at least 1"),
    ],
)
def test_what_is_impossible_is_refused_in_a_line(refused, shared_pool, arguments, message, tmp_path):
    told = refused("plan", shared_pool, *(() if "--classes" in arguments else ONE), *arguments)
    assert any(part in told for part in message.split("|")), told


def test_a_plan_of_another_pool_and_damaged_ones_are_refused(refused, kindgene, shared_pool, fish_pool, tmp_path):
    kindgene("plan", fish_pool, "--classes", "cat", "--out", tmp_path / "cat.json")
    out = ("--out", tmp_path / "x")
    assert "was made for the learngene" in refused(
        "recombine", shared_pool, "--plan", renamed(tmp_path / "cat.json", "1"), *out
    )
    (tmp_path / "bad.json").write_text("{}")
    assert "is not a plan" in refused("recombine", shared_pool, "--plan", tmp_path / "bad.json", *out)
    assert "no such file" in refused("recombine", shared_pool, "--plan", tmp_path / "none.json", *out)
    assert "one of the two" in refused("recombine", shared_pool, *out)
    assert "one of the two" in refused("recombine", shared_pool, *ONE, "--plan", tmp_path / "cat.json", *out)
    assert not (tmp_path / "x").exists()


def renamed(path, name):
    """A plan's file with its class renamed to one that the other pool has."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": [name]}))
    return path
