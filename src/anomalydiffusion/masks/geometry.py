"""Measure a mask and say whether it may be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import MaskError
from anomalydiffusion.core.types import Mask

__all__ = ["Shape", "accept", "border_shares", "largest", "measure"]

EIGHT = np.ones((3, 3), dtype=bool)  # the neighbourhood: touching by a corner is touching


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A mask in numbers."""

    area: float  # share of the image, 0..1
    parts: int  # 8-connected components
    elongation: float  # long over short axis of the ellipse with the same second moments, 1 = round
    border: float  # largest share of one image side that is marked, 0..1


def border_shares(pixels_HW: np.ndarray) -> dict[str, float]:
    """Share of each image side ("top", "bottom", "left", "right") that is marked, 0..1."""
    edges = {"top": pixels_HW[0], "bottom": pixels_HW[-1], "left": pixels_HW[:, 0], "right": pixels_HW[:, -1]}
    return {side: float(edge.mean()) for side, edge in edges.items()}


def measure(mask: Mask) -> Shape:
    """Measure area, parts, elongation and contact with the border.

    elongation = sqrt((l1 + 1/12) / (l2 + 1/12)), l1 >= l2 the eigenvalues of the covariance of the marked pixel centres
    (1/12 is the variance of one pixel, so a single pixel is round).
    """
    x0, y0, x1, y1 = mask.box
    inside = mask.pixels_HW[y0:y1, x0:x1]
    points = np.argwhere(inside).astype(np.float64)
    points -= points.mean(0)
    low, high = np.linalg.eigvalsh(points.T @ points / len(points))
    return Shape(
        area=mask.area,
        parts=int(ndimage.label(inside, EIGHT)[1]),
        elongation=float(np.sqrt((high + 1 / 12) / (max(low, 0.0) + 1 / 12))),
        border=max(border_shares(mask.pixels_HW).values()),
    )


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
