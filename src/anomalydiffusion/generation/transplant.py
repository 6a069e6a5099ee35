"""Carry a real defect under a mask: what a drawing starts from that does not start from noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.seams import membrane
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.foreground import foreground

__all__ = ["Seam", "seen_through", "transplant"]

LOOKED_AT = 3  # shots of which the one whose shape fits best is taken
ELONGATED = 1.5  # length over width from which a shape has a direction
EDGE = 8  # pixels around a mask's box that are looked at
CLEAR = 6  # pixels around a defect that may still show it, as its halo or its blur: taken for sound they would wash it out
BLUR = 2.0  # deviation in pixels

Seam = Literal["median", "membrane"]


def _moments(pixels_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of a shape (y, x) and the covariance of its points, that of a single pixel at least."""
    points = np.argwhere(pixels_HW).astype(np.float64)
    spread = points - points.mean(0)
    return points.mean(0), spread.T @ spread / len(points) + np.eye(2) / 12


def _lengths(covariance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.linalg.eigvalsh(covariance))


def _misfit(of: np.ndarray, to: np.ndarray) -> float:
    """How far one covariance is from another: the sum of what both axes are stretched by, as logarithms."""
    return float(np.abs(np.log(_lengths(of) / _lengths(to))).sum())


def _frame(covariance: np.ndarray, turned: bool) -> np.ndarray:
    """The matrix from a round shape to this one: along its own axes where it is turned, else along the image's."""
    if not turned:
        return np.diag(np.sqrt(np.diag(covariance)))
    variances, axes = np.linalg.eigh(covariance)
    return np.asarray(axes * np.sqrt(variances))


def seen_through(shots: Sequence[tuple[np.ndarray, Mask]]) -> list[bool]:
    """Whether the background is seen through each defect of a type, as the table through a broken biscuit: most of it is not on the object.

    Where most of them are such gaps, all are: the object is not always found without its gap.
    """
    seen = [bool(foreground(image)[mask.pixels_HW].mean() < 0.5) for image, mask in shots]
    return [True] * len(seen) if 2 * sum(seen) > len(seen) else seen


def transplant(
    normal_HWC: np.ndarray, mask: Mask, shots: Sequence[tuple[np.ndarray, Mask]], *, seed: int, seam: Seam = "membrane",
    through: Sequence[bool] | None = None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Fill the mask of a normal image with a real defect; returns the image and the number of the shot that it is from.

    A mask that knows its reference among the `shots` and its trace in it gets what that shot shows there: the defect is warped
    like its mask. For any other, of three random shots the one whose shape is nearest is taken, mirrored at random and stretched
    so that both masks have the same centre and the same spread along their axes (along the image's axes unless both are
    elongated). Where the mask reaches beyond the shot's own, the defect's nearest pixel goes on. Its colours keep their
    difference from the shot's surroundings: with `seam` "median" the median of what both surroundings differ by is added to all of it, so
    that a few tracks or rims that do not meet count nothing; with "membrane" what they differ by at each place of the edge is spread over
    the inside (`core.seams`), so that light and shade that cross the edge go on across it. A matched mask lies where both surroundings are
    alike, and what still differs are tracks and rims that are off by a pixel: there it is always the median, and so it is for
    shots that `through` says the background is seen through, over which the object's light and shade are not to be spread. Beyond the
    shot's own mask these are mirrored at its edge: drawn out, the crumbs at the edge of a gap would become rays. Outside the mask every
    pixel stays.

    `normal_HWC`: uint8 RGB of the mask's size; `shots`: at least one uint8 RGB image with its mask, of any sizes; `through`: what
    `seen_through` says of them, None = of none.
    """
    if mask.trace is not None and 0 <= mask.reference < len(shots):
        chosen, at = mask.reference, mask.trace
        shrunk = float(np.sqrt(shots[chosen][1].pixels_HW.sum() / mask.pixels_HW.sum()))
    else:
        chosen, at, shrunk = _fitted(mask, [own for _, own in shots], rng(seed, "transplant"))
    image, own = shots[chosen]
    gap = through is not None and through[chosen]
    defect, corner = _alone(image, own, mirrored=gap)
    blur = max(0.0, (shrunk - 1) / 2)  # where the defect shrinks
    defect = ndimage.gaussian_filter(defect, (blur, blur, 0), mode="nearest")
    beyond = "mirror" if gap else "nearest"
    colours = np.stack([ndimage.map_coordinates(defect[..., c], at - corner[:, None], order=1, mode=beyond) for c in range(3)], 1)
    unlike, inside = _unlike(normal_HWC, mask, image, own, at)
    if not inside.all():
        spread = seam == "membrane" and mask.origin != "matched" and not gap
        colours += membrane(unlike, inside) if spread else np.median(unlike[~inside], axis=0)
    out = normal_HWC.copy()
    out[mask.pixels_HW] = np.clip(colours + 0.5, 0, 255).astype(np.uint8)
    return out, chosen


def _unlike(
    normal_HWC: np.ndarray, mask: Mask, image_HWC: np.ndarray, own: Mask, at_2N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What is to be added to the shot's sound surface around a defect to make the normal image's of it, h x w x 3, and the mask there.

    Both are blurred first, so that what crosses the edge are light and shade, not grain. Beyond the mask the way into the shot goes
    on as it does in the mean, `at = A p + b`, from the nearest marked pixel.
    """
    height, width = mask.pixels_HW.shape
    x0, y0, x1, y1 = mask.box
    near = np.s_[max(0, y0 - EDGE) : min(height, y1 + EDGE), max(0, x0 - EDGE) : min(width, x1 + EDGE)]
    inside = mask.pixels_HW[near]
    if inside.all():
        return np.zeros((*inside.shape, 3)), inside
    places = np.argwhere(mask.pixels_HW)
    way = np.linalg.lstsq(places - places.mean(0), (at_2N - at_2N.mean(1, keepdims=True)).T, rcond=None)[0].T  # A; of a line 0 across it
    numbers = np.zeros(mask.pixels_HW.shape, int)
    numbers[mask.pixels_HW] = np.arange(len(places))
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    number = numbers[near][tuple(nearest)]
    points = np.asarray(np.mgrid[near]).reshape(2, -1)
    there = at_2N[:, number.ravel()] + way @ (points - places[number.ravel()].T)
    sound, corner = _sound(image_HWC, own)
    seen: Any = [ndimage.map_coordinates(sound[..., c], there - corner[:, None], order=1, mode="nearest") for c in range(3)]
    around = ndimage.gaussian_filter(normal_HWC[near].astype(np.float64), (BLUR, BLUR, 0), mode="nearest")
    return around - np.stack(seen, 1).reshape(around.shape), inside


def _sound(image_HWC: np.ndarray, own: Mask) -> tuple[np.ndarray, np.ndarray]:
    """What surrounds a defect, its nearest pixel where the defect is, blurred; float h x w x 3, and the window's corner (y, x)."""
    height, width = own.pixels_HW.shape
    x0, y0, x1, y1 = own.box
    pad = max(2 * EDGE, (x1 - x0) // 2, (y1 - y0) // 2)
    top, left = max(0, y0 - pad), max(0, x0 - pad)
    near = np.s_[top : min(height, y1 + pad), left : min(width, x1 + pad)]
    defect = ndimage.binary_dilation(own.pixels_HW[near], iterations=CLEAR)
    if defect.all():
        defect = own.pixels_HW[near]
    if defect.all():
        return image_HWC[near].astype(np.float64), np.array([top, left])
    nearest = ndimage.distance_transform_edt(defect, return_distances=False, return_indices=True)
    filled = image_HWC[near][tuple(nearest)].astype(np.float64)
    return ndimage.gaussian_filter(filled, (BLUR, BLUR, 0), mode="nearest"), np.array([top, left])


def _fitted(mask: Mask, shapes: Sequence[Mask], random: np.random.Generator) -> tuple[int, np.ndarray, float]:
    """Of three random shapes the nearest, where in it each marked pixel of the mask lies (2 x N), and how far lengths shrink."""
    centre, covariance = _moments(mask.pixels_HW)
    drawn = random.permutation(len(shapes))[:LOOKED_AT]
    spreads = {int(row): _moments(shapes[row].pixels_HW) for row in drawn}
    chosen = min(spreads, key=lambda row: _misfit(spreads[row][1], covariance))
    own_centre, own_covariance = spreads[chosen]
    turned = all(np.divide(*_lengths(each)[::-1]) >= ELONGATED for each in (covariance, own_covariance))
    mirror = np.diag(random.choice([-1.0, 1.0], 2))
    back = _frame(own_covariance, turned) @ mirror @ np.linalg.inv(_frame(covariance, turned))
    at = ((np.argwhere(mask.pixels_HW) - centre) @ back.T + own_centre).T
    return chosen, at, float(np.sqrt(abs(np.linalg.det(back))))


def _alone(image_HWC: np.ndarray, own: Mask, *, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A defect without its surroundings, in its box: float h x w x 3, and the box's corner (y, x).

    There its nearest pixel goes on; with `mirrored` what lies as far on the other side of that pixel, or is nearest to there.
    """
    x0, y0, x1, y1 = own.box
    inside = own.pixels_HW[y0:y1, x0:x1]
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    if mirrored:
        last = np.array(inside.shape)[:, None, None] - 1
        across = np.clip(2 * nearest - np.indices(inside.shape), 0, last)
        nearest = nearest[:, across[0], across[1]]
    return image_HWC[y0:y1, x0:x1][tuple(nearest)].astype(np.float64), np.array([y0, x0])
