"""What a step costs is measured of models that stay as they were."""

import copy

import torch

from kindgene.models.dit import DiT
from kindgene.studies.training_costs import training_costs
from kindgene.training.config import TrainConfig

CONFIG = TrainConfig(steps=1, batch_size=4, learning_rate=1e-3, ema_decay=0.9)


def model():
    made = DiT(input_size=8, patch_size=4, in_channels=1, hidden_size=32, depth=2, num_heads=2, num_classes=3)
    return made.eval()


def test_frozen_weights_need_neither_gradients_nor_moments():
    whole, frozen = model(), model()
    frozen.blocks.requires_grad_(False)
    before = copy.deepcopy(whole.state_dict())
    found = training_costs({"whole": whole, "frozen": frozen}, (1, 8, 8), CONFIG, 3)
    assert set(found) == {"whole", "frozen"}
    assert all(one["step_seconds"] > 0 for one in found.values())
    numbers = sum(value.numel() for value in whole.blocks.parameters())
    # Float32: gradient, two moments and an average of each, and what backward of the frozen weights would have kept.
    assert found["whole"]["memory"] - found["frozen"]["memory"] >= 4 * 4 * numbers
    assert all(torch.equal(before[key], value) for key, value in whole.state_dict().items())
    assert not whole.training
    assert all(value.grad is None for value in whole.parameters())
