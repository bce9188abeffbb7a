"""Labels as others store them, and what is said of names that are not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kindgene.data.labels import check_known, named_labels


@pytest.mark.parametrize(
    ("values", "names", "labels", "class_names"),
    [
        ([1, 0, 1], ["cat", "dog"], [1, 0, 1], ("cat", "dog")),
        ([1, -1, None, 2], ["cat", "dog"], [1, 2, 2, 2], ("cat", "dog")),
        ([7, 30, -1, 7, None], None, [0, 1, 2, 0, 2], ("7", "30")),
        (["dog", "cat", None, "dog"], None, [1, 0, 2, 1], ("cat", "dog")),
        (["dog", "cat"], ["dog", "cat", "cow"], [0, 1], ("dog", "cat", "cow")),
        ([True, False], None, [1, 0], ("False", "True")),
        ([None, -1], ["cat"], [1, 1], ("cat",)),
    ],
)
def test_labels_of_every_kind(
    values: list[object], names: list[str] | None, labels: list[int], class_names: tuple[str, ...]
) -> None:
    found, found_names = named_labels(values, names)
    assert (found.tolist(), found_names) == (labels, class_names)


@given(values=st.lists(st.integers(0, 30) | st.none(), min_size=1).filter(any))
def test_names_are_the_integers_that_occur(values: list[int | None]) -> None:
    labels, names = named_labels(values, None)
    assert [(*names, "none")[label] for label in labels] == [
        "none" if value is None else str(value) for value in values
    ]
    assert list(map(int, names)) == sorted({value for value in values if value is not None})


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, 3], ["cat", "dog"], "label 3 has no name; there are 2 class names"),
        ([0, -2], ["cat"], "label -2 has no name"),
        ([0, -2], None, "label -2 has no name"),
        (["cow"], ["cat"], "label 'cow' has no name"),
        ([0, "cat"], None, "integers or texts, all of one kind; found '0', 'cat'"),
        ([0.5], None, "integers or texts, all of one kind"),
        ([None, -1], None, "no image has a class"),
        ([""], None, "non-empty"),
        ([0], ["cat", "cat"], "more than once"),
    ],
)
def test_unfit_labels_are_refused(values: list[object], names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named_labels(values, names)


def test_the_nearest_names_are_told() -> None:
    check_known(["ant"], ["ant", "bee"], "data")
    with pytest.raises(ValueError, match="no class 'bees' in data; nearest: 'bee'"):
        check_known(["ant", "bees"], ["ant", "bee"], "data")
    with pytest.raises(ValueError, match="no class 'x' in data; nearest: 'ant', 'bee'"):
        check_known(["x"], ("ant", "bee"), "data")
