"""Join two pictures without a seam: what they differ by at the edge is spread smoothly over the inside."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse.linalg import splu

from anomalydiffusion.core.errors import DataError

__all__ = ["membrane", "poisson_blend"]

LARGEST = 40_000  # cells that are solved for; a larger region is solved on a coarser grid
NEXT = ((0, 1), (1, 0), (0, -1), (-1, 0))


def membrane(difference_HWC: np.ndarray, inside_HW: np.ndarray, *, largest: int | None = LARGEST) -> np.ndarray:
    """Stretch a membrane over the marked part that meets `difference` on the pixels around it: float N x C, N marked pixels.

    `Laplace u = 0` inside, `u = difference` on the 4-neighbours outside; at the image's own sides u's slope across is 0. What
    `difference` says inside does not count; where all is marked, u is its mean. More than `largest` pixels are solved for on a
    coarser grid (None = never). Any unit and C.
    """
    count = int(inside_HW.sum())
    if inside_HW.all():
        return np.broadcast_to(difference_HWC.mean((0, 1)), (count, difference_HWC.shape[2])).astype(np.float64)
    if largest is not None and count > largest:
        return _coarsely(difference_HWC, inside_HW, math.ceil(math.sqrt(count / largest)))
    place, numbers = np.argwhere(inside_HW), np.cumsum(inside_HW).reshape(inside_HW.shape) - 1
    around, edge, links = np.zeros(count), np.zeros((count, difference_HWC.shape[2])), []
    for step in NEXT:
        beside = place + step
        mine = np.flatnonzero(((beside >= 0) & (beside < inside_HW.shape)).all(1))
        y, x = beside[mine].T
        around[mine] += 1
        inner = inside_HW[y, x]
        edge[mine[~inner]] += difference_HWC[y[~inner], x[~inner]]
        links.append((mine[inner], numbers[y[inner], x[inner]]))
    row, column = (np.concatenate(ends) for ends in zip(*links, strict=True))
    system = sparse.diags(around) - sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=(count,) * 2)
    solved: np.ndarray = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(edge)
    return solved


def _coarsely(difference_HWC: np.ndarray, inside_HW: np.ndarray, factor: int) -> np.ndarray:
    """The same on cells of `factor` x `factor` pixels; one with any pixel outside is outside, and has those pixels' mean."""
    height, width = (-(-side // factor) * factor for side in inside_HW.shape)
    pad = (0, height - inside_HW.shape[0]), (0, width - inside_HW.shape[1])
    outside = np.pad(~inside_HW, pad).astype(np.float64)
    shape = height // factor, factor, width // factor, factor
    weight = outside.reshape(shape).sum((1, 3))
    whole = np.pad(difference_HWC.astype(np.float64), (*pad, (0, 0))) * outside[..., None]
    mean = whole.reshape(*shape, -1).sum((1, 3)) / np.maximum(weight, 1)[..., None]
    mean[weight == 0] = membrane(mean, weight == 0, largest=None)
    planes = [np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
              for plane in np.moveaxis(mean, 2, 0)]  # fmt: skip
    return np.stack(planes, 2)[: inside_HW.shape[0], : inside_HW.shape[1]][inside_HW].astype(np.float64)


def poisson_blend(source_HWC: np.ndarray, target_HWC: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    """Fill the marked part of a target with what has the source's gradients and meets the target at its edge.

    Solves `Laplace f = Laplace source` inside with `f = target` outside [Perez et al. 2003, Poisson Image Editing, seamless
    cloning], as `f = source + u` with u the `membrane` of `target - source`. At the image's own sides only f's gradient across is
    given, the source's; where all is marked, f has the target's mean. Any C, numeric dtype and unit; returns float H x W x C,
    equal to the target outside. Raises `DataError` on unlike shapes.
    """
    if source_HWC.shape != target_HWC.shape or source_HWC.shape[:2] != inside_HW.shape:
        raise DataError(f"blend {source_HWC.shape} into {target_HWC.shape} under {inside_HW.shape}: expected H x W x C twice and H x W")
    out, difference = target_HWC.astype(np.float64), target_HWC.astype(np.float64) - source_HWC
    out[inside_HW] = source_HWC[inside_HW] + membrane(difference, inside_HW, largest=None)
    return out
