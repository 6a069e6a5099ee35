"""The label is what changed: fit a pair's mask to what is seen of its defect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import apply_hysteresis_threshold

from anomalydiffusion.core.shapes import EIGHT
from anomalydiffusion.core.types import Mask, Pair
from anomalydiffusion.quality.scores import FAINT

__all__ = ["fitted", "refit"]

REACH = 8  # pixels from the requested mask within which a label may grow
SMOOTH = 0.5  # pixels
NEAR = 7  # side of the window whose strongest change is the measure of an edge
SURE = 2.0  # times FAINT that a part must reach somewhere
SMALL = 0.02  # of the label's area: smaller parts are dropped


def refit(pair: Pair) -> Mask | None:
    """The part of a pair's image that is seen to differ from its normal image, near the requested mask; None where nothing is.

    The change is the length of the Lab difference, smoothed by less than a pixel. An edge is where it falls to half of the strongest
    change around, but not below `FAINT`; a part counts where it reaches twice that somewhere, and is no speck beside the others.
    Holes are filled, as people who draw labels do, but for those that the requested mask leaves open. Nothing beyond 8 pixels from it is
    marked.
    """
    x0, y0, x1, y1 = pair.requested.box
    pad = REACH + NEAR
    near = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    difference = rgb2lab(pair.image_HWC[near]) - rgb2lab(pair.normal_HWC[near])
    change = np.linalg.norm(ndimage.gaussian_filter(difference, (SMOOTH, SMOOTH, 0.0)), axis=2)
    edge = np.maximum(FAINT, ndimage.maximum_filter(change, NEAR) / 2)
    allowed = ndimage.distance_transform_edt(~pair.requested.pixels_HW[near]) <= REACH
    seen = apply_hysteresis_threshold(np.where(allowed & (change >= edge), change, 0.0), FAINT, SURE * FAINT)
    seen |= allowed & _holes(seen, pair.requested.pixels_HW[near])
    parts, count = ndimage.label(seen, EIGHT)
    if not count:
        return None
    areas = ndimage.sum_labels(seen, parts, np.arange(1, count + 1))
    kept = np.flatnonzero(areas >= max(4.0, SMALL * areas.sum())) + 1
    if not len(kept):
        return None
    pixels = np.zeros(pair.requested.pixels_HW.shape, bool)
    pixels[near] = np.isin(parts, kept)
    return Mask(pixels_HW=pixels, origin=f"{pair.requested.origin}, refitted", seed=pair.requested.seed)


def _holes(seen_HW: np.ndarray, requested_HW: np.ndarray) -> np.ndarray:
    """The holes in what is seen that were asked to be marked, by half of their pixels at least."""
    holes, count = ndimage.label(ndimage.binary_fill_holes(seen_HW) & ~seen_HW)
    shares = ndimage.mean(requested_HW, holes, np.arange(1, count + 1)) if count else []
    return np.isin(holes, np.flatnonzero(np.asarray(shares) >= 0.5) + 1)


def fitted(pair: Pair) -> Pair:
    """The pair with its label fitted to what is seen; as it was where nothing is, for the gate to say so."""
    return replace(pair, mask=refit(pair) or pair.mask)
