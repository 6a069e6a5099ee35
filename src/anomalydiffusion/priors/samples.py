"""A picture drawn from words alone: what a prior knows before it learns a defect."""

from __future__ import annotations

import numpy as np
import torch

from anomalydiffusion.core.pixels import to_uint8
from anomalydiffusion.core.seeds import torch_noise
from anomalydiffusion.priors.base import Context, Estimate
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.sampling import ddim, strided_steps

__all__ = ["draw"]


@torch.no_grad()
def draw(prior: LatentPrior, caption: str, *, seed: int, steps: int = 40, guidance: float = 2.0) -> np.ndarray:
    """Draw one picture of `caption`: uint8, S x S x 3, S the prior's working size.

    Ancestral DDIM over `steps` strided steps; the answer is `f_empty + guidance (f_caption - f_empty)` [classifier-free guidance,
    arXiv 2207.12598], 1 = the caption's alone. Raises `PriorError` where the caption has more words than the text encoder has
    positions.
    """
    side = prior.working_size // prior.factor
    nothing = torch.zeros(1, 0, prior.token_width, device=prior.device)
    said, empty = (Context(tokens_BND=prior.embed((prior.tokenize(text), []), nothing).tokens_BND) for text in (caption, ""))

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch_noise((1, prior.latent_channels, side, side), seed, "sample", purpose, t).to(prior.device)

    def denoise(z: torch.Tensor, t: torch.Tensor) -> Estimate:
        answer = prior.predict(z, t, said)
        if guidance != 1:
            answer = prior.predict(z, t, empty).lerp(answer, guidance)
        return prior.estimate(z, answer, t)

    z = ddim(denoise, noise("start", 0), prior.alphas, strided_steps(len(prior.alphas), steps), noise=noise)
    return to_uint8(prior.decode(z))
