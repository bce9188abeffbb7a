"""The loss against an independent float64 computation, and what its gradients may and may not reach."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr

from kindgene.diffusion.loss import denoising_loss, discretized_log_likelihood, drop_labels, noise_batch
from kindgene.diffusion.path import DiffusionPath


def make_batch(path, seed=0, size=6, t=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (size, 2, 4, 4), generator=generator)
    levels[0, 0, 0, 0], levels[0, 0, 0, 1] = 0, 255
    x0 = (levels.to(dtype) / 127.5) - 1
    noise = torch.randn(x0.shape, generator=generator, dtype=dtype)
    if t is None:
        t = torch.randint(0, path.num_steps, (size,), generator=generator)
    channels = 4 if path.learned_sigma else 2
    error = torch.randn(size, channels, 4, 4, generator=generator, dtype=dtype)
    batch = noise_batch(path, x0, torch.zeros(size, dtype=torch.long), t, noise)
    output = 0.3 * error
    output[:, :2] += path.target(x0, noise, t)
    return batch, output


def bits_by_hand(path, output, batch):
    """The bound in numpy, from the betas alone: KL of two Gaussians; at t = 0 the mass of the pixel's bin."""
    betas = np.linspace(1e-4, 0.02, path.num_steps) * 1000 / path.num_steps
    alphas = 1 - betas
    bars = np.cumprod(alphas)
    result = []
    for i, t in enumerate(batch.t.tolist()):
        x0, x_t, out = (tensor[i].numpy() for tensor in (batch.x0, batch.x_t, output))
        predicted, fraction = out[:2], (out[2:] + 1) / 2
        before = bars[t - 1] if t > 0 else 1.0
        if path.prediction == "epsilon":
            guess = (x_t - np.sqrt(1 - bars[t]) * predicted) / np.sqrt(bars[t])
        else:
            guess = np.sqrt(bars[t]) * x_t - np.sqrt(1 - bars[t]) * predicted

        def posterior(x, t=t, x_t=x_t, before=before):
            on_x0 = np.sqrt(before) * betas[t] / (1 - bars[t])
            return on_x0 * x + np.sqrt(alphas[t]) * (1 - before) / (1 - bars[t]) * x_t

        last = max(t, 1)
        tilde = betas[last] * (1 - bars[last - 1]) / (1 - bars[last])
        variance = np.exp(fraction * np.log(betas[t]) + (1 - fraction) * np.log(tilde))
        if t > 0:
            nats = 0.5 * (np.log(variance / tilde) + (tilde + (posterior(x0) - posterior(guess)) ** 2) / variance - 1)
        else:
            sigma, mean = np.sqrt(variance), posterior(guess)
            nats = np.zeros_like(x0)
            for index in np.ndindex(*x0.shape):
                up = (x0[index] + 1 / 255 - mean[index]) / sigma[index]
                down = (x0[index] - 1 / 255 - mean[index]) / sigma[index]
                if x0[index] <= -1:
                    mass = np.exp(log_ndtr(up))
                elif x0[index] >= 1:
                    mass = np.exp(log_ndtr(-down))
                elif down > 0:
                    mass = np.exp(log_ndtr(-down)) - np.exp(log_ndtr(-up))
                else:
                    mass = np.exp(log_ndtr(up)) - np.exp(log_ndtr(down))
                nats[index] = -np.log(max(mass, 1e-12))
        result.append(nats.mean() / np.log(2))
    return np.array(result)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_mean_squared_error_by_hand(prediction):
    path = DiffusionPath(prediction=prediction)
    batch, output = make_batch(path)
    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[batch.t.numpy()].reshape(-1, 1, 1, 1)
    x0, noise = batch.x0.numpy(), batch.noise.numpy()
    target = noise if prediction == "epsilon" else np.sqrt(bars) * noise - np.sqrt(1 - bars) * x0
    expected = ((output.numpy() - target) ** 2).reshape(6, -1).mean(1)
    loss = denoising_loss(path, output, batch)
    assert loss.shape == (6,)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("num_steps", [1000, 250])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_hybrid_loss_by_hand(prediction, num_steps):
    path = DiffusionPath(prediction=prediction, num_steps=num_steps, learned_sigma=True)
    batch, output = make_batch(path, t=torch.tensor([0, 1, 2, num_steps // 2, num_steps - 1, 0]))
    mse = (output[:, :2] - path.target(batch.x0, batch.noise, batch.t)).square().flatten(1).mean(1).numpy()
    expected = mse + num_steps / 1000 * bits_by_hand(path, output, batch)
    np.testing.assert_allclose(denoising_loss(path, output, batch).numpy(), expected, rtol=1e-7)


def test_float32_agrees_with_float64():
    path = DiffusionPath(learned_sigma=True)
    batch, output = make_batch(path, t=torch.tensor([0, 1, 5, 100, 500, 999]))
    narrow, _ = make_batch(path, t=batch.t, dtype=torch.float64)
    narrow = type(narrow)(
        x0=narrow.x0.float(),
        x_t=narrow.x_t.float(),
        t=narrow.t,
        noise=narrow.noise.float(),
        labels=narrow.labels,
    )
    found = denoising_loss(path, output.float(), narrow)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), denoising_loss(path, output, batch), rtol=2e-3, atol=1e-4)


def test_low_precision_outputs_are_summed_in_float32():
    path = DiffusionPath()
    batch, output = make_batch(path, dtype=torch.float32)
    low = output.bfloat16()
    assert denoising_loss(path, low, batch).dtype == torch.float32
    assert torch.equal(denoising_loss(path, low, batch), denoising_loss(path, low.float(), batch))


def test_a_perfect_prediction_costs_nothing():
    for prediction in ("epsilon", "v"):
        path = DiffusionPath(prediction=prediction, learned_sigma=True)
        batch, output = make_batch(path, t=torch.tensor([1, 2, 30, 400, 998, 999]))
        output[:, :2] = path.target(batch.x0, batch.noise, batch.t)
        output[:, 2:] = -1  # the posterior's own variance
        torch.testing.assert_close(denoising_loss(path, output, batch), torch.zeros(6).double(), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), prediction=st.sampled_from(["epsilon", "v"]))
def test_the_bound_is_never_negative_above_zero(seed, prediction):
    path = DiffusionPath(prediction=prediction, learned_sigma=True, schedule="cosine")
    batch, output = make_batch(path, seed=seed)
    plain = DiffusionPath(prediction=prediction, schedule="cosine")
    bound = denoising_loss(path, output, batch) - denoising_loss(plain, output[:, :2], batch)
    assert bool((bound[batch.t > 0] > -1e-9).all())


def test_the_bound_teaches_the_variance_alone():
    path = DiffusionPath(learned_sigma=True)
    batch, output = make_batch(path, t=torch.tensor([0, 1, 2, 300, 600, 999]))
    output.requires_grad_()
    denoising_loss(path, output, batch).sum().backward()
    prediction_gradient, variance_gradient = output.grad[:, :2], output.grad[:, 2:]
    error = output.detach()[:, :2] - batch.noise
    torch.testing.assert_close(prediction_gradient, 2 * error / error[0].numel(), rtol=1e-10, atol=1e-12)
    assert bool((variance_gradient.flatten(1).abs().amax(1) > 0).all())


def test_gradients_stay_finite_in_the_far_tails():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).repeat(3)
    mean = torch.tensor([-50.0, 0.0, 50.0]).repeat_interleave(5).requires_grad_()
    log_sigma = torch.full((15,), -6.0, requires_grad=True)
    value = discretized_log_likelihood(x, mean, log_sigma)
    value.sum().backward()
    assert value.min().item() == pytest.approx(math.log(1e-12), rel=1e-5)
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(log_sigma.grad).all()


def test_pixel_masses_sum_to_one():
    levels = (torch.arange(256, dtype=torch.float64) / 127.5) - 1
    for mean, log_sigma in [(0.0, 0.0), (0.3, -2.0), (-1.2, -3.0), (0.999, -4.0)]:
        logs = discretized_log_likelihood(levels, torch.tensor(mean).double(), torch.tensor(log_sigma).double())
        assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_outputs_of_the_wrong_width_are_refused():
    batch, output = make_batch(DiffusionPath())
    with pytest.raises(ValueError, match="expects 4"):
        denoising_loss(DiffusionPath(learned_sigma=True), output, batch)


# Label drop.


@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    probability=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_labels_are_dropped_where_the_number_is_small(labels, probability, seed):
    uniform = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    dropped = drop_labels(torch.tensor(labels), 10, uniform, probability)
    expected = [10 if u < torch.tensor(probability) else y for u, y in zip(uniform, labels, strict=True)]
    assert dropped.tolist() == expected
    assert dropped.dtype == torch.long


def test_the_extremes_of_label_drop():
    labels, uniform = torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.5, 0.999])
    assert drop_labels(labels, 9, uniform, 0.0).tolist() == [1, 2, 3]
    assert drop_labels(labels, 9, uniform, 1.0).tolist() == [9, 9, 9]
    assert drop_labels(labels, None, uniform, 0.0).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="no null label"):
        drop_labels(labels, None, uniform, 0.1)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_bad_drop_probabilities_are_refused(probability):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        drop_labels(torch.tensor([1]), 9, torch.tensor([0.5]), probability)
