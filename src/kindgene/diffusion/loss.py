"""The training loss: predict the noise (or v), and where sigma is learned, the variational bound for it.

The hybrid loss is that of Nichol and Dhariwal (arXiv 2102.09672, section 3.1) as DiT uses it. Nothing here
draws a random number: timesteps, noise and the uniform numbers of the label drop come in as tensors. Image
tensors are [B, C, H, W].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kindgene.diffusion.path import DiffusionPath

# Half the width of a pixel's value in [-1, 1] with 256 levels.
HALF_BIN = 1 / 255
SMALLEST_MASS = 1e-12


@dataclass(frozen=True)
class NoisedBatch:
    """Clean images, the same at timestep `t` [B], the noise between, the labels [B] the model is given."""

    x0: Tensor
    x_t: Tensor
    t: Tensor
    noise: Tensor
    labels: Tensor


def drop_labels(labels_B: Tensor, null_class: int | None, uniform_B: Tensor, probability: float) -> Tensor:
    """The labels, with the null label where `uniform` (numbers in [0, 1)) is below `probability`.

    Raises ValueError for a probability outside [0, 1], and for one above 0 where the model has no null label.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"the label-drop probability must be in [0, 1], found {probability!r}")
    if probability == 0:
        return labels_B
    if null_class is None:
        raise ValueError("this model has no null label: set the label-drop probability to 0")
    return torch.where(uniform_B < probability, null_class, labels_B)


def noise_batch(path: DiffusionPath, x0: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> NoisedBatch:
    """What one training step shows the model."""
    return NoisedBatch(x0=x0, x_t=path.add_noise(x0, noise, t), t=t, noise=noise, labels=labels)


def denoising_loss(path: DiffusionPath, output: Tensor, batch: NoisedBatch) -> Tensor:
    """Loss of each sample, [B], in float32 or the output's finer dtype.

    The mean squared error of the prediction; with learned sigma, plus the variational bound in bits a
    dimension, weighted num_steps / 1000 (lambda = 0.001 of a bound summed over all timesteps).

    Raises ValueError for an output whose channels are not C, or 2 C with learned sigma.
    """
    fine = output.to(torch.promote_types(output.dtype, torch.float32))
    predicted, variance = path.split(fine, channels=batch.x0.shape[1])
    target = path.target(batch.x0, batch.noise, batch.t).to(predicted.dtype)
    mse_B = (predicted - target).square().flatten(1).mean(1)
    if variance is None:
        return mse_B
    # The mean is detached: the bound teaches the variance alone (arXiv 2102.09672, section 3.1).
    return mse_B + path.num_steps / 1000 * variational_bound(path, predicted.detach(), variance, batch)


def variational_bound(path: DiffusionPath, predicted: Tensor, variance: Tensor, batch: NoisedBatch) -> Tensor:
    """One term of the bound, in bits a dimension, [B]: L_{t-1} for t above 0, L_0 for t = 0.

    `variance` is the model's v, the place of log sigma^2 between its bounds: -1 the posterior's, 1 beta.
    """
    dtype = predicted.dtype
    x0, x_t = batch.x0.to(dtype), batch.x_t.to(dtype)
    smallest, largest = path.log_variance_bounds(batch.t, x_t)
    log_variance = smallest + (variance + 1) / 2 * (largest - smallest)
    mean = path.posterior_mean(path.predict_x0(x_t, predicted, batch.t), x_t, batch.t)
    true_mean = path.posterior_mean(x0, x_t, batch.t)
    divergence_B = gaussian_kl(true_mean, smallest, mean, log_variance).flatten(1).mean(1)
    surprise_B = -discretized_log_likelihood(x0, mean, log_variance / 2).flatten(1).mean(1)
    return torch.where(batch.t == 0, surprise_B, divergence_B) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of each element, in nats."""
    ratio = (log_variance1 - log_variance2).exp()
    distance = (mean1 - mean2).square() * (-log_variance2).exp()
    return (log_variance2 - log_variance1 - 1 + ratio + distance) / 2


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """log P of each 8-bit value in [-1, 1] under N(mean, sigma^2), in nats (arXiv 2006.11239, eq. 13).

    The lowest and highest values own their whole tail. A mass under 1e-12 counts as 1e-12.
    """
    distance, inverse = x - mean, (-log_sigma).exp()
    # The mass of a bin is the same on either side of the mean: taken on the lower, nothing cancels.
    lower = -distance.abs()
    mass = torch.special.ndtr((lower + HALF_BIN) * inverse) - torch.special.ndtr((lower - HALF_BIN) * inverse)
    mass = torch.where(x < -1 + HALF_BIN, torch.special.ndtr((distance + HALF_BIN) * inverse), mass)
    mass = torch.where(x > 1 - HALF_BIN, torch.special.ndtr((HALF_BIN - distance) * inverse), mass)
    return mass.clamp(min=SMALLEST_MASS).log()
