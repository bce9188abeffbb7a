"""Denoising at fixed noise: the validation loss against its definition, and calibration batches."""

import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.denoising import calibration_batches, noised_batches, validation_loss
from kindgene.models.dit import DiT

PATH = DiffusionPath(prediction="v")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return ArrayDataset(torch.rand(7, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(7) % 3, ("a", "b", "c"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    dit = DiT.from_preset("tiny/2", num_classes=3, prediction="v")
    torch.nn.init.normal_(dit.final_layer.linear.weight, std=0.3)
    return dit


def test_every_image_meets_one_timestep_of_every_span(images):
    batches = list(noised_batches(images, PATH, draws=5, batch_size=4, seed=3))
    t = torch.cat([batch.t for batch in batches])
    assert [len(batch.t) for batch in batches] == [4] * 8 + [3]
    assert torch.equal(t.view(7, 5) // 200, torch.arange(5).expand(7, 5))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels.repeat_interleave(5))
    for batch in batches:
        assert torch.equal(batch.x_t, PATH.add_noise(batch.x0, batch.noise, batch.t))


def test_the_loss_is_the_mean_over_all_of_them_whatever_the_batch(images, model):
    total = 0.0
    for batch in noised_batches(images, PATH, draws=3, batch_size=1, seed=5):
        with torch.no_grad():
            output = model(batch.x_t, batch.t, batch.labels)
        total += (output - PATH.target(batch.x0, batch.noise, batch.t)).square().mean().item()
    for size in (1, 4, 100):
        found = validation_loss(model, images, draws=3, batch_size=size, seed=5)
        assert found == pytest.approx(total / 21, rel=1e-5)
    assert validation_loss(model, images, draws=3, seed=6) != pytest.approx(total / 21, rel=1e-5)


def test_the_model_s_mode_is_left_alone_and_its_dtype_is_used(images, model):
    model.train()
    loss = validation_loss(model, images, draws=2)
    assert model.training
    half = validation_loss(torch.nn.Module.to(model, torch.bfloat16), images, draws=2)
    assert half == pytest.approx(loss, rel=2e-2)


def test_calibration_batches_are_what_the_model_is_called_with(images, model):
    batches = list(calibration_batches(images, PATH, count=5, batch_size=3, seed=1, dtype=torch.float64))
    assert len(batches) == 5
    for x, t, y in batches:
        assert (x.shape, x.dtype, t.shape, y.shape) == ((3, 1, 8, 8), torch.float64, (3,), (3,))
        assert model(x.float(), t, y).shape == x.shape
    again = list(calibration_batches(images, PATH, count=5, batch_size=3, seed=1, dtype=torch.float64))
    assert all(
        torch.equal(a, b) for one, other in zip(batches, again, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("numbers", [{"draws": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(images, model, numbers):
    with pytest.raises(ValueError, match="at least 1"):
        validation_loss(model, images, **numbers)
    with pytest.raises(ValueError, match="at least 1"):
        next(calibration_batches(images, PATH, count=numbers.get("draws", 1), batch_size=numbers.get("batch_size", 1)))
