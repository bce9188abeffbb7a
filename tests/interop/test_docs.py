"""docs/exports.md: every command and every line of code in it, run as it stands there, section by section."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kindgene.cli.main import main
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.interop.export import EXPORTS

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
BACK = "And back: import"
NEEDS = {"peft": "peft", "onnx": "onnxruntime"}


def test_every_export_has_its_section_and_its_row():
    assert set(SECTIONS) == {*EXPORTS, BACK}
    assert all({kind for kind, _ in blocks} == {"bash", "python"} for blocks in SECTIONS.values())
    assert re.findall(r"^\| `([a-z][\w-]*)` \|", PAGE, re.MULTILINE) == list(EXPORTS)
    assert sum(len(blocks) for blocks in SECTIONS.values()) == PAGE.count("```") // 2


@pytest.fixture
def workplace(make_dit, vae, tmp_path, monkeypatch):
    """What the page takes for granted: a pool, a VAE, a checkpoint, and inputs; all of latents, as small as can be."""
    monkeypatch.chdir(tmp_path)
    dense = make_dit(torch.float32, num_classes=2, depth=1, in_channels=4)
    config = KindConfig(num_classes=2, learngene_rank=6, tailor_rank=2, init="random", targets=["blocks.*.mlp.fc1"])
    make_decomposable(dense, config).decompose(["tench", "goldfish"]).save_pretrained("my-pool")
    (tmp_path / "vae").symlink_to(vae)
    save_file(make_dit(torch.float32, depth=1, in_channels=4).state_dict(), "checkpoint.safetensors")
    return {"torch": torch, "x": torch.randn(3, 4, 8, 8), "t": torch.tensor([9, 500, 999])}


def run_command(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, line


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs(workplace, make_dit, capsys, monkeypatch, title):
    pytest.importorskip(NEEDS.get(title, "torch"))
    given = dict(workplace)
    if title == "dit":  # the public DiT's stand-in: 1000 classes and null; another implementation is in test_to_dit.py
        given["model"] = make_dit(torch.float32, num_classes=1000, depth=1, in_channels=4)
        given["y"] = torch.zeros(3, dtype=torch.long)
    if title == BACK:
        run_command(SECTIONS["diffusers"][0][1].strip(), monkeypatch)
    for kind, text in SECTIONS[title]:
        if kind == "bash":
            for line in text.strip().splitlines():
                run_command(line, monkeypatch)
        else:
            exec(compile(text, f"exports.md, {title}", "exec"), given)
    assert capsys.readouterr().out.count("\n") >= 1
    for name in ("noise", "mixed", "images"):
        if name in given:
            assert len(given[name]) in (1, 2, 3)
