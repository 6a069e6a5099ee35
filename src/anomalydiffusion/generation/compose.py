"""Paste what was generated back into the normal image: feathered, colours matched, grain kept, the rest untouched."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from anomalydiffusion.core.types import Box

__all__ = ["feather", "paste", "ring"]


def feather(mask_HW: np.ndarray, width: float) -> np.ndarray:
    """`B`: 1 on the mask, falling smoothly to exactly 0 at `width` pixels from it. float H x W."""
    if width <= 0:
        return mask_HW.astype(np.float64)
    distance = ndimage.distance_transform_edt(~mask_HW)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(distance / width, 0, 1)) * 1.0


def ring(mask_HW: np.ndarray, inner: int, outer: int) -> np.ndarray:
    """The pixels between `inner` and `outer` pixels from the mask."""
    distance = ndimage.distance_transform_edt(~mask_HW)
    return (distance > inner) & (distance <= outer)


def _scaled(change_SSC: np.ndarray, side: int, seen: Box) -> np.ndarray:
    """Resize a signed change to a crop's own pixels, `side` a side, and cut out what is `seen` of it; no more is ever made."""
    size, (left, top, right, bottom) = change_SSC.shape[0], seen
    if size == side:
        return change_SSC[top:bottom, left:right]
    kind = Image.Resampling.BOX if size > side else Image.Resampling.BICUBIC
    box = left * size / side, top * size / side, min(size, right * size / side), min(size, bottom * size / side)
    planes = [
        np.asarray(Image.fromarray(change_SSC[..., c].astype(np.float32)).resize((right - left, bottom - top), kind, box=box))
        for c in range(change_SSC.shape[2])
    ]
    return np.stack(planes, axis=2).astype(np.float64)


def paste(
    normal_HWC: np.ndarray, generated_SSC: np.ndarray, decoded_SSC: np.ndarray, view_SSC: np.ndarray, box: Box, mask_HW: np.ndarray,
    *, width: float = 3.0, grain: float = 1.0, match: bool = True, cell: int = 8, start_HWC: np.ndarray | None = None,
) -> tuple[np.ndarray, Box]:  # fmt: skip
    """`out = y + B (up(x_gen) + g r - y)`, `r = y - up(D(E(v)))`: returns the image and the box of what it may have changed.

    y is the normal's crop, v = `view_SSC` the same on the working grid (0..255), `up` leads back from there to the crop's
    own pixels. `decoded_SSC` is D(E(v)), `generated_SSC` the decoded sample; `box` says where the crop lies. So r is all
    that the way there and back has lost: to the autoencoder, `v - D(E(v))`, and to the working grid, `y - up(v)`. With
    grain g = 1 it is handed back, and a sample equal to the round trip changes nothing at all; with g = 0 nothing of the
    normal's texture stays on the mask, however large the crop is. With `match`, the median change on a ring around the
    mask, beyond one latent cell of `cell` working pixels, is taken off inside: colours follow the normal. Outside B every
    pixel is the normal's, and a grey normal stays grey.

    Where the sample began from another image `start_HWC`, of the normal's size and equal to it outside the mask, `view_SSC` and
    `decoded_SSC` are that image's, and so is r, all of it (`grain` 1): what the way lost of the start's own roughness returns,
    and a sample equal to its round trip gives the start.
    """
    began_HWC = normal_HWC if start_HWC is None else start_HWC
    change = generated_SSC.astype(np.float64) - decoded_SSC - (1 - grain) * (view_SSC.astype(np.float64) - decoded_SSC)
    if (normal_HWC == normal_HWC[..., :1]).all() and (began_HWC == began_HWC[..., :1]).all():  # a grey camera sees no colour
        change = np.repeat(change.mean(axis=2, keepdims=True), 3, axis=2)
    x0, y0, x1, y1 = box
    height, width_px = mask_HW.shape
    top, left, bottom, right = max(0, y0), max(0, x0), min(height, y1), min(width_px, x1)
    seen = left - x0, top - y0, right - x0, bottom - y0
    change = _scaled(change, x1 - x0, seen)
    inside = mask_HW[top:bottom, left:right]
    if match:
        clear = max(width, cell * (x1 - x0) / view_SSC.shape[0])  # beyond the latent cells that were generated
        around = ring(inside, int(clear) + 1, int(clear) + 7)
        if around.sum() >= 16:
            change = change - np.median(change[around], axis=0)
    alpha = feather(inside, width)
    out = normal_HWC.copy()
    y, began = (each[top:bottom, left:right].astype(np.float64) for each in (normal_HWC, began_HWC))
    if grain != 1:
        change = change - (1 - grain) * (began - _scaled(view_SSC.astype(np.float64), x1 - x0, seen))
    part = y + alpha[..., None] * (began - y + change)
    touched = alpha > 0
    out[top:bottom, left:right] = np.where(touched[..., None], np.clip(part + 0.5, 0, 255).astype(np.uint8), out[top:bottom, left:right])
    rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    return out, (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
