"""Whether a denoiser takes what its autoencoder and its text encoder give."""

from __future__ import annotations

from collections.abc import Sequence

from anomalydiffusion.core.errors import PriorError

__all__ = ["check_fit", "inpaints"]


def inpaints(channels: int, latent: int) -> bool:
    """Whether a denoiser of `channels` takes a hole's mask and what is seen around the hole besides a latent of `latent` channels."""
    return channels == 2 * latent + 1


def check_fit(where: str, *, channels: int, latent: int, tokens: int | Sequence[int], width: int) -> None:
    """Refuse a denoiser that wants more than a latent, or a latent and an inpainting model's surroundings, or other tokens.

    `where` begins the message, `tokens` is the width (or widths) that the denoiser expects, `width` the text encoder's.
    """
    if channels != latent and not inpaints(channels, latent):
        raise PriorError(
            f"{where}its denoiser takes {channels} channels, its autoencoder gives {latent}; depth, upscaling and editing models are not "
            "supported: give a text-to-image or an inpainting model"
        )
    if any(each != width for each in ([tokens] if isinstance(tokens, int) else tokens)):
        raise PriorError(
            f"{where}its denoiser takes tokens {tokens} wide, its text encoder gives {width}; models with several text encoders (SDXL) "
            "are not supported yet: give one of Stable Diffusion 1 or 2's family, or LDM text2img"
        )
