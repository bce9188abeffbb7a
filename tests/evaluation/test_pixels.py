"""Layout and colour as features."""

import torch

from kindgene.evaluation.pixels import PixelExtractor


def test_pixels_are_means_of_parts():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., :8] = 255
    features = PixelExtractor()(image).pooled.view(3, 8, 8)
    assert torch.equal(features[:, :, :4], torch.ones(3, 8, 4))
    assert torch.equal(features[:, :, 4:], -torch.ones(3, 8, 4))
    assert PixelExtractor()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).pooled.shape == (2, PixelExtractor.dimension)
