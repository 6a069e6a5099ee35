"""The masked denoising loss."""

from __future__ import annotations

import torch

__all__ = ["masked_loss"]


def masked_loss(
    answer: torch.Tensor,
    target: torch.Tensor,
    mask_B1hw: torch.Tensor,
    *,
    weight: torch.Tensor | float = 1.0,
    outside: float = 0.0,
    normalise: bool = True,
) -> torch.Tensor:
    """Mean over the batch of `sum(m e^2) / (C sum(m))`, e = target - answer [arXiv 2312.05767v2, masked loss].

    `mask_B1hw` (0..1, latent grid) restricts the loss to the defect. `outside` adds alpha times the same mean over the
    rest. With `normalise` off it is the paper's `|| m (.) e ||^2` as a plain mean over all cells, in which a small
    defect counts less than a large one; we divide by the mask's area by default. `weight` (B x 1 x 1 x 1) is the
    prior's, and 1 for the paper's noise prediction.
    """
    error = weight * (target - answer).square().mean(1, keepdim=True)

    def within(m: torch.Tensor) -> torch.Tensor:
        total = (m * error).flatten(1).sum(1)
        return total / m.flatten(1).sum(1).clamp_min(1.0) if normalise else total / m[0].numel()

    loss = within(mask_B1hw)
    if outside > 0:
        loss = loss + outside * within(1 - mask_B1hw)
    return loss.mean()
