"""The extractor that a command line asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from kindgene.evaluation.features import Extractor

EXTRACTORS = ("digits", "glyphs", "inception", "dinov2")

_PANEL = "Features"
Name = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(EXTRACTORS)}; one of the first two, if not given.", rich_help_panel=_PANEL),
]
InceptionWeights = Annotated[
    Path | None,
    typer.Option(help="File pt_inception-2015-12-05-6726825d.pth, or as safetensors.", rich_help_panel=_PANEL),
]
Dino = Annotated[str | None, typer.Option(help="Folder or Hub id of a DINOv2.", rich_help_panel=_PANEL)]


def name_of(name: str | None, inception_weights: Path | None, dino: str | None, data: str) -> str:
    """The extractor meant; of neither name nor weights, the network that goes with the embedded `data`.

    Raises ValueError for an unknown name, weights that are missing or of another extractor, and where it cannot be
    known which is meant.
    """
    from kindgene.data.named import NAMES

    given = [one for one, value in (("inception", inception_weights), ("dinov2", dino)) if value is not None]
    option = {"inception": "--inception-weights", "dinov2": "--dino"}
    if name is None and len(given) == 1:
        return given[0]
    if name is None and not given:
        if data not in NAMES:
            raise ValueError(f"give an --extractor to see {data} with: inception or dinov2 for photographs")
        return "digits" if data == "digits" else "glyphs"
    if name is not None and name not in EXTRACTORS:
        raise ValueError(f"no extractor {name!r}; there are {', '.join(EXTRACTORS)}")
    extra = [one for one in given if one != name]
    if extra:
        raise ValueError(f"{option[extra[0]]} is for --extractor {extra[0]}, and {name or given[0]} was asked for")
    if name in option and not given:
        raise ValueError(f"--extractor {name} needs {option[name]}: its weights come with no package")
    assert name is not None
    return name


def load(
    name: str, inception_weights: Path | None, dino: str | None, image_size: int, device: torch.device
) -> Extractor:
    """The extractor `name_of` has named, for images of that size, on the device; a network is trained if need be."""
    from kindgene.evaluation.dino import load_dino
    from kindgene.evaluation.learned import network_extractor
    from kindgene.progress import RichProgress

    if name == "inception":
        assert inception_weights is not None, "name_of said so"
        return load_inception(inception_weights, device)
    if name == "dinov2":
        assert dino is not None, "name_of said so"
        return load_dino(dino, device)
    progress = RichProgress(f"training the {name} extractor")
    return network_extractor(name, image_size, device=device, progress=progress)  # type: ignore[arg-type]  # one of two


def load_inception(path: Path, device: torch.device) -> Extractor:
    """Inception with the weights of a file: .safetensors, or a .pth that holds tensors alone.

    Raises ValueError naming the file and its hash for any other weights.
    """
    from kindgene.evaluation.inception import FILE, inception_of
    from kindgene.interop.checkpoint import open_weights

    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; give --inception-weights the path of {FILE}, which pytorch-fid and "
            "torch-fidelity publish"
        )
    weights, _ = open_weights(path)
    return inception_of(weights, path, device)
