"""The table of backbones that the guarantees are tested on, and a toy to test the parts with.

A new backbone gets the whole suite by adding a row to `TABLE`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable

CLASSES = 5
BATCH = 6


def _dit(depth):
    from kindgene.models.dit import DiT

    size = {"input_size": 4, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "depth": depth, "num_heads": 2}
    return DiT(**size, mlp_ratio=2.0, num_classes=CLASSES, learn_sigma=False)


def _diffusers_dit(depth):
    from diffusers import DiTTransformer2DModel

    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": depth, "norm_num_groups": 1}
    shape = {"in_channels": 1, "out_channels": 1, "sample_size": 4, "patch_size": 2}
    return DiTTransformer2DModel(**heads, **shape, num_embeds_ada_norm=CLASSES)


def _vit(depth):
    from transformers import ViTConfig, ViTModel

    heads = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(**heads, image_size=4, patch_size=2, num_channels=1), add_pooling_layer=False)


def _checkpoint_diffusers(model):
    model.enable_gradient_checkpointing()


def _checkpoint_transformers(model):
    how = {"use_reentrant": False, "context_fn": model.gate.checkpoint_contexts}
    enable = getattr(model.module, "activation_checkpointing_enable", None)  # the newer name
    if enable is not None:
        enable(activation_checkpointing_kwargs=how)
    else:
        model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


@dataclass(frozen=True)
class Backbone:
    """One row: how the module is built (of a depth) and called, and what of it is decomposed at which ranks.

    `arguments` makes the call's (args, kwargs) of images [B, 1, 4, 4], times [B] and labels; without `labelled` they
    hold no labels, and the gate is opened by hand. Some targets have ranks of their own: unequal parts of a fused
    matrix, and more components than a layer multiplies at once.
    """

    name: str
    dense: Callable[[int], nn.Module]
    arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    output: Callable[[Any], torch.Tensor]
    blocks: str
    targets: str
    learngene_rank: Any
    tailor_rank: Any
    checkpoint: Callable[[Any], None]
    labelled: bool = True

    def model(self, dtype=torch.float64, depth=2, seed=0, **options):
        """A decomposable model in which no weight is zero and no singular value one."""
        generator = torch.Generator().manual_seed(seed)
        dense = randomise(self.dense(depth), generator).to(dtype)
        settings = {"learngene_rank": self.learngene_rank, "tailor_rank": self.tailor_rank, "targets": self.targets}
        config = KindConfig(**{"num_classes": CLASSES, "init": "random", **settings, **options})
        return vary(make_decomposable(dense, config, generator), generator)

    def batch(self, dtype=torch.float64, count=BATCH):
        """Images and times of one batch."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
        return x.to(dtype), 150 * torch.arange(count)

    def run(self, model, batch, labels, rows=None, share=1.0):
        """The output of a decomposable model, or of a compiled one."""
        args, kwargs = self.arguments(*batch, labels)
        if self.labelled:
            return self.output(model(*args, **kwargs, rows=rows, learngene_share=share))
        with model.gate(labels, rows, share):
            return self.output(model(*args, **kwargs))

    def run_dense(self, module, batch, labels):
        """The output of a plain module."""
        args, kwargs = self.arguments(*batch, labels)
        return self.output(module(*args, **kwargs))


TABLE = (
    Backbone(
        name="DiT",
        dense=_dit,
        arguments=lambda x, t, y: ((x, t, y), {}),
        output=lambda found: found,
        blocks="blocks",
        targets="paper+adaln",
        learngene_rank={"*": 4, "blocks.0.attn.qkv": [2, 4, 3]},
        tailor_rank={"*": 2, "blocks.0.attn.qkv": [1, 3, 2], "blocks.0.mlp.fc1": 9},
        checkpoint=_checkpoint_diffusers,
    ),
    Backbone(
        name="diffusers",
        dense=_diffusers_dit,
        arguments=lambda x, t, y: ((x,), {"timestep": t, "class_labels": y, "return_dict": False}),
        output=lambda found: found[0],
        blocks="transformer_blocks",
        targets="paper+adaln",
        learngene_rank=4,
        tailor_rank={"*": 2, "transformer_blocks.0.ff.net.2": 9},
        checkpoint=_checkpoint_diffusers,
    ),
    Backbone(
        name="ViT",
        dense=_vit,
        arguments=lambda x, t, y: ((x,), {}),
        output=lambda found: found.last_hidden_state,
        blocks="layers",
        targets="paper",
        learngene_rank=0.25,
        tailor_rank={"*": 2, "layers.0.mlp.fc1": 9},
        checkpoint=_checkpoint_transformers,
        labelled=False,
    ),
)


@pytest.fixture(params=TABLE, ids=[row.name for row in TABLE])
def backbone(request):
    """Every backbone of the table in turn."""
    return request.param


@pytest.fixture
def dit():
    """Our own backbone alone, for what does not depend on the backbone."""
    return TABLE[0]


class Toy(nn.Module):
    """One gated matrix, one that stays plain, and a label table: [B, T, 6] -> [B, T, 4], or [B, 6] -> [B, 4]."""

    def __init__(self, rows=4, bias=True):
        super().__init__()
        self.table = nn.Embedding(rows, 6)
        self.first = nn.Linear(6, 8, bias=bias)
        self.last = nn.Linear(8, 4)
        self.weights_loaded = False

    def forward(self, x, y):
        c = self.table(y)
        return self.last(torch.tanh(self.first(x + (c if x.dim() == 2 else c.unsqueeze(1)))))


@pytest.fixture
def toy():
    """Builds a `Toy` of three classes."""
    return Toy


@pytest.fixture
def toy_model():
    """Builds a decomposable `Toy` in float64, of three classes: `toy_model(tailor_rank=3)`."""

    def build(dtype=torch.float64, rows=4, bias=True, **options):
        generator = torch.Generator().manual_seed(0)
        dense = randomise(Toy(rows, bias), generator).to(dtype)
        settings = {"num_classes": 3, "learngene_rank": 3, "tailor_rank": 2, "label_argument": "y", "init": "random"}
        settings |= {"targets": ["first"], "class_rows": ["table"]}
        return vary(make_decomposable(dense, KindConfig(**{**settings, **options}), generator), generator)

    return build


@torch.no_grad()
def randomise(module, generator):
    """Makes every trainable weight random, of a size that keeps activations about one."""
    for name, value in module.named_parameters():
        if value.requires_grad:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            is_norm = value.dim() == 1 and name.endswith("weight")
            fan_in = value[0].numel() if value.dim() > 1 else 100
            value.copy_(float(is_norm) + noise * fan_in**-0.5)
    return module


@torch.no_grad()
def vary(model, generator):
    """Moves every singular value away from one, so that a forgotten one shows."""
    singular = [layer.s for layer in model.layers.values()]
    pieces = model.bank.tailors.views(model.bank.tailors.rows)
    singular += [piece for name, piece in pieces.items() if name.endswith(".s")]
    for value in singular:
        value.mul_(1 + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model
