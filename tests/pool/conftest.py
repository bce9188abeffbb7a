"""Tiny models of every backbone that pools rebuild, pools of them on disk, and a disk that fails when told to."""

import copy
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn
from transformers import ViTConfig, ViTModel

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT

NAMES = ("cat", "Cat", "../../x", "\u00e9", "e\u0301")
BATCH = 6
SCALE = 0.15  # larger weights make the plain dense models miss 2e-2 in bfloat16


@dataclass(frozen=True)
class Backbone:
    """A row of the table: how a tiny one is built, called (plain or decomposable), and which targets it has."""

    name: str
    build: Callable[[int], nn.Module]
    call: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    targets: str


def build_dit(classes):
    size = {"input_size": 4, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "depth": 1, "num_heads": 2}
    return DiT(**size, mlp_ratio=2.0, num_classes=classes, learn_sigma=False)


def build_diffusers(classes):
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "norm_num_groups": 1}
    shape = {"in_channels": 1, "out_channels": 1, "sample_size": 4, "patch_size": 2}
    return DiTTransformer2DModel(**heads, **shape, num_embeds_ada_norm=classes)


def build_vit(classes):
    heads = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": {index: f"secret-{index}" for index in range(classes)}}
    config = ViTConfig(**heads, **names, image_size=4, patch_size=2, num_channels=1)
    return ViTModel(config, add_pooling_layer=False)


def call_vit(model, x, t, y):
    if isinstance(model, Decomposable):
        with model.gate(y):
            return model(pixel_values=x).last_hidden_state
    return model(pixel_values=x).last_hidden_state


TABLE = (
    Backbone("DiT", build_dit, lambda model, x, t, y: model(x, t, y), "paper+adaln"),
    Backbone(
        "DiTTransformer2DModel",
        build_diffusers,
        lambda model, x, t, y: model(x, timestep=t, class_labels=y).sample,
        "paper+adaln",
    ),
    Backbone("ViTModel", build_vit, call_vit, "paper"),
)
BOUNDS = {
    torch.float64: (torch.float64, 1e-10),
    torch.float32: (torch.float64, 1e-5),
    torch.bfloat16: (torch.float32, 2e-2),
}


@dataclass(frozen=True)
class Case:
    """A backbone in a dtype, with what its outputs are held against."""

    backbone: Backbone
    dtype: torch.dtype

    @property
    def bound(self):
        """How far, relative to the output's norm, this dtype may be off."""
        return BOUNDS[self.dtype][1]

    def dense(self, classes=5):
        """A dense backbone none of whose numbers is zero."""
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.backbone.build(classes)
        with torch.no_grad():
            for value in module.parameters():
                value.copy_(SCALE * torch.randn(value.shape, generator=generator))
        return nn.Module.to(module, self.dtype).eval()

    def model(self, classes=5, **options):
        """A decomposable model whose components are all random."""
        settings = {"learngene_rank": 4, "tailor_rank": 4, "targets": self.backbone.targets, "init": "random"}
        kind = KindConfig(num_classes=classes, **{**settings, **options})
        return make_decomposable(self.dense(classes), kind, torch.Generator().manual_seed(1))

    def run(self, model, labels):
        """Outputs for one label a sample, in the model's own dtype; plain models of one class are given zeros."""
        generator = torch.Generator().manual_seed(2)
        dtype = next(value.dtype for value in model.parameters())
        x = torch.randn(BATCH, 1, 4, 4, generator=generator).to(dtype)
        assert len(labels) == BATCH
        return self.backbone.call(model, x, torch.arange(BATCH) * 150, torch.tensor(labels))

    def reference(self, model, labels):
        """The outputs to be met: the same model in the reference dtype."""
        with torch.no_grad():
            return self.run(nn.Module.to(copy.deepcopy(model), BOUNDS[self.dtype][0]), labels)

    def check(self, found, expected):
        """Fails unless the two agree within the bound of the dtype, relative to the norm of the output."""
        error = ((found.to(expected.dtype) - expected).norm() / expected.norm()).item()
        assert error <= self.bound


@pytest.fixture(scope="session")
def table():
    """The whole table, by name."""
    return {row.name: row for row in TABLE}


@pytest.fixture(params=TABLE, ids=lambda row: row.name)
def backbone(request):
    """Each row of the table."""
    return request.param


@pytest.fixture(params=BOUNDS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def case(request, backbone):
    """Each row of the table in each dtype."""
    return Case(backbone, request.param)


@pytest.fixture
def double(backbone):
    """Each row of the table in float64, for what does not depend on the dtype."""
    return Case(backbone, torch.float64)


@pytest.fixture(scope="session")
def dit():
    """Our DiT in float64, for what does not depend on the backbone."""
    return Case(TABLE[0], torch.float64)


@pytest.fixture(scope="session")
def case_of():
    """A row of the table in a dtype of the test's own choice."""
    return Case


@pytest.fixture(scope="session")
def names():
    """Names of five classes that differ in case and in Unicode form only, or are no good as file names."""
    return NAMES


@pytest.fixture(scope="session")
def saved(dit, names, tmp_path_factory):
    """A pool of five classes on disk, to be read only."""
    with torch.no_grad():
        pool = dit.model().decompose(names, provenance={"recipe": "tiny", "steps": 123})
        return pool.save_pretrained(tmp_path_factory.mktemp("saved") / "pool")


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """No flush reaches the disk here: they take most of the time, and only a power cut could tell."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def pool_folder(saved, tmp_path):
    """A pool of five classes on disk, to be written to."""
    return Path(shutil.copytree(saved, tmp_path / "pool"))


@pytest.fixture
def scatter():
    """Makes every number of a model's tailors and label rows random, in place."""

    def fill(model, seed=5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for table in model.bank.tables.values():
                table.rows.copy_(2 * SCALE * torch.randn(table.rows.shape, generator=generator))
        return model

    return fill


@pytest.fixture
def content():
    """What a folder holds: path -> bytes of every file but the lock."""

    def read(folder):
        files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != ".lock")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


class _FullFile(io.FileIO):
    """A file whose failing write gets half its bytes onto the disk."""

    def __init__(self, path, mode, gate):
        super().__init__(path, mode)
        self.gate = gate

    def write(self, data):
        if self.gate():
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def full_disk():
    """`with full_disk(n, lasting) as hits: ...`: the n-th write, rename, flush, new file or new folder fails with
    "No space left on device"; with `lasting` all later ones fail too. `hits` lists the calls that failed.
    """

    @contextmanager
    def failing(call, lasting):
        calls, hits = [], []

        def gate(name):
            calls.append(name)
            if len(calls) == call or (lasting and len(calls) > call):
                hits.append(name)
                return True
            return False

        def guarded(name, real):
            def wrapper(*args, **kwargs):
                if gate(name):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*args, **kwargs)

            return wrapper

        real_open = Path.open

        def opened(path, mode="r", *args, **kwargs):
            if "w" in mode:
                return io.BufferedWriter(_FullFile(path, mode.replace("b", ""), lambda: gate("write")))
            return real_open(path, mode, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", opened)
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (tempfile, "mkstemp")):
                patch.setattr(owner, name, guarded(name, getattr(owner, name)))
            yield hits

    return failing
