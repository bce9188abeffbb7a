"""kindgene: transformers pre-trained once and taken apart for every deployment (KIND, ICML 2025).

The public API, nothing else. Names are imported when they are first used (PEP 562), so that neither torch nor
diffusers is loaded by ``import kindgene`` or by ``kindgene --help``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kindgene._version import __version__

if TYPE_CHECKING:
    from kindgene.core.config import KindConfig as KindConfig
    from kindgene.core.convert import make_decomposable as make_decomposable
    from kindgene.core.decomposable import Decomposable as Decomposable
    from kindgene.data.arrays import ArrayDataset as ArrayDataset
    from kindgene.data.dataset import Dataset as Dataset
    from kindgene.data.digits import load_digits as load_digits
    from kindgene.data.folder import load_folder as load_folder
    from kindgene.data.glyphs import load_glyphs as load_glyphs
    from kindgene.data.huggingface import load_hf as load_hf
    from kindgene.data.latents import load_latents as load_latents
    from kindgene.data.npz import load_npz as load_npz
    from kindgene.data.shifts import load_shift as load_shift
    from kindgene.diffusion.path import DiffusionPath as DiffusionPath
    from kindgene.diffusion.sampler import sample as sample
    from kindgene.models.dit import DiT as DiT
    from kindgene.pipeline import KindPipeline as KindPipeline
    from kindgene.pool.plan import Plan as Plan
    from kindgene.pool.pool import Pool as Pool
    from kindgene.training.config import TrainConfig as TrainConfig
    from kindgene.training.trainer import train as train

_HOME = {
    "ArrayDataset": "kindgene.data.arrays",
    "Dataset": "kindgene.data.dataset",
    "Decomposable": "kindgene.core.decomposable",
    "DiT": "kindgene.models.dit",
    "DiffusionPath": "kindgene.diffusion.path",
    "KindConfig": "kindgene.core.config",
    "KindPipeline": "kindgene.pipeline",
    "Plan": "kindgene.pool.plan",
    "Pool": "kindgene.pool.pool",
    "TrainConfig": "kindgene.training.config",
    "load_digits": "kindgene.data.digits",
    "load_folder": "kindgene.data.folder",
    "load_glyphs": "kindgene.data.glyphs",
    "load_hf": "kindgene.data.huggingface",
    "load_latents": "kindgene.data.latents",
    "load_npz": "kindgene.data.npz",
    "load_shift": "kindgene.data.shifts",
    "make_decomposable": "kindgene.core.convert",
    "sample": "kindgene.diffusion.sampler",
    "train": "kindgene.training.trainer",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kindgene' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
