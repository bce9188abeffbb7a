"""The public DiT: an implementation of its own, written from the paper, reads the export strictly."""

import json
import math

import pytest
import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from kindgene.interop.to_dit import export_dit


class PaperBlock(nn.Module):
    """DiT block with adaLN-Zero (arXiv 2212.09748, figure 3)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens, condition):
        a, b, c, d, e, f = (m.unsqueeze(1) for m in self.adaLN_modulation(condition).split(tokens.shape[-1], dim=1))
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + b) + a
        batch, count, width = tokens.shape
        q, k, v = self.attn["qkv"](normed).view(batch, count, 3, self.heads, -1).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // self.heads)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(batch, count, width)
        tokens = tokens + c * self.attn["proj"](mixed)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + e) + d
        return tokens + f * self.mlp["fc2"](F.gelu(self.mlp["fc1"](normed), approximate="tanh"))


class PaperDiT(nn.Module):
    """Nothing of kindgene in it; 1000 classes and a null row, as the public model has."""

    def __init__(self, size, patch, channels, width, depth, heads):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(1001, width)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(PaperBlock(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch * patch * channels),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )

    def forward(self, x, t, y):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = t.float().outer(frequencies)
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype)
        condition = self.t_embedder["mlp"](waves) + self.y_embedder["embedding_table"](y)
        tokens = self.x_embedder["proj"](x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_layer["adaLN_modulation"](condition).unsqueeze(1).chunk(2, 2)
        tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
        side, patch = x.shape[-1] // self.patch, self.patch
        pixels = self.final_layer["linear"](tokens).view(len(x), side, side, patch, patch, self.channels)
        return torch.einsum("nhwpqc->nchpwq", pixels).reshape(x.shape)


def paper_dit(folder, dtype, depth=2):
    model = PaperDiT(size=8, patch=2, channels=1, width=32, depth=depth, heads=2).to(dtype)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["tench", "a.b/c"])
def test_another_dit_reads_it_strictly_and_computes_the_same(make_pool, inputs, error, limit, tmp_path, dtype, name):
    pool = make_pool(dtype, time_frequencies="dit")
    made = export_dit(pool, tmp_path / "out", [name])
    x, t, _ = inputs(5, dtype)
    zero = torch.zeros(5, dtype=torch.long)
    expected = pool.recombine([name])(x, t, zero)
    paper = paper_dit(tmp_path / "out", dtype)
    assert error(paper(x, t, zero), expected) <= limit[dtype]
    assert made.relative_error <= limit[dtype]
    # The null label of the public scripts: guidance has no effect, as the export says.
    assert torch.equal(paper(x, t, zero + 1000), paper(x, t, zero))
    assert "no guidance" in made.notes[0]


def test_the_record_and_what_diffusers_looks_for(make_pool, tmp_path):
    pool = make_pool(torch.float32, time_frequencies="dit")
    made = export_dit(pool, tmp_path / "out", ["goldfish"], dtype="bfloat16")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["to"] == "dit"
    assert record["classes"] == {"goldfish": 0}
    assert record["null"] is None
    assert record["dtype"] == "bfloat16"
    assert record["learngene_id"] == pool.config.learngene_id
    assert 0 < record["relative_error"] == made.relative_error < 2e-2
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {value.dtype for value in tensors} == {torch.bfloat16}
    assert sum(value.numel() for value in tensors) == record["parameters"]


def test_a_plain_dit_keeps_its_classes_and_its_guidance(make_dit, inputs, error, tmp_path):
    model = make_dit(time_frequencies="dit")
    made = export_dit(model, tmp_path / "out")
    x, t, y = inputs(6)  # 5 is null here
    found = paper_dit(tmp_path / "out", torch.float64)(x, t, torch.where(y == 5, 1000, y))
    assert error(found, model(x, t, y)) <= 1e-10
    assert made.notes == ()
    assert dict(made.classes) == {str(label): label for label in range(5)}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("settings", "told"),
    [({"time_frequencies": "diffusers"}, "time_frequencies"), ({"mlp_norm_eps": 1e-2}, "mlp_norm_eps")],
)
def test_what_the_public_dit_computes_otherwise_is_refused_with_the_measured_error(make_pool, tmp_path, settings, told):
    pool = make_pool(**{"time_frequencies": "dit", **settings})
    with pytest.raises(ValueError, match=f"{told} is .* off by [0-9.e-]+ .*--approximate"):
        export_dit(pool, tmp_path / "out", ["tench"])


def test_an_approximate_export_says_how_far_off_it_is(make_pool, inputs, error, tmp_path):
    pool = make_pool(time_frequencies="diffusers")
    made = export_dit(pool, tmp_path / "out", ["tench"], approximate=True)
    x, _, _ = inputs(8)
    t, zero = torch.linspace(0, 999, 8).long(), torch.zeros(8, dtype=torch.long)
    found = error(paper_dit(tmp_path / "out", torch.float64)(x, t, zero), pool.recombine(["tench"])(x, t, zero))
    assert made.relative_error == pytest.approx(found, rel=0.5)  # measured on other images
    assert made.relative_error > 1e-5
    assert len(made.approximate) == 1
    assert "'diffusers' here, 'dit' in the public DiT" in made.approximate[0]


@pytest.mark.usefixtures("nothing_left")
def test_impossible_ones_are_refused(make_pool, make_dit, tmp_path):
    pool = make_pool(time_frequencies="dit")
    out = tmp_path / "deep" / "out"
    with pytest.raises(ValueError, match="holds one class; 2 were"):
        export_dit(pool, out, ["tench", "goldfish"])
    with pytest.raises(ValueError, match="holds one class; 3 were"):
        export_dit(pool, out)
    with pytest.raises(ValueError, match=r"no class 'trench'.*tench"):
        export_dit(pool, out, ["trench"])
    with pytest.raises(ValueError, match="dtype must be one of"):
        export_dit(pool, out, ["tench"], dtype="float8")
    with pytest.raises(ValueError, match="leave out classes"):
        export_dit(make_dit(), out, ["0"])
    with pytest.raises(ValueError, match="thin pairs"):
        export_dit(pool.recombine(["tench"], form="merged", max_parameters=20_000), out)
    with pytest.raises(ValueError, match=r"1001 classes.*room for 1000"):
        export_dit(make_dit(num_classes=1001, time_frequencies="dit"), out)
    with pytest.raises(ValueError, match="no null row"):
        export_dit(make_dit(null_row=False, time_frequencies="dit"), out)
