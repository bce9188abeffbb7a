"""DiT: the published keys and function, and how it behaves."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding

from kindgene.models.blocks import grid_positions, time_features
from kindgene.models.dit import DiT
from kindgene.models.presets import PRESETS

# Keys.


def test_state_dict_keys_of_one_block_and_the_rest():
    model = DiT.from_preset("tiny/2", depth=1)
    assert list(model.state_dict()) == [
        "pos_embed",
        "x_embedder.proj.weight",
        "x_embedder.proj.bias",
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.0.bias",
        "t_embedder.mlp.2.weight",
        "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.weight",
        "blocks.0.attn.proj.bias",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.weight",
        "blocks.0.mlp.fc2.bias",
        "blocks.0.adaLN_modulation.1.weight",
        "blocks.0.adaLN_modulation.1.bias",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.bias",
    ]
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["pos_embed"]


# The published function, written once more from the paper, on a state dict alone.


def published_forward(state, x, t, y, *, heads, patch):
    """DiT as the paper draws it, slow and obvious: loops over heads and patches, attention written out."""

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(value):
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def silu(value):
        return value / (1 + torch.exp(-value))

    batch, _, height, _ = x.shape
    side = height // patch
    kernel = state["x_embedder.proj.weight"].flatten(1)
    tokens = []
    for row in range(side):
        for column in range(side):
            piece = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(piece.reshape(batch, -1) @ kernel.T + state["x_embedder.proj.bias"])
    h = torch.stack(tokens, dim=1) + state["pos_embed"]
    width = h.shape[-1]

    frequencies = torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=x.dtype)
    angles = t[:, None].to(x.dtype) * frequencies
    waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", waves)))
    c = c + state["y_embedder.embedding_table.weight"][y]

    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for block in (f"blocks.{index}" for index in range(depth)):
        modulation = linear(f"{block}.adaLN_modulation.1", silu(c))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.split(width, dim=-1)
        qkv = linear(f"{block}.attn.qkv", norm(h) * (1 + scale1) + shift1)
        mixed = []
        for head in range(heads):
            start, size = head * width // heads, width // heads
            q, k, v = (qkv[..., part * width + start : part * width + start + size] for part in range(3))
            mixed.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), dim=-1) @ v)
        h = h + gate1 * linear(f"{block}.attn.proj", torch.cat(mixed, dim=-1))
        inner = linear(f"{block}.mlp.fc1", norm(h) * (1 + scale2) + shift2)
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        h = h + gate2 * linear(f"{block}.mlp.fc2", inner)

    shift, scale = linear("final_layer.adaLN_modulation.1", silu(c))[:, None].split(width, dim=-1)
    patches = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    out_channels = patches.shape[-1] // patch**2
    image = torch.empty(batch, out_channels, height, height, dtype=x.dtype)
    for row in range(side):
        for column in range(side):
            piece = patches[:, row * side + column].reshape(batch, patch, patch, out_channels).permute(0, 3, 1, 2)
            image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = piece
    return image


def public_state(dtype):
    """A state dict as a public checkpoint holds it, made without our DiT: names and shapes by hand."""
    width, classes, channels, patch, side, rows = 24, 7, 4, 2, 4, 8 * 4
    shapes = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (rows, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        shapes |= {
            f"{block}.attn.qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.fc1": (4 * width, width),
            f"{block}.mlp.fc2": (width, 4 * width),
            f"{block}.adaLN_modulation.1": (6 * width, width),
        }
    generator = torch.Generator().manual_seed(0)
    state = {"pos_embed": torch.randn(1, side**2, width, generator=generator)}
    state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, width, generator=generator)
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.2
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.2
    return {key: value.to(dtype) for key, value in state.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-5)])
def test_a_public_state_dict_loads_strictly_and_gives_the_published_function(dtype, tolerance, inputs):
    # The waves of the timestep are float32 whatever the model is: hence 1e-5 in float64 too.
    model = DiT.from_preset("DiT-S/2", input_size=8, hidden_size=24, depth=3, num_heads=3, num_classes=7)
    assert model.weights_loaded is False
    state = public_state(dtype)
    model.to(dtype).load_state_dict(state, strict=True)
    assert model.weights_loaded is True
    x, t, y = inputs(model, dtype=dtype)
    expected = published_forward(state, x, t, y, heads=3, patch=2)
    assert (model(x, t, y) - expected).norm() < tolerance * expected.norm()
    # The tolerance can tell: one frequency table is not the other, and the order of q, k and v matters.
    other = copy.deepcopy(model)
    other.t_embedder.frequencies = "diffusers"
    assert (other(x, t, y) - expected).norm() > 100 * tolerance * expected.norm()


@pytest.mark.parametrize(("name", "shift"), [("dit", 0), ("diffusers", 1)])
def test_time_frequencies(name, shift):
    t = torch.tensor([0, 1, 17, 500, 999])
    expected = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=shift)
    torch.testing.assert_close(time_features(t, name), expected, rtol=0, atol=2e-5)
    angle = 500 * 10000 ** (-3 / (128 - shift))
    assert time_features(t, name)[3, 3].item() == pytest.approx(math.cos(angle), abs=1e-4)
    assert time_features(t, name)[3, 128 + 3].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_positions_are_the_published_table():
    expected = get_2d_sincos_pos_embed(48, 6, base_size=6, output_type="pt")
    torch.testing.assert_close(grid_positions(48, 6)[0], expected.float(), rtol=0, atol=1e-5)
    # Token 1 is one column to the right of token 0: the first half of D knows, the second does not.
    table = grid_positions(48, 6)[0]
    assert not torch.equal(table[0, :24], table[1, :24])
    assert torch.equal(table[0, 24:], table[1, 24:])


# Behaviour.


def test_a_fresh_model_says_zero_and_learns(inputs):
    model = DiT.from_preset("tiny/2")
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), torch.zeros(4, 1, 8, 8))
    F.mse_loss(model(x, t, y), x).backward()
    assert model.final_layer.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("DiT")])
def test_small_presets_run(name, randomised, inputs):
    model = randomised(DiT.from_preset(name))
    x, t, y = inputs(model)
    assert model(x, t, y).shape == (4, model.out_channels, 8, 8)


def test_labels_and_times_matter_and_are_never_dropped(randomised, inputs):
    model = randomised(DiT.from_preset("tiny/2")).train()
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), model(x, t, y))
    assert not torch.equal(model(x, t, y), model(x, t, (y + 1) % 11))
    assert not torch.equal(model(x, t, y), model(x, (t + 1) % 1000, y))


def test_fractional_times_and_bfloat16(randomised, inputs):
    model = randomised(DiT.from_preset("tiny/2"))
    x, t, y = inputs(model)
    expected = model(x, t, y)
    assert torch.equal(model(x, t.float(), y), expected)
    low = model.to(torch.bfloat16)(x.bfloat16(), t, y)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).norm() < 2e-2 * expected.norm()


def test_gradient_checkpointing_changes_nothing(randomised, inputs):
    model = randomised(DiT.from_preset("tiny/2"))
    x, t, y = inputs(model)

    def gradients():
        model.zero_grad()
        model(x, t, y).square().mean().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]

    plain = gradients()
    calls = []

    def counting(block, *arguments):
        calls.append(block)
        return torch.utils.checkpoint.checkpoint(block, *arguments, use_reentrant=False)

    model.enable_gradient_checkpointing(counting)
    assert model.is_gradient_checkpointing
    assert all(torch.equal(one, other) for one, other in zip(gradients(), plain, strict=True))
    assert calls == list(model.blocks)
    with torch.no_grad():
        model(x, t, y)
    assert len(calls) == 2
    model.disable_gradient_checkpointing()
    gradients()
    assert len(calls) == 2


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 4, 4), (2, 1, 8, 4), (1, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    model = DiT.from_preset("tiny/2")
    with pytest.raises(ValueError, match=r"this DiT reads \[B, 1, 8, 8\]"):
        model(torch.zeros(shape), torch.zeros(2), torch.zeros(2, dtype=torch.long))
