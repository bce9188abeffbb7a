"""``--set KEY=VALUE``: any setting of a run that has no option of its own, typed as its owner declares it."""

from __future__ import annotations

import collections.abc
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kindgene.recipes import Part

# What follows from the data, from a pool, or is only for modules that are no DiT.
_NOT_CHOSEN: Mapping[Part, tuple[str, ...]] = {
    "data": ("latents",),
    "model": ("num_classes", "class_names", "in_channels", "input_size", "low_rank"),
    "kind": ("num_classes", "fused", "class_rows", "label_argument"),
    "train": (),
}
_TRUTH = {"true": True, "false": False}


@cache
def settings() -> dict[Part, dict[str, Any]]:
    """The types of all settings that can be chosen, by part and name."""
    from kindgene.core.config import KindConfig
    from kindgene.models.dit import DiT
    from kindgene.recipes import DataSettings
    from kindgene.training.config import TrainConfig

    found: dict[Part, dict[str, Any]] = {
        "data": get_type_hints(DataSettings),
        "model": get_type_hints(DiT.__init__),
        "kind": get_type_hints(KindConfig),
        "train": get_type_hints(TrainConfig),
    }
    return {
        part: {name: hint for name, hint in hints.items() if name != "return" and name not in _NOT_CHOSEN[part]}
        for part, hints in found.items()
    }


def assignments(texts: Iterable[str], options: Mapping[str, str]) -> dict[Part, dict[str, Any]]:
    """``["weight_decay=0.01", "model.schedule=cosine"]`` as values by part and name.

    `options`: settings (``train.steps``) that have an option of their own, with its name. Raises ValueError for a text
    that is no assignment, a key that is not there (with the nearest), in two parts, has an option, or is set twice,
    and for a value of another type.
    """
    chosen: dict[Part, dict[str, Any]] = {part: {} for part in settings()}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(f"--set takes KEY=VALUE, got {text!r}")
        part, name = _find(key)
        option = options.get(f"{part}.{name}")
        if option is not None:
            raise ValueError(f"--set {key}: it has an option of its own, {option}")
        if name in chosen[part]:
            raise ValueError(f"--set {key} is given twice")
        chosen[part][name] = _value(key, value.strip(), settings()[part][name])
    return chosen


def _find(key: str) -> tuple[Part, str]:
    """The part and name that a key means: ``weight_decay``, or ``train.weight_decay``."""
    prefix, dot, rest = key.partition(".")
    parts = [part for part, names in settings().items() if (rest in names if dot else key in names)]
    if dot:
        parts = [part for part in parts if part == prefix]
    if len(parts) == 1:
        return parts[0], rest if dot else key
    if parts:
        raise ValueError(f"--set {key}: say which, {' or '.join(f'{part}.{key}' for part in parts)}")
    known = [name for names in settings().values() for name in names]
    known += [f"{part}.{name}" for part, names in settings().items() for name in names]
    near = difflib.get_close_matches(key, known, n=3)
    raise ValueError(f"--set {key}: there is no such setting" + (f"; nearest: {', '.join(near)}" if near else ""))


def _value(key: str, text: str, hint: Any) -> Any:
    for one in _choices(hint, text):
        try:
            return _parsed(text, one)
        except ValueError:
            continue
    raise ValueError(f"--set {key} takes {_told(hint)}, got {text!r}")


def _choices(hint: Any, text: str) -> list[Any]:
    """The types that a value may have, in the order in which they are tried: a list before a text that has commas."""
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    choices = [one for part in get_args(hint) for one in _choices(part, text)]
    return sorted(choices, key=lambda one: 1 if one is str and "," in text else 0)


def _parsed(text: str, hint: Any) -> Any:
    """`text` as a value of one type. Raises ValueError where it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return _one_of(text.lower(), {"none": None})
    if hint is bool:
        return _one_of(text.lower(), _TRUTH)
    if hint in (int, float):
        return hint(text)
    if hint is str:
        return text
    if origin is Literal:
        return _one_of(text, {str(value): value for value in arguments})
    if origin is collections.abc.Mapping:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    assert origin in (tuple, collections.abc.Sequence), f"a setting of type {hint} cannot be written"
    parts = [part.strip() for part in text.split(",")] if text else []
    endless = origin is not tuple or arguments[-1] is Ellipsis
    if not endless and len(parts) != len(arguments):
        raise ValueError(text)
    kinds = [arguments[0]] * len(parts) if endless else arguments
    return tuple(_parsed(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _one_of(text: str, values: Mapping[str, Any]) -> Any:
    if text not in values:
        raise ValueError(text)
    return values[text]


def _told(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_told, arguments)))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is collections.abc.Mapping:
        return "a JSON object"
    if origin in (tuple, collections.abc.Sequence):
        return "values with commas between them"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return words[hint]
