"""A sampler is a function of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from anomalydiffusion.priors.base import Estimate

__all__ = ["Denoiser", "Solver", "sample", "strided_steps"]

Denoiser = Callable[[torch.Tensor, torch.Tensor], Estimate]
Noise = Callable[[str, int], torch.Tensor]
AfterStep = Callable[[torch.Tensor, int, int, Estimate], torch.Tensor]
Solver = Literal["ddim", "dpm"]


def strided_steps(train_steps: int, steps: int) -> list[int]:
    """`steps` of 0..train_steps-1, evenly strided, falling, the last training step first ("trailing")."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be 1..{train_steps}, got {steps}")
    return [round(train_steps * (steps - i) / steps) - 1 for i in range(steps)]


def sample(
    denoise: Denoiser, z_BChw: torch.Tensor, alphas: torch.Tensor, steps: list[int], *, solver: Solver = "ddim", eta: float = 1.0,
    noise: Noise | None = None, after_step: AfterStep | None = None, begins: Sequence[int] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Walk from noise to a latent over `steps` of the schedule `alphas`; eta = 1 is ancestral, eta = 0 deterministic.

    "ddim" is strided DDIM [arXiv 2010.02502]:

        z_s = sqrt(a_s) clean + sqrt(1 - a_s - sigma^2) noise_hat + sigma n,
        sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)

    "dpm" is DPM-Solver++(2M) [arXiv 2211.01095], with `eta` between its two forms. It goes by the last two estimates, so fewer steps
    do. With l = log(a / (1 - a)) / 2, h = l_s - l_t, and a dash for the step before:

        z_s = sqrt((1 - a_s) / (1 - a_t)) exp(-eta h) z_t + sqrt(a_s) (1 - exp(-(1 + eta) h)) d + sqrt((1 - a_s) (1 - exp(-2 eta h))) n,
        d = clean + (clean - clean') h / (2 h')

    The last step of both gives `clean`. `noise(purpose, t)` gives n (needed when eta > 0); `after_step(z_s, t, s, estimate)` may
    change z_s (s = -1: clean). `begins`: the step at which each row begins, what is estimated for it before is of no account;
    None = the first.
    """
    move = _Dpm(begins) if solver == "dpm" else _ddim
    z, levels = z_BChw, [*alphas[steps].tolist(), 1.0]
    for index, t in enumerate(steps):
        s = steps[index + 1] if index + 1 < len(steps) else -1
        estimate = denoise(z, torch.full((z.shape[0],), t, device=z.device))
        z, sigma = move(z, estimate, t, levels[index], levels[index + 1], eta)
        if sigma > 0 and noise is not None:
            z = z + sigma * noise("step", t)
        if after_step is not None:
            z = after_step(z, t, s, estimate)
    return z


def _ddim(z: torch.Tensor, estimate: Estimate, t: int, a_t: float, a_s: float, eta: float) -> tuple[torch.Tensor, float]:
    """The mean of z_s, and how much fresh noise belongs to it."""
    sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * max(1 - a_t / a_s, 0.0) ** 0.5
    return a_s**0.5 * estimate.clean + max(1 - a_s - sigma**2, 0.0) ** 0.5 * estimate.noise, sigma


class _Dpm:
    """The same by two estimates; it remembers the one of the step before."""

    def __init__(self, begins: Sequence[int] | None) -> None:
        self.begins = begins
        self.before: tuple[torch.Tensor, float] | None = None  # the clean estimate, h

    def __call__(self, z: torch.Tensor, estimate: Estimate, t: int, a_t: float, a_s: float, eta: float) -> tuple[torch.Tensor, float]:
        if a_s == 1:
            return estimate.clean, 0.0
        h = _half_log_ratio(a_s) - _half_log_ratio(a_t)
        d, clean = estimate.clean, estimate.clean
        if self.before is not None:
            known = [1.0 if self.begins is None or t < begin else 0.0 for begin in self.begins or [t] * len(z)]
            weight = torch.tensor(known, device=z.device, dtype=z.dtype)[:, None, None, None] * (h / (2 * self.before[1]))
            d = clean + weight * (clean - self.before[0])
        self.before = clean, h
        kept = ((1 - a_s) / (1 - a_t)) ** 0.5 * (math.exp(-eta * h) if eta else 1.0)
        mean = kept * z - a_s**0.5 * math.expm1(-(1 + eta) * h) * d
        return mean, (-(1 - a_s) * math.expm1(-2 * eta * h)) ** 0.5 if eta else 0.0


def _half_log_ratio(a: float) -> float:
    return math.log(a / (1 - a)) / 2 if a > 0 else -math.inf
