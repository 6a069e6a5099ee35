"""Ask for more defect where there is still too little of it."""

from __future__ import annotations

import torch

__all__ = ["attention_gain"]


def attention_gain(distance_B1hw: torch.Tensor, mask_B1hw: torch.Tensor, *, bound: float = 4.0) -> torch.Tensor:
    """`w_m = ||m||_1 softmax_{pixels in m}( f(d) )`, `f(x) = 1/x`, 1 outside [arXiv 2312.05767v2, adaptive re-weighting].

    `distance_B1hw` is d, the squared distance from the predicted clean image to the normal one, per cell, never negative.
    The mean of w over the mask is 1, each weight lies in 0..||m||_1, and no input makes NaN (equal distances, zeros: w = 1).

    Differs from the paper: there d is taken between decoded images, `||m y - m x0_hat||^2` with `x0_hat = D(z0_hat)`;
    here its caller takes it between latents, `z0_hat` and `E(y)`, which saves decoding at every step. We also measure d in
    units of its mean over the mask and cut `1/d` at `bound`: without that the softmax of `1/x` picks one cell and lets the
    others vanish.
    """
    inside = mask_B1hw > 0
    d = torch.where(inside, distance_B1hw.double().nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp_min(0), 0.0)
    count = inside.flatten(1).sum(1).clamp_min(1).view(-1, 1, 1, 1)
    mean = d.flatten(1).sum(1).view(-1, 1, 1, 1) / count
    inverse = torch.where(mean > 0, mean / d.clamp_min(1e-12), torch.ones_like(d)).clamp_max(bound)
    logits = torch.where(inside, inverse, -torch.inf)
    top = torch.where(inside, inverse, 0.0).flatten(1).amax(1).view(-1, 1, 1, 1)
    weight = torch.where(inside, (logits - top).exp(), 0.0)
    total = weight.flatten(1).sum(1).view(-1, 1, 1, 1)
    return torch.where(inside, count * weight / total.clamp_min(1e-12), torch.ones_like(d)).float()
