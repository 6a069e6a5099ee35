"""What a prior loses: fidelity and grain in its autoencoder, and how far its denoiser is from pictures that it should know."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from anomalydiffusion.core.crops import extract
from anomalydiffusion.core.pixels import to_tensor, to_uint8
from anomalydiffusion.core.seeds import rng, torch_noise
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.samples import spoken

__all__ = ["gradient_energy", "measure_autoencoder", "measure_denoiser"]


def gradient_energy(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels, per image: the energy of edges and grain."""
    across = (x_BCHW[..., 1:] - x_BCHW[..., :-1]).square().flatten(1).mean(1)
    down = (x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]).square().flatten(1).mean(1)
    return across + down


@torch.no_grad()
def measure_autoencoder(
    round_trip: Callable[[torch.Tensor], torch.Tensor], images: Iterable[np.ndarray], *, factor: int = 8,
    distance: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> dict[str, float]:  # fmt: skip
    """PSNR (dB, 8 bit output, mean over images) and gradient-energy ratio after / before (mean over images; 1 = grain kept).

    `images` are uint8 H x W x 3 and are cut to multiples of `factor`; `round_trip` takes and gives B x 3 x H x W in -1..1. With
    `distance`, of an image before and after, also its mean as `perceptual_distance`.
    """
    psnr, ratio, distances = list[float](), list[float](), list[float]()
    for image in images:
        height, width = (side // factor * factor for side in image.shape[:2])
        before = np.array(image[:height, :width])
        x, after = to_tensor(before), to_uint8(round_trip(to_tensor(before)))
        out = to_tensor(after)
        psnr.append(float(10 * torch.log10(4 / (out - x).square().mean().clamp_min(1e-7))))
        ratio.append(float((gradient_energy(out) / gradient_energy(x).clamp_min(1e-7)).mean()))
        if distance is not None:
            distances.append(distance(before, after))
    seen = {"perceptual_distance": float(np.mean(distances))} if distances else {}
    return {"psnr": float(np.mean(psnr)), "gradient_energy_ratio": float(np.mean(ratio)), **seen}


@torch.no_grad()
def measure_denoiser(prior: LatentPrior, images: Iterable[np.ndarray], caption: str, *, levels: int = 8, seed: int = 0) -> float:
    """How far a denoiser's clean estimate is from pictures: `|| z_0 - z_hat ||^2 / max(1 - a_t, 0.03)`, mean over cells.

    Mean over `levels` evenly spaced steps and over one crop of the prior's working size from each image (uint8 H x W x 3), under
    the words `caption`. Crops and noise follow from `seed`, so two priors of one autoencoder can be compared.
    """
    found, said, side = [], spoken(prior, caption), prior.working_size
    steps = np.linspace(0, len(prior.alphas) - 1, levels + 1)[1:].astype(int).tolist()
    for index, image in enumerate(images):
        generator = rng(seed, "measure", index)
        y, x = (int(generator.integers(max(1, length - side + 1))) for length in image.shape[:2])
        clean = prior.encode(to_tensor(extract(image, (x, y, x + side, y + side)))[:1])
        for t in steps:
            noise = torch_noise(tuple(clean.shape), seed, "measure", index, t).to(clean)
            at = torch.full((1,), t, device=prior.device)
            estimate = prior.denoise(prior.noised(clean, noise, at), at, said)
            found.append(float((estimate.clean - clean).square().mean() / max(1 - float(prior.alphas[t]), 0.03)))
    return float(np.mean(found))
