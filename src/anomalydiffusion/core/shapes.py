"""A mask in numbers: how large, how long, in how many parts, how near to the image's sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Mask

__all__ = ["EIGHT", "Shape", "border_shares", "measure", "shape_distances"]

EIGHT = np.ones((3, 3), dtype=bool)  # the neighbourhood: touching by a corner is touching


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A mask in numbers."""

    area: float  # share of the image, 0..1
    parts: int  # 8-connected components
    elongation: float  # long over short axis of the ellipse with the same second moments, 1 = round
    border: float  # largest share of one image side that is marked, 0..1
    margin: float  # distance to the nearest image side, as a share of the image's shorter side, 0..0.5; 0 = touches


def border_shares(pixels_HW: np.ndarray) -> dict[str, float]:
    """Share of each image side ("top", "bottom", "left", "right") that is marked, 0..1."""
    edges = {"top": pixels_HW[0], "bottom": pixels_HW[-1], "left": pixels_HW[:, 0], "right": pixels_HW[:, -1]}
    return {side: float(edge.mean()) for side, edge in edges.items()}


def measure(mask: Mask) -> Shape:
    """Measure area, parts, elongation, contact with the border and distance to it.

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
        margin=min(x0, y0, mask.pixels_HW.shape[1] - x1, mask.pixels_HW.shape[0] - y1) / min(mask.pixels_HW.shape),
    )


def shape_distances(some: Sequence[Shape], real: Sequence[Shape]) -> dict[str, float]:
    """Measure how far the shapes of some masks are from those of real ones: Wasserstein distances, 0 = the same law.

    `area` and `elongation` in doublings (of their base 2 logarithms), `parts` in parts, `margin` (to the nearest image side) in
    shares of the image's shorter side. Raises `DataError` where either side has no mask.
    """
    if not some or not real:
        raise DataError(f"shapes of {len(some)} masks against {len(real)}; at least one on each side is needed")
    from scipy.stats import wasserstein_distance  # half a second to import, and nearly every command imports this module

    measured = {
        "area": lambda shape: np.log2(shape.area), "elongation": lambda shape: np.log2(shape.elongation),
        "parts": lambda shape: shape.parts, "margin": lambda shape: shape.margin,
    }  # fmt: skip
    return {name: float(wasserstein_distance(*[[of(shape) for shape in side] for side in (some, real)])) for name, of in measured.items()}
