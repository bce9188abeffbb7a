"""config.json: what is written comes back, and whatever is wrong in it is named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene._version import __version__
from kindgene.pool.classes import ClassEntry, compact_ranks
from kindgene.pool.config import FORMAT_VERSION, PoolConfig
from kindgene.pool.names import tailor_file

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(str.strip)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(TEXTS, PLAIN, max_size=4)


@st.composite
def configs(draw):
    """Configs such as pools write: tailors of any rank, some shared by several classes."""
    ranks = draw(
        st.dictionaries(TEXTS, st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    )
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    digests = iter(draw(st.lists(DIGESTS, min_size=6, max_size=6, unique_by=lambda text: text[:16])))
    classes = {}
    while len(classes) < len(names):
        left = names[len(classes) :]
        members = left[: draw(st.integers(1, len(left)))]
        tailor_ranks = draw(
            st.integers(1, 99)
            | st.fixed_dictionaries({target: st.tuples(*[st.integers(1, 9)] * len(r)) for target, r in ranks.items()})
        )
        digest = next(digests)
        for row, name in enumerate(members):
            classes[name] = ClassEntry(tailor_file(members, digest), digest, tailor_ranks, row)
    return PoolConfig(
        backbone=draw(st.sampled_from(["DiT", "ViTModel", "my.own_module.Net2"])),
        backbone_config=draw(RECORDS),
        ranks=ranks,
        label_tables=tuple(draw(st.lists(TEXTS, max_size=2, unique=True))),
        label_argument=draw(st.sampled_from(["y", ""])),
        learngene_id=draw(DIGESTS),
        learngene_sha256=draw(DIGESTS),
        weights=draw(st.sampled_from(["raw", "ema"])),
        classes=classes,
        generation=draw(st.integers(0)),
        provenance=draw(RECORDS),
    )


@given(configs())
@settings(max_examples=50)
def test_what_is_written_comes_back(config):
    text = json.dumps(config.to_json(), ensure_ascii=False, allow_nan=False)
    back = PoolConfig.from_json(json.loads(text), "config.json")
    assert back == config
    assert list(back.classes) == list(config.classes)
    for name, entry in config.classes.items():
        assert config.members(entry.file)[entry.row] == name
        assert {t: len(r) for t, r in config.tailor_ranks_of(name).items()} == {
            t: len(r) for t, r in config.ranks.items()
        }


@pytest.fixture
def config():
    ranks = {"qkv": (3, 3, 2), "proj": (4,)}
    a, b = "a" * 64, "b" * 64
    shared = tailor_file(["cat", "dog"], a)
    classes = {
        "cat": ClassEntry(shared, a, 2, 0),
        "tench": ClassEntry(tailor_file(["tench"], b), b, {"qkv": (1, 2, 3), "proj": (1,)}, 0),
        "dog": ClassEntry(shared, a, 2, 1),
    }
    return PoolConfig(
        backbone="DiT",
        backbone_config={"depth": 1},
        ranks=ranks,
        label_tables=("table",),
        label_argument="y",
        learngene_id="c" * 64,
        learngene_sha256="d" * 64,
        weights="ema",
        classes=classes,
        generation=7,
    )


@pytest.fixture
def written(config):
    return json.loads(json.dumps(config.to_json()))


def test_the_file_says_who_wrote_it_and_what_null_is(written):
    assert written["format"] == "kindgene-pool"
    assert written["format_version"] == FORMAT_VERSION
    assert written["library_version"] == __version__
    assert written["null_label"] == 3
    assert written["classes"]["dog"] == {
        "file": "tailors/aa/cat-aaaaaaaaaaaaaaaa.safetensors",
        "sha256": "a" * 64,
        "tailor_ranks": 2,
        "row": 1,
    }


def test_ranks_members_and_the_next_generation(config):
    assert config.tailor_ranks_of("cat") == {"qkv": (2, 2, 2), "proj": (2,)}
    assert config.tailor_ranks_of("tench") == {"qkv": (1, 2, 3), "proj": (1,)}
    assert config.members(config.classes["dog"].file) == ("cat", "dog")
    after = config.with_classes({"tench": config.classes["tench"]})
    assert after == replace(config, classes={"tench": config.classes["tench"]}, generation=8)
    assert compact_ranks({"qkv": (2, 2, 2), "proj": (2,)}) == 2
    assert compact_ranks({"qkv": (2, 2, 2), "proj": (1,)}) == {"qkv": (2, 2, 2), "proj": (1,)}


@pytest.mark.parametrize("value", [None, [], "text", 3, {}, {"format": "another"}])
def test_another_file_is_no_config(value):
    with pytest.raises(ValueError, match="here is not a pool's config"):
        PoolConfig.from_json(value, "here")


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 99])
def test_another_format_version_says_what_to_install(written, version):
    with pytest.raises(ValueError, match=rf"here: .*format version {version}, .* reads {FORMAT_VERSION}; install"):
        PoolConfig.from_json({**written, "format_version": version}, "here")


WRONG = {
    "format_version": ["1", 1.0, True, None],
    "backbone": [3, None, "", "a b", "x]\n---", "../x"],
    "backbone_config": [[], "x", None],
    "ranks": [[], {}, {"qkv": 3}, {"qkv": []}, {"qkv": [0]}, {"qkv": [-1]}, {"qkv": [True]}, {"qkv": [1.5]}],
    "label_tables": ["table", [3], None, ["table", "table"]],
    "label_argument": [None, 0],
    "learngene_id": ["", "c" * 63, "C" * 64, "c" * 64 + "\n", 3],
    "learngene_sha256": ["", "g" * 64, None],
    "weights": ["best", "", 1],
    "classes": [[], "cat", {"": {}}, {"a\nb": {}}, {"cat": []}, {"cat": {}}],
    "generation": ["7", 7.5, None, True],
    "provenance": [[], None, "x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named(written, key, value):
    word = "class" if key == "classes" else key
    with pytest.raises(ValueError, match=rf"^here: .*{word}") as refused:
        PoolConfig.from_json({**written, key: value}, "here").classes.check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", list(WRONG))
def test_a_missing_value_is_named(written, key):
    del written[key]
    with pytest.raises(ValueError, match=f"^here: {key} is missing"):
        PoolConfig.from_json(written, "here").classes.check()


WRONG_ENTRY = {
    "file": [
        *("../x", "../../etc/passwd", "/etc/passwd", "tailors/../../x.safetensors", "C:\\x.safetensors", "", None),
        *("tailors/aa/../x-aaaaaaaaaaaaaaaa.safetensors", "tailors/aa/x.safetensors", "learngene.safetensors"),
        *("tailors/aa/x-aaaaaaaaaaaaaaaa.safetensors\n", "tailors\\aa\\x-aaaaaaaaaaaaaaaa.safetensors"),
    ],
    "sha256": ["", "x" * 64, None, 3],
    "tailor_ranks": [0, -1, True, "2", None, 1.5, {}, {"qkv": [1, 1, 1]}, {"qkv": [1], "proj": [1]}],
    "row": ["0", None, True, 5, -1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_ENTRY.items() for value in values])
def test_a_wrong_value_of_a_class_is_named(written, key, value):
    written["classes"]["tench"][key] = value
    with pytest.raises(ValueError, match=r"^here: ") as refused:
        PoolConfig.from_json(written, "here").classes.check()
    assert "'tench'" in str(refused.value) or "rows" in str(refused.value)
    assert "\n" not in str(refused.value)
    del written["classes"]["tench"][key]
    with pytest.raises(ValueError, match=f"here: class 'tench': {key} is missing"):
        PoolConfig.from_json(written, "here").classes.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": 0}, "do not have the rows 0 to 1"),
        ({"sha256": "e" * 64}, "differ in its sha256 or tailor_ranks"),
        ({"tailor_ranks": 3}, "differ in its sha256 or tailor_ranks"),
    ],
)
def test_classes_of_one_file_must_agree(written, change, message):
    written["classes"]["dog"] |= change
    with pytest.raises(ValueError, match=f"here: .*cat-a.*{message}"):
        PoolConfig.from_json(written, "here").classes.check()
