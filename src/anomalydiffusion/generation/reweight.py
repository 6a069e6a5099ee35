"""Ask for more defect where there is still too little of it."""

from __future__ import annotations

import torch

__all__ = ["attention_gain"]

SMALLEST = 1e-12  # a distance below this counts as this


def attention_gain(distance_B1hw: torch.Tensor, mask_B1hw: torch.Tensor, *, bound: float | None = 4.0) -> torch.Tensor:
    """`w_m = ||m||_1 softmax_{pixels in m}( f(d) )`, `f(x) = 1/x`, 1 outside [arXiv 2312.05767v2, adaptive re-weighting].

    `distance_B1hw` is d, the squared distance from the predicted clean image to the normal one, per cell, never negative: between
    decoded images as in the paper, or between latents, which saves decoding at every step. The mean of w over the mask is 1,
    each weight lies in 0..||m||_1, and no input makes NaN (all distances equal, or zero: w = 1).

    `bound` None is the paper's formula, with d in its own unit and `f(0) = -inf`, so that a cell without any distance has no weight; the
    softmax of `1/x` then gives nearly all of it to the one cell with the least distance. Differs from the paper where a bound is given:
    d is measured in units of its mean over the mask, and `1/d` is cut there.
    """
    inside = mask_B1hw > 0
    fine = distance_B1hw.float() if distance_B1hw.device.type == "mps" else distance_B1hw.double()  # which has no double precision
    d = torch.where(inside, fine.nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp_min(0), 0.0)
    count = inside.flatten(1).sum(1).clamp_min(1).view(-1, 1, 1, 1)
    unit = torch.ones_like(d[:, :, :1, :1]) if bound is None else d.flatten(1).sum(1).view(-1, 1, 1, 1) / count
    inverse = torch.where(unit > 0, unit / d.clamp_min(SMALLEST), torch.ones_like(d)).clamp_max(1 / SMALLEST if bound is None else bound)
    heard = inside & (d > 0) if bound is None else inside
    heard = torch.where(heard.flatten(1).any(1).view(-1, 1, 1, 1), heard, inside)
    logits = torch.where(heard, inverse, -torch.inf)
    top = torch.where(heard, inverse, 0.0).flatten(1).amax(1).view(-1, 1, 1, 1)
    weight = torch.where(heard, (logits - top).exp(), 0.0)
    total = weight.flatten(1).sum(1).view(-1, 1, 1, 1)
    return torch.where(inside, count * weight / total.clamp_min(1e-12), torch.ones_like(d)).float()
