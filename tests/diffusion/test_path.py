"""The path: published schedules, exact conversions, one truth for training and for every scheduler."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.diffusion.path import SCHEDULERS, DiffusionPath
from kindgene.models.dit import DiT

PATHS = [
    DiffusionPath(schedule=schedule, prediction=prediction)
    for schedule in ("linear", "cosine")
    for prediction in ("epsilon", "v")
]


def images(seed: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 3, 3, generator=generator, dtype=dtype)


def test_linear_schedule():
    path = DiffusionPath()
    assert path.betas.dtype == path.alpha_bars.dtype == torch.float64
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(path.betas.numpy(), betas, rtol=1e-12)
    np.testing.assert_allclose(path.alpha_bars.numpy(), np.cumprod(1 - betas), rtol=1e-10)
    short = DiffusionPath(num_steps=250)
    np.testing.assert_allclose(short.betas.numpy(), np.linspace(4e-4, 0.08, 250), rtol=1e-12)
    assert short.alpha_bars[-1].item() == pytest.approx(path.alpha_bars[-1].item(), rel=0.5)


def test_cosine_schedule():
    path = DiffusionPath(schedule="cosine", num_steps=400)
    f = [math.cos((i / 400 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(401)]
    expected = [min(1 - f[i + 1] / f[i], 0.999) for i in range(400)]
    np.testing.assert_allclose(path.betas.numpy(), expected, rtol=1e-9)
    assert path.betas[-1] == 0.999
    np.testing.assert_allclose(path.alpha_bars[:-1].numpy(), np.array(f[1:-1]) / f[0], rtol=1e-8)


@settings(deadline=None, max_examples=40)
@given(
    schedule=st.sampled_from(["linear", "cosine"]),
    prediction=st.sampled_from(["epsilon", "v"]),
    num_steps=st.integers(21, 1200),
    seed=st.integers(0, 1000),
)
def test_conversions_invert_each_other(schedule, prediction, num_steps, seed):
    path = DiffusionPath(schedule=schedule, prediction=prediction, num_steps=num_steps)
    assert bool(((path.betas > 0) & (path.betas < 1)).all())
    x0, noise = images(seed), images(seed + 1)
    t = torch.randint(0, num_steps, (6,), generator=torch.Generator().manual_seed(seed))
    x_t, target = path.add_noise(x0, noise, t), path.target(x0, noise, t)
    a = path.alpha_bars[t].sqrt().reshape(6, 1, 1, 1)
    torch.testing.assert_close(a * path.predict_x0(x_t, target, t), a * x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.predict_noise(x_t, target, t), noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.prediction_of(x_t, x0, t), target, rtol=0, atol=1e-9)


def test_values_by_hand():
    epsilon, v = DiffusionPath(), DiffusionPath(prediction="v")
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([500])
    alpha_bar = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[500])
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    assert epsilon.add_noise(x0, noise, t).item() == pytest.approx(2 * a + 3 * s)
    assert epsilon.target(x0, noise, t).item() == 3.0
    assert v.target(x0, noise, t).item() == pytest.approx(3 * a - 2 * s)


def test_dtype_follows_the_images():
    x0 = images(0, torch.float32)
    assert DiffusionPath().add_noise(x0, x0, torch.arange(6)).dtype == torch.float32


def test_posterior_against_bayes():
    # q(x_{t-1} | x_t, x_0) is the product of two Gaussians in x_{t-1}: precisions add.
    path = DiffusionPath(num_steps=100)
    x0, x_t = images(1), images(2)
    for t in (1, 2, 50, 99):
        beta, before = path.betas[t].item(), path.alpha_bars[t - 1].item()
        precision = 1 / (1 - before) + (1 - beta) / beta
        mean = (math.sqrt(before) * x0 / (1 - before) + math.sqrt(1 - beta) * x_t / beta) / precision
        t_B = torch.full((6,), t)
        torch.testing.assert_close(path.posterior_mean(x0, x_t, t_B), mean, rtol=1e-9, atol=1e-9)
        smallest, largest = path.log_variance_bounds(t_B, x0)
        assert smallest[0].item() == pytest.approx(-math.log(precision), rel=1e-9)
        assert largest[0].item() == pytest.approx(math.log(beta), rel=1e-12)
    zero = torch.zeros(6, dtype=torch.long)
    torch.testing.assert_close(path.posterior_mean(x0, x_t, zero), x0)
    assert torch.equal(path.log_variance_bounds(zero, x0)[0], path.log_variance_bounds(zero + 1, x0)[0])


def test_split():
    output = images(0)
    assert DiffusionPath().split(output, channels=2)[1] is None
    predicted, variance = DiffusionPath(learned_sigma=True).split(output, channels=1)
    assert torch.equal(predicted, output[:, :1])
    assert torch.equal(variance, output[:, 1:])
    with pytest.raises(ValueError, match="has 2 channels; a path with fixed sigma expects 1"):
        DiffusionPath().split(output, channels=1)
    with pytest.raises(ValueError, match="has 2 channels; a path with learned sigma expects 4"):
        DiffusionPath(learned_sigma=True).split(output, channels=2)


# Timesteps and schedulers.


def test_timesteps_by_hand():
    assert DiffusionPath().timesteps(1) == [999]
    assert DiffusionPath().timesteps(4) == [999, 749, 499, 249]
    assert DiffusionPath().timesteps(1000) == list(range(999, -1, -1))
    assert DiffusionPath().timesteps(3) == [999, 666, 332]
    # From timestep 996 on nothing is left of the data on a cosine path, and from 97 on a linear one of 100.
    assert DiffusionPath(num_steps=100).timesteps(97) == list(range(96, -1, -1))
    assert DiffusionPath(schedule="cosine").timesteps(996) == list(range(995, -1, -1))


@settings(deadline=None, max_examples=60)
@given(schedule=st.sampled_from(["linear", "cosine"]), num_steps=st.integers(21, 1200), data=st.data())
def test_timesteps_fall_evenly(schedule, num_steps, data):
    path = DiffusionPath(schedule=schedule, num_steps=num_steps)
    steps = data.draw(st.integers(1, num_steps // 2))
    timesteps = path.timesteps(steps)
    gaps = [one - other for one, other in zip(timesteps, [*timesteps[1:], -1], strict=True)]
    assert len(timesteps) == steps
    assert max(gaps) - min(gaps) <= 1

    # The first is the last that still has something of the data.
    snr = path.alpha_bars / (1 - path.alpha_bars)
    assert snr[timesteps[0]] >= math.exp(2 * -5.1)
    assert bool((snr[timesteps[0] + 1 :] < math.exp(2 * -5.1)).all())


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None])
def test_bad_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must be a whole number in 1 \.\. 1000"):
        DiffusionPath().timesteps(steps)


def test_more_steps_than_a_cosine_path_has_are_refused():
    with pytest.raises(
        ValueError, match=r"1 \.\. 996 on this path \(the timesteps from 996 on are noise alone\), found 1000"
    ):
        DiffusionPath(schedule="cosine").timesteps(1000)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.schedule}-{path.prediction}")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [None, 1, 7, 50, 600])
def test_schedulers_have_the_noise_levels_of_the_path(path, name, steps):
    scheduler = path.scheduler(name, steps)
    timesteps = list(range(999, -1, -1)) if steps is None else path.timesteps(steps)
    assert scheduler.timesteps.tolist() == list(range(len(timesteps)))[::-1]
    expected = path.alpha_bars[timesteps[::-1]]
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=2e-3, atol=1e-12)
    assert scheduler.config.prediction_type == {"epsilon": "epsilon", "v": "v_prediction"}[path.prediction]


@pytest.mark.parametrize(("name", "near"), [("ddmp", "ddpm"), ("dpm+", "dpm\\+\\+"), ("DDIM", None), ("", None)])
def test_unknown_schedulers_are_refused(name, near):
    hint = rf"; did you mean '{near}'\?" if near else ""
    with pytest.raises(ValueError, match=rf"unknown scheduler '.*'; there are ddpm, ddim, dpm\+\+{hint}"):
        DiffusionPath().scheduler(name)


# Construction.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "sigmoid"}, "schedule must be linear or cosine, found 'sigmoid'"),
        ({"prediction": "x0"}, "prediction must be epsilon or v"),
        ({"num_steps": 20}, "a linear path needs at least 21 num_steps, found 20"),
        ({"num_steps": 1, "schedule": "cosine"}, "a cosine path needs at least 2"),
        ({"num_steps": 100.0}, "num_steps"),
    ],
)
def test_bad_paths_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionPath(**settings)


def test_of_reads_a_model_or_its_config():
    model = DiT.from_preset("tiny/2", schedule="cosine", prediction="v", learn_sigma=True)
    expected = DiffusionPath(schedule="cosine", prediction="v", learned_sigma=True)
    assert DiffusionPath.of(model) == DiffusionPath.of(model.config) == expected
    assert DiffusionPath.of(DiT.from_preset("tiny/2")) == DiffusionPath()
    with pytest.raises(ValueError, match="does not say its schedule, prediction, learn_sigma"):
        DiffusionPath.of({"sample_size": 8})
