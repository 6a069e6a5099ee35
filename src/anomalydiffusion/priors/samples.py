"""A picture drawn from noise alone: what a prior knows before it learns a defect, or draws for one it has learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from anomalydiffusion.core.pixels import to_uint8
from anomalydiffusion.core.seeds import torch_noise
from anomalydiffusion.priors.base import Context, Estimate
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.sampling import sample, strided_steps

__all__ = ["draw", "from_noise", "spoken"]


def spoken(prior: LatentPrior, text: str) -> Context:
    """The condition of plain words, as priors are trained: what the text encoder has no positions for is cut off."""
    return prior.embed((prior.tokenize(text)[: prior.max_tokens - 2], []), torch.zeros(1, 0, prior.token_width, device=prior.device))


@torch.no_grad()
def from_noise(prior: LatentPrior, answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, seed: int, steps: int) -> np.ndarray:
    """Walk from noise to a picture, `answer(z, t)` the raw output that is followed: uint8, S x S x 3, S the working size.

    Ancestral DDIM over `steps` strided steps; what `answer` is told must have been encoded before.
    """
    prior.all_said()
    side = prior.working_size // prior.factor

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch_noise((1, prior.latent_channels, side, side), seed, "sample", purpose, t).to(prior.device)

    def denoise(z: torch.Tensor, t: torch.Tensor) -> Estimate:
        return prior.estimate(z, answer(z, t), t)

    z = sample(denoise, noise("start", 0), prior.alphas, strided_steps(len(prior.alphas), steps), noise=noise)
    return to_uint8(prior.decode(z))


@torch.no_grad()
def draw(prior: LatentPrior, caption: str, *, seed: int, steps: int = 40, guidance: float = 2.0) -> np.ndarray:
    """Draw one picture of `caption`: uint8, S x S x 3, S the prior's working size.

    The answer is `f_empty + guidance (f_caption - f_empty)` [classifier-free guidance, arXiv 2207.12598], 1 = the caption's
    alone.
    """
    said, empty = spoken(prior, caption), spoken(prior, "")

    def answer(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told = prior.predict(z, t, said)
        return told if guidance == 1 else prior.predict(z, t, empty).lerp(told, guidance)

    return from_noise(prior, answer, seed=seed, steps=steps)
