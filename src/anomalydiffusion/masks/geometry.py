"""Say whether a mask may be used, and keep the largest of its parts."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import MaskError
from anomalydiffusion.core.shapes import EIGHT, border_shares
from anomalydiffusion.core.types import Mask

__all__ = ["accept", "largest"]


def largest(marks_HW: np.ndarray, most: int) -> np.ndarray:
    """The `most` largest connected parts of what is marked."""
    labels, count = ndimage.label(marks_HW, EIGHT)
    if count <= most:
        return marks_HW
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.argsort(-sizes, kind="stable")[:most])


def accept(
    mask: Mask, *, foreground_HW: np.ndarray | None = None, min_pixels: int = 4, max_area: float = 0.6,
    min_on_object: float = 0.98, max_border: float = 0.5,
) -> str | None:  # fmt: skip
    """Return None when the mask may be used, otherwise the reason why not, in words [arXiv 2312.05767v2, masks].

    `foreground_HW`: bool, the object's pixels. `max_area`, `min_on_object`, `max_border` are shares in 0..1; a defect at
    the object's rim may cover a whole image side, pass `max_border=1` for those. Raises MaskError when the sizes differ.
    """
    x0, y0, x1, y1 = mask.box
    inside = mask.pixels_HW[y0:y1, x0:x1]
    count = int(inside.sum())
    if count < min_pixels:
        return f"marks {count} pixel{'s' * (count != 1)}, fewer than {min_pixels}"
    if (area := count / mask.pixels_HW.size) > max_area:
        return f"covers too much of the image ({area:.0%}, at most {max_area:.0%})"
    side, share = max(border_shares(mask.pixels_HW).items(), key=lambda item: item[1])
    if share > max_border:
        return f"touches most of a border ({share:.0%} of the {side} side, at most {max_border:.0%})"
    if foreground_HW is not None:
        if foreground_HW.shape != mask.pixels_HW.shape:
            raise MaskError(f"{mask.origin} mask is {mask.pixels_HW.shape}, the object's pixels are {foreground_HW.shape}")
        on_object = float(foreground_HW[y0:y1, x0:x1][inside].mean())
        if on_object < min_on_object:
            return f"lies off the object ({on_object:.0%} on it, at least {min_on_object:.0%})"
    return None
