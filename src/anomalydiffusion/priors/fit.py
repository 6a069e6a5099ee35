"""Whether a denoiser takes what its autoencoder and its text encoder give, on a grid that its levels can halve."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.core.names import shown

__all__ = ["MOST", "cells_of", "check_counts", "check_fit", "inpaints"]

MOST = {"layers": 100, "timesteps": 100_000}  # that a configuration may ask for; known priors have 32 and 1000


def inpaints(channels: int, latent: int) -> bool:
    """Whether a denoiser of `channels` takes a hole's mask and what is seen around the hole besides a latent of `latent` channels."""
    return channels == 2 * latent + 1


def cells_of(said: object, levels: int) -> int:
    """Latent cells per side of what a denoiser of so many levels draws, from what its configuration says.

    Raises `PriorError` where it does not say, where they are no square, and where its levels do not halve them evenly: then
    its crops would not come out of it at the size at which they went in.
    """
    sides = said if isinstance(said, list | tuple) else [said]
    cells, step = sides[0] if sides and all(each == sides[0] for each in sides) else None, 2 ** (levels - 1)
    if not isinstance(cells, int) or isinstance(cells, bool) or cells < 1:
        raise PriorError(f"its denoiser's configuration says sample_size = {shown(said)}: expected how many latent cells a side of its "
                         "pictures has, such as 64")  # fmt: skip
    if cells % step:
        raise PriorError(f"its denoiser's pictures are {cells} latent cells a side, which its {levels} levels do not halve evenly; "
                         f"set sample_size in its configuration to a multiple of {step}")  # fmt: skip
    return cells


def check_counts(where: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for more than any model has: the libraries would build it until memory ends.

    `where` begins the message. Looked at is what is a number, or numbers in lists, under a name that holds one of `MOST`; in tables too.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_counts(where, value)
        asked = value if isinstance(value, list | tuple) else [value]
        for each in itertools.chain.from_iterable(item if isinstance(item, list | tuple) else [item] for item in asked):
            for counted, most in MOST.items():
                if counted in name and isinstance(each, int | float) and not each <= most:
                    raise PriorError(f"{where}its configuration says {name} = {shown(each)}, {most:,} at most are read; get the file anew")


def check_fit(where: str, *, channels: int, latent: int, tokens: int | Sequence[int], width: int) -> None:
    """Refuse a denoiser that wants more than a latent, or a latent and an inpainting model's surroundings, or other tokens.

    `where` begins the message, `tokens` is the width (or widths) that the denoiser expects, `width` the text encoder's.
    """
    if channels != latent and not inpaints(channels, latent):
        raise PriorError(
            f"{where}its denoiser takes {channels} channels, its autoencoder gives {latent}; depth, upscaling and editing models are not "
            "supported: give a text-to-image or an inpainting model"
        )
    if any(each != width for each in (tokens if isinstance(tokens, list | tuple) else [tokens])):
        raise PriorError(
            f"{where}its denoiser takes tokens {tokens} wide, its text encoder gives {width}; models with several text encoders (SDXL) "
            "are not supported yet: give one of Stable Diffusion 1 or 2's family, or LDM text2img"
        )
