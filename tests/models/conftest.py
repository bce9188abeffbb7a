"""A DiT with no zero to hide behind, and something to give it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kindgene.models.dit import DiT


@pytest.fixture
def randomised() -> Callable[[DiT], DiT]:
    """Make every weight random, so that no path is closed by a zero. The fixed positions stay."""

    def randomise(model: DiT) -> DiT:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name != "pos_embed":
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        return model

    return randomise


@pytest.fixture
def inputs() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Images, timesteps and labels (the null label among them) that a model can read."""

    def make(model: DiT, batch: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        size, rows = model.config.input_size, model.y_embedder.embedding_table.num_embeddings
        x = torch.randn(batch, model.config.in_channels, size, size, generator=generator).to(dtype)
        t = torch.randint(0, 1000, (batch,), generator=generator)
        y = torch.randint(0, rows, (batch,), generator=generator)
        return x, t, y

    return make
