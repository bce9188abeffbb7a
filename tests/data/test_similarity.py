"""What is measured as alike: the same letter in another script, size or under an accent."""

import numpy as np

from kindgene.data.similarity import similarities

TEXT = "AΑАᴬÀOО0o.■BHmЖ→"


def similar(matrix: np.ndarray, one: str, other: str) -> float:
    return float(matrix[TEXT.index(one), TEXT.index(other)])


def test_similarity_tells_look_alikes() -> None:
    matrix = similarities([ord(character) for character in TEXT])
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(np.diag(matrix), np.ones(len(TEXT)))
    assert matrix.max() == 1.0
    assert similar(matrix, "A", "Α") > 0.99  # Greek; a mono face differs
    assert similar(matrix, "A", "А") > 0.99  # Cyrillic
    assert similar(matrix, "O", "О") > 0.99
    assert similar(matrix, "A", "ᴬ") > 0.95  # superscript
    assert similar(matrix, ".", "■") > 0.9
    assert similar(matrix, "A", "À") > 0.8  # found by shrinking alone
    assert similar(matrix, "O", "0") > similar(matrix, "O", "B") > similar(matrix, "O", "→")
    for other in "OBHmЖ→":
        assert similar(matrix, "A", other) < 0.75


def test_similarity_does_not_depend_on_the_order() -> None:
    """Bit for bit, although sums are then taken in other orders: the products are whole numbers."""
    points = [ord(character) for character in TEXT]
    order = np.array([5, 3, 12, 0, 7, 15, 1, 9, 2, 14, 4, 6, 13, 8, 11, 10])
    shuffled = similarities([points[index] for index in order])
    assert np.array_equal(shuffled, similarities(points)[np.ix_(order, order)])
    few = similarities(points[:3])
    assert np.array_equal(few, similarities(points)[:3, :3])
