"""What an autoencoder loses: fidelity and grain of pictures that went through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from anomalydiffusion.core.pixels import to_tensor, to_uint8

__all__ = ["gradient_energy", "measure_autoencoder"]


def gradient_energy(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels, per image: the energy of edges and grain."""
    across = (x_BCHW[..., 1:] - x_BCHW[..., :-1]).square().flatten(1).mean(1)
    down = (x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]).square().flatten(1).mean(1)
    return across + down


@torch.no_grad()
def measure_autoencoder(
    round_trip: Callable[[torch.Tensor], torch.Tensor], images: Iterable[np.ndarray], *, factor: int = 8
) -> dict[str, float]:
    """PSNR (dB, 8 bit output, mean over images) and gradient-energy ratio after / before (mean over images; 1 = grain kept).

    `images` are uint8 H x W x 3 and are cut to multiples of `factor`; `round_trip` takes and gives B x 3 x H x W in -1..1.
    """
    psnr, ratio = [], []
    for image in images:
        height, width = (side // factor * factor for side in image.shape[:2])
        x = to_tensor(np.array(image[:height, :width]))
        out = to_tensor(to_uint8(round_trip(x)))
        psnr.append(float(10 * torch.log10(4 / (out - x).square().mean().clamp_min(1e-7))))
        ratio.append(float((gradient_energy(out) / gradient_energy(x).clamp_min(1e-7)).mean()))
    return {"psnr": float(np.mean(psnr)), "gradient_energy_ratio": float(np.mean(ratio))}
