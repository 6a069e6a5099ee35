"""A sampler is a function of a denoiser."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anomalydiffusion.priors.base import Estimate

__all__ = ["Denoiser", "ddim", "strided_steps"]

Denoiser = Callable[[torch.Tensor, torch.Tensor], Estimate]
Noise = Callable[[str, int], torch.Tensor]
AfterStep = Callable[[torch.Tensor, int, int, Estimate], torch.Tensor]


def strided_steps(train_steps: int, steps: int) -> list[int]:
    """`steps` of 0..train_steps-1, evenly strided, falling, the last training step first ("trailing")."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be 1..{train_steps}, got {steps}")
    return [round(train_steps * (steps - i) / steps) - 1 for i in range(steps)]


def ddim(
    denoise: Denoiser,
    z_BChw: torch.Tensor,
    alphas: torch.Tensor,
    steps: list[int],
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    after_step: AfterStep | None = None,
) -> torch.Tensor:
    """Walk from noise to a latent: strided DDIM [arXiv 2010.02502]; eta = 1 is ancestral, eta = 0 deterministic.

        z_s = sqrt(a_s) clean + sqrt(1 - a_s - sigma^2) noise_hat + sigma n,
        sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)

    `noise(purpose, t)` gives n (needed when eta > 0); `after_step(z_s, t, s, estimate)` may change z_s (s = -1: clean).
    """
    z = z_BChw
    for index, t in enumerate(steps):
        s = steps[index + 1] if index + 1 < len(steps) else -1
        estimate = denoise(z, torch.full((z.shape[0],), t, device=z.device))
        a_t = float(alphas[t])
        a_s = float(alphas[s]) if s >= 0 else 1.0
        sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * max(1 - a_t / a_s, 0.0) ** 0.5
        z = a_s**0.5 * estimate.clean + max(1 - a_s - sigma**2, 0.0) ** 0.5 * estimate.noise
        if sigma > 0 and noise is not None:
            z = z + sigma * noise("step", t)
        if after_step is not None:
            z = after_step(z, t, s, estimate)
    return z
