"""Real handwritten digits, embedded in a dependency: nothing is downloaded.

Source: the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI), as shipped
with scikit-learn: 1,797 images of 8x8 pixels, each 0 to 16, of 13 people.
"""

import sklearn.datasets
import torch

from kindgene.data.arrays import ArrayDataset

_BRIGHTEST = 16.0


def load_digits() -> ArrayDataset:
    """All 1,797 digits: images float32 [1797, 1, 8, 8] in [-1, 1], classes "0" to "9"."""
    digits = sklearn.datasets.load_digits()
    images = torch.from_numpy(digits.images).to(torch.float32).unsqueeze(1) * (2.0 / _BRIGHTEST) - 1.0
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return ArrayDataset(images, labels, tuple(str(name) for name in digits.target_names))
