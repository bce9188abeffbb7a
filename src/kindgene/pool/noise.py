"""What is logged because torchao is imported, which tells users of kindgene nothing; it needs logging alone.

diffusers imports torchao wherever that is installed, so the command line keeps this up from its very start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOISE = {
    "torchao": "Failed to load ",  # kernels of other machines
    "torch.utils._pytree": "<enum '",  # a note to torchao's authors
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor",  # for loading, not used here
}
"""Logger -> how such a message begins."""


@contextmanager
def without_torchao_noise() -> Iterator[None]:
    """Keeps NOISE out of the log, and nothing else."""
    filters = {name: _is_not(beginning) for name, beginning in NOISE.items()}
    for name, one in filters.items():
        logging.getLogger(name).addFilter(one)
    try:
        yield
    finally:
        for name, one in filters.items():
            logging.getLogger(name).removeFilter(one)


def _is_not(beginning: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not record.getMessage().startswith(beginning)
