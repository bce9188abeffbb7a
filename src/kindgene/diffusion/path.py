"""The path from data to noise: its schedule, what a model predicts along it, the schedulers that walk back.

`x_t = a x_0 + s noise`, with a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t) (Ho et al., arXiv
2006.11239, eq. 4). Shapes: B batch, T timesteps, K sampling steps; every image tensor is [B, C, H, W], every
`t_B` is long, 0 .. T - 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

SCHEDULERS = ("ddpm", "ddim", "dpm++")
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction"}

# Below this log(a / s) x_t is noise alone, and dividing a noise prediction's error by a blows it up. A linear
# schedule ends here; a cosine one, which ends far below, is cut here as diffusers advises for DPM-Solver++.
MIN_LOG_SNR = -5.1


@dataclass(frozen=True, kw_only=True)
class DiffusionPath:
    """One truth for training and sampling.

    `schedule`: "linear" (betas 1e-4 .. 0.02 at 1000 steps, times 1000 / num_steps otherwise) or "cosine"
    (Nichol and Dhariwal, arXiv 2102.09672, betas at most 0.999). `prediction`: "epsilon", or "v" = a noise -
    s x_0 (Salimans and Ho, arXiv 2202.00512). `learned_sigma`: the model's output has 2 C channels, the
    second half placing the variance between its bounds.

    Raises ValueError for another schedule or prediction and for a number of steps the schedule cannot have.
    """

    schedule: str = "linear"
    prediction: str = "epsilon"
    num_steps: int = 1000
    learned_sigma: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be linear or cosine, found {self.schedule!r}")
        if self.prediction not in PREDICTION_TYPES:
            raise ValueError(f"prediction must be epsilon or v, found {self.prediction!r}")
        fewest = 21 if self.schedule == "linear" else 2  # a linear beta reaches 1 at 20 steps
        if type(self.num_steps) is not int or self.num_steps < fewest:
            raise ValueError(f"a {self.schedule} path needs at least {fewest} num_steps, found {self.num_steps!r}")

    @classmethod
    def of(cls, model_or_config: Any) -> Self:
        """The path a DiT was made for, from the model (anything with `.config`) or its configuration.

        Raises ValueError for a configuration that does not tell, as those of other libraries' models.
        """
        config = model_or_config if isinstance(model_or_config, Mapping) else model_or_config.config
        missing = [key for key in ("schedule", "prediction", "learn_sigma") if key not in config]
        if missing:
            raise ValueError(f"this model's config does not say its {', '.join(missing)}: pass a DiffusionPath")
        return cls(schedule=config["schedule"], prediction=config["prediction"], learned_sigma=config["learn_sigma"])

    @cached_property
    def betas(self) -> Tensor:
        """The variance each step adds, float64 [T]."""
        if self.schedule == "linear":
            scale = 1000 / self.num_steps
            return torch.linspace(1e-4 * scale, 0.02 * scale, self.num_steps, dtype=torch.float64)
        times = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
        signal = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)

    @cached_property
    def alpha_bars(self) -> Tensor:
        """The share of the data's variance left after each step, float64 [T]."""
        return torch.cumprod(1 - self.betas, dim=0)

    def add_noise(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """x_t."""
        a, s = self._scales(t_B, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        """What the model should say: the noise, or v."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._scales(t_B, x0)
        return a * noise - s * x0

    def predict_x0(self, x_t: Tensor, predicted: Tensor, t_B: Tensor) -> Tensor:
        """The clean image a prediction amounts to."""
        a, s = self._scales(t_B, x_t)
        return (x_t - s * predicted) / a if self.prediction == "epsilon" else a * x_t - s * predicted

    def predict_noise(self, x_t: Tensor, predicted: Tensor, t_B: Tensor) -> Tensor:
        """The noise a prediction amounts to."""
        a, s = self._scales(t_B, x_t)
        return predicted if self.prediction == "epsilon" else s * x_t + a * predicted

    def prediction_of(self, x_t: Tensor, x0: Tensor, t_B: Tensor) -> Tensor:
        """The prediction that amounts to this clean image: the inverse of `predict_x0`."""
        a, s = self._scales(t_B, x_t)
        return (x_t - a * x0) / s if self.prediction == "epsilon" else (a * x_t - x0) / s

    def split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """A model's output as its prediction and, where sigma is learned, its variance half.

        Raises ValueError where the number of channels is not C, or 2 C with learned sigma.
        """
        expected = 2 * channels if self.learned_sigma else channels
        if output.shape[1] != expected:
            sigma = "learned" if self.learned_sigma else "fixed"
            found = f"the model's output has {output.shape[1]} channels"
            raise ValueError(f"{found}; a path with {sigma} sigma expects {expected}")
        return output[:, :channels], output[:, channels:] if self.learned_sigma else None

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (arXiv 2006.11239, eq. 7)."""
        before = self._alpha_bars_before
        on_x0 = before.sqrt() * self.betas / (1 - self.alpha_bars)
        on_x_t = (1 - self.betas).sqrt() * (1 - before) / (1 - self.alpha_bars)
        return _at(on_x0, t_B, x0) * x0 + _at(on_x_t, t_B, x_t) * x_t

    def log_variance_bounds(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the two variances a learned one lies between, posterior and beta: [B, 1, 1, 1].

        The posterior's is 0 at t = 0; there the one at t = 1 stands in for it (arXiv 2102.09672, section 3.1
        and its code).
        """
        variance = self.betas * (1 - self._alpha_bars_before) / (1 - self.alpha_bars)
        smallest = torch.cat([variance[1:2], variance[1:]]).log()
        return _at(smallest, t_B, like), _at(self.betas.log(), t_B, like)

    def timesteps(self, steps: int) -> list[int]:
        """The K timesteps, falling, that a sampler of that many steps asks the model about.

        Evenly spaced from the noisiest on ("trailing", arXiv 2305.08891), where the noisiest is the last with
        log(a / s) of at least MIN_LOG_SNR: of 1000 timesteps, all on a linear path, 996 on a cosine one.

        Raises ValueError for a number of steps below 1 or above what there is.
        """
        log_snr = 0.5 * (self.alpha_bars.log() - (1 - self.alpha_bars).log())
        usable = int((log_snr >= MIN_LOG_SNR).sum())
        if type(steps) is not int or not 1 <= steps <= usable:
            noise = f" (the timesteps from {usable} on are noise alone)" if usable < self.num_steps else ""
            raise ValueError(f"steps must be a whole number in 1 .. {usable} on this path{noise}, found {steps!r}")
        return [math.floor(usable - index * usable / steps + 0.5) - 1 for index in range(steps)]

    def scheduler(self, name: str, steps: int | None = None) -> Any:
        """A diffusers scheduler, its timesteps set: "ddpm", "ddim" (eta 0) or "dpm++" (multistep, order 2).

        It is built over the sub-schedule of `timesteps(steps)` (all by default), so its own timesteps are K -
        1 .. 0, the places in that list, last to first, and its betas are 1 - alpha_bar_t / alpha_bar_next
        (arXiv 2102.09672, section 4): the noise levels are exact for any number of steps, which diffusers'
        own spacing is not.

        Raises ValueError for an unknown name or number of steps.
        """
        if name not in SCHEDULERS:
            near = difflib.get_close_matches(str(name), SCHEDULERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown scheduler {name!r}; there are {', '.join(SCHEDULERS)}{hint}")
        rising = list(range(self.num_steps)) if steps is None else self.timesteps(steps)[::-1]
        kept = self.alpha_bars[rising]
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        common = {
            "num_train_timesteps": len(rising),
            "trained_betas": (1 - kept / before).tolist(),
            "prediction_type": PREDICTION_TYPES[self.prediction],
            "timestep_spacing": "trailing",
        }
        if name == "ddpm":
            variance = "learned_range" if self.learned_sigma else "fixed_small"
            scheduler = DDPMScheduler(variance_type=variance, clip_sample=False, **common)
        elif name == "ddim":
            scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, **common)
        else:
            # Only here: with it comes scipy.stats, a second of every start.
            from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

            scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, **common)
        # diffusers' DPM-Solver++ hands its levels to numpy here, which warns of a torch tensor.
        levels = scheduler.alphas_cumprod
        scheduler.alphas_cumprod = levels.numpy()
        scheduler.set_timesteps(len(rising))
        scheduler.alphas_cumprod = levels
        return scheduler

    @cached_property
    def _alpha_bars_before(self) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bars[:-1]])

    def _scales(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return _at(self.alpha_bars.sqrt(), t_B, like), _at((1 - self.alpha_bars).sqrt(), t_B, like)


def _at(values_T: Tensor, t_B: Tensor, like: Tensor) -> Tensor:
    """The values at `t`, in `like`'s dtype and on its device, [B, 1, 1, 1]."""
    return values_T.to(like.dtype).to(like.device)[t_B].reshape(-1, 1, 1, 1)
