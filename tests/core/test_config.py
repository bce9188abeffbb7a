"""`KindConfig`: what it holds, what it refuses, and how ranks are worked out."""

import json
from dataclasses import FrozenInstanceError

import pytest

from kindgene.core.config import KindConfig, resolve_rank


def config(**options):
    return KindConfig(**{"num_classes": 3, "learngene_rank": 4, "tailor_rank": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"num_classes": -2}, "num_classes must be a whole number of at least 1, got -2"),
        ({"num_classes": True}, "num_classes must be a whole number of at least 1, got True"),
        ({"num_classes": 3.0}, r"num_classes must be a whole number of at least 1, got 3\.0"),
        ({"init": "zero"}, "init must be 'random', 'svd' or None, got 'zero'"),
        ({"gate_map": [0, 1]}, "gate_map must name a tailor for each of 3 classes, got 2"),
        ({"gate_map": []}, "gate_map must name a tailor for each of 3 classes, got 0"),
        ({"gate_map": [0, 2, 2]}, r"gate_map must number the tailors 0, 1, 2, \.\.\. without a gap"),
        ({"gate_map": [1, 2, 3]}, r"gate_map must number the tailors 0, 1, 2, \.\.\. without a gap"),
        ({"gate_map": [0, -1, 1]}, r"gate_map must number the tailors 0, 1, 2, \.\.\. without a gap"),
        ({"gate_map": [0, 1.0, 2]}, r"gate_map must number the tailors 0, 1, 2, \.\.\. without a gap"),
        ({"gate_map": [False, True, True]}, r"gate_map must number the tailors 0, 1, 2, \.\.\. without a gap"),
        ({"targets": []}, "targets must name at least one pattern, or be 'paper' or 'paper.adaln'"),
        ({"targets": ""}, "targets must name at least one pattern, or be 'paper' or 'paper.adaln'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        config(**options)


def test_every_class_has_a_tailor_of_its_own_unless_the_map_says_otherwise():
    assert config().tailor_of == [0, 1, 2]
    assert config(gate_map=(1, 0, 1)).tailor_of == [1, 0, 1]


def test_a_configuration_is_plain_data_and_does_not_change():
    options = {"tailor_rank": {"*.qkv": [1, 2, 3], "*": 0.5}, "targets": ["*"], "fused": {"*.qkv": 3}}
    options |= {"class_rows": ["table"], "label_argument": "y", "gate_map": [0, 0, 1], "init": "svd"}
    made = config(**options)
    read = json.loads(json.dumps(made.to_dict()))
    assert read == {"num_classes": 3, "learngene_rank": 4, **options}
    assert KindConfig(**read) == made
    with pytest.raises(FrozenInstanceError):
        made.num_classes = 4


@pytest.mark.parametrize(
    ("rank", "parts", "ranks"),
    [
        (4, 1, (4,)),
        (4, 3, (4, 4, 4)),
        ([1, 2, 3], 3, (1, 2, 3)),
        ((8,), 1, (8,)),
        (0.25, 2, (2, 2)),
        (0.99, 1, (8,)),
        (0.01, 1, (1,)),  # never nothing
        (8, 1, (8,)),
    ],
)
def test_ranks_are_numbers_shares_of_the_width_or_one_a_part(rank, parts, ranks):
    assert resolve_rank(rank, parts, 8, what="tailor_rank", name="blocks.0.q") == ranks


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "tailor_rank must be at least 1, got 0 for blocks.0.q"),
        (-1, "tailor_rank must be at least 1, got -1 for blocks.0.q"),
        (True, "tailor_rank must be at least 1, got True for blocks.0.q"),
        (None, "tailor_rank must be at least 1, got None for blocks.0.q"),
        (9, r"tailor_rank 9 is more than blocks.0.q can have: at most min\(in, out\) = 8"),
        ([2, 0], "tailor_rank must be at least 1, got 0 for blocks.0.q"),
        ([2, 9], r"tailor_rank 9 is more than blocks.0.q can have: at most min\(in, out\) = 8"),
        ([2, 2.5], "tailor_rank must be at least 1, got 2.5 for blocks.0.q"),
        ([2], "tailor_rank of blocks.0.q has 1 entries for 2 parts"),
        (0.0, "tailor_rank as a share of the width must lie between 0 and 1, got 0.0 for blocks.0.q"),
        (1.0, "tailor_rank as a share of the width must lie between 0 and 1, got 1.0 for blocks.0.q"),
        (-0.5, "tailor_rank as a share of the width must lie between 0 and 1, got -0.5 for blocks.0.q"),
        (float("nan"), "tailor_rank as a share of the width must lie between 0 and 1, got nan for blocks.0.q"),
    ],
)
def test_impossible_ranks_are_refused_naming_the_layer(rank, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        resolve_rank(rank, 2, 8, what="tailor_rank", name="blocks.0.q")
