"""The networks that come with the embedded data: trained once, by seed, and kept in the cache folder.

One learns the digits, one for each size all 611 superclasses of glyphs, base and novel: whatever part of them a model
was trained on, its samples are seen by the same eyes. A network's hash is part of every result, since another machine
or version trains another one: figures compare between runs that say the same hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import PIL
import torch
from safetensors import SafetensorError

from kindgene import files
from kindgene.data.arrays import ArrayDataset
from kindgene.data.cache import default_folder
from kindgene.data.digits import load_digits
from kindgene.data.faces import face_digests, freetype_version
from kindgene.data.glyphs import SIZES, Split, load_glyphs
from kindgene.data.superclasses import superclasses
from kindgene.evaluation.network import Network, NetworkExtractor, NetworkSettings, train_network
from kindgene.files import StrPath
from kindgene.progress import Progress

Learned = Literal["digits", "glyphs"]
LEARNED: tuple[Learned, ...] = get_args(Learned)

HELD_OUT_PER_CLASS = 20
_VERSION = 1  # of the network and its training; raised whenever its weights change
_METADATA = "kindgene"
_DIGITS_SIZE = 8
_LOG = logging.getLogger(__name__)

SETTINGS: dict[Learned, NetworkSettings] = {
    "digits": NetworkSettings(images_seen=60_000),
    "glyphs": NetworkSettings(images_seen=300_000, per_class=200),
}


def network_extractor(
    learned: Learned,
    image_size: int,
    *,
    cache: StrPath | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> NetworkExtractor:
    """The network that learned `learned`, for images of that size: from the folder `cache`, else trained and kept.

    digits have 8 pixels a side, glyphs 16 or 32. Raises ValueError for other names and sizes.
    """
    if learned not in LEARNED:
        raise ValueError(f"networks learn {' or '.join(LEARNED)}, not {learned!r}")
    sizes = (_DIGITS_SIZE,) if learned == "digits" else SIZES
    if image_size not in sizes:
        pixels = " or ".join(map(str, sizes))
        raise ValueError(f"the {learned} extractor takes images of {pixels} pixels a side, not {image_size}")
    identity = _identity(learned, image_size)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(default_folder() if cache is None else cache)
    file = folder / f"network-{learned}-{image_size}-{digest[:16]}.safetensors"
    extractor = _read(file, learned)
    if extractor is None:
        train, held_out = _data(learned, image_size, cache)
        extractor = train_network(train, held_out, SETTINGS[learned], learned=learned, device=device, progress=progress)
        _write(file, extractor)
    extractor.network.to(device)
    return extractor


def _data(learned: Learned, image_size: int, cache: StrPath | None) -> tuple[ArrayDataset, ArrayDataset]:
    """(to train on, held out): four fifths and one fifth of the digits; training and validation glyphs."""
    if learned == "digits":
        return load_digits().split(0.2, seed=0)
    return (
        _all_glyphs("train", image_size, SETTINGS[learned].per_class, cache),
        _all_glyphs("validation", image_size, HELD_OUT_PER_CLASS, cache),
    )


def _all_glyphs(split: Split, size: int, per_class: int | None, cache: StrPath | None) -> ArrayDataset:
    names = [one.name for one in superclasses()]
    return load_glyphs(split, names, size, per_class=per_class, cache=cache)


def _identity(learned: Learned, image_size: int) -> dict[str, Any]:
    """All that the weights depend on, but for rounding."""
    identity = {"version": _VERSION, "learned": learned, "size": image_size, "settings": asdict(SETTINGS[learned])}
    if learned == "digits":
        return identity
    classes = json.dumps([[one.name, *one.members] for one in superclasses()])
    return {
        **identity,
        "pillow": PIL.__version__,
        "freetype": freetype_version(),
        "faces": face_digests(),
        "classes": hashlib.sha256(classes.encode()).hexdigest(),
    }


def _write(file: Path, extractor: NetworkExtractor) -> None:
    facts = {
        "class_names": extractor.class_names,
        "image_size": extractor.image_size,
        "accuracy": extractor.accuracy,
        "train_count": extractor.train_count,
        "held_out_count": extractor.held_out_count,
        "sha256": extractor.sha256,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_safetensors(file, extractor.network.state_dict(), {_METADATA: json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        _LOG.warning("%s cannot be written (%s), so this network is trained anew each time", file, error)


def _read(file: Path, learned: Learned) -> NetworkExtractor | None:
    """The network of a file; None where it is missing or damaged."""
    if not file.is_file():
        return None
    try:
        facts = json.loads(files.read_metadata(file)[_METADATA])
        network = Network(facts["image_size"], len(facts["class_names"]))
        network.load_state_dict(files.read_safetensors(file), strict=True)
    except (ValueError, KeyError, RuntimeError) as error:
        _LOG.warning("%s is damaged (%s), so this network is trained anew", file, " ".join(str(error).split()))
        return None
    extractor = NetworkExtractor(network, learned, facts)
    if extractor.sha256 != facts["sha256"]:
        _LOG.warning("%s is damaged (its hash is another), so this network is trained anew", file)
        return None
    return extractor
