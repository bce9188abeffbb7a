"""Images without a class, which train what all classes share: said once, since a wrong label can make them by mistake.

Shapes: N images.
"""

import logging
from collections.abc import Sequence

from torch import Tensor

_logger = logging.getLogger(__name__)


def tell_classless(labels: Tensor, class_names: Sequence[str], origin: str, why: str) -> None:
    """Says in one line, if any, how many of the labels (int64 [N]) name no class; `why`: what made them so."""
    count = int((labels == len(class_names)).sum())
    if count:
        _logger.warning("%s images of %s %s: they train without class", f"{count:,}", origin, why)
