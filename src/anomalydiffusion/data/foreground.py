"""Find the object in a picture, by the colours of its border."""

from __future__ import annotations

from functools import reduce

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu

from anomalydiffusion.core.shapes import EIGHT

__all__ = ["foreground"]

LONG_SIDE = 256  # `foreground` looks at a copy of this size
BIN = 6.0  # edge of a cell of Lab colours, in Lab units: about the noise of a plain background
BORDER_KNOWN = 0.8  # share of the border ring that the background's colours explain; the rest may be a neighbour's corner
MIN_CONTRAST = 12.0  # Lab units between object and background; less is shading
MIN_SEPARATION = 0.8  # between-class over total variance; a linear shading has 0.75
MIN_STEP = 0.6  # share of that contrast that must be met within a few pixels of the outline; a shading has no outline
MAX_ON_BORDER = 0.2  # share of the ring that lies on the object; more means that the surface leaves the picture
MIN_CUT = 0.3  # an object that the border cuts must be this large; prints and traces that leave the picture are smaller
MIN_SOLIDITY = 0.5  # share of the rows' and columns' spans that the object fills; a printed pattern fills little
HOLE = 0.05  # share of an object with its holes from which a hole in it is background that is seen through it; less is a mark on it


def _ring(shape: tuple[int, int]) -> np.ndarray:
    """The pixels along the border of a small picture: 3 % of its short side wide, at least 2."""
    width = max(2, round(0.03 * min(shape)))
    ring = np.ones(shape, dtype=bool)
    ring[width:-width, width:-width] = False
    return ring


def _background_distance(lab_HWC: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Lab distance of each pixel to the nearest of the colours that are frequent on the ring."""
    cells = np.round(lab_HWC[ring] / BIN)
    _, first, counts = np.unique(cells @ (1e6, 1e3, 1), return_index=True, return_counts=True)  # a number for each cell, in their order
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), BORDER_KNOWN * counts.sum())) + 1
    lab_CHW = np.ascontiguousarray(np.moveaxis(lab_HWC, -1, 0), dtype=np.float64)
    squares = (np.square(lab_CHW - colour[:, None, None]).sum(0) for colour in cells[first[order[:enough]]] * BIN)  # a dozen at most
    return np.sqrt(reduce(np.minimum, squares))


def _solidity(part: np.ndarray) -> float:
    """Mean share of the span between first and last pixel that is filled, over rows and columns."""
    spans = 0
    for view in (part, part.T):
        rows = view[view.any(1)]
        spans += int((rows.shape[1] - rows[:, ::-1].argmax(1) - rows.argmax(1)).sum())
    return 2 * int(part.sum()) / spans


def _holes(found: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The large holes in what was found; `labels` and `sizes` are of the objects with their holes filled."""
    holes, count = ndimage.label(~found & (labels > 0))
    if not count:
        return np.zeros(found.shape, bool)
    numbers = np.arange(1, count + 1)
    around = sizes[ndimage.maximum(labels, holes, numbers).astype(int) - 1]
    return np.isin(holes, numbers[ndimage.sum_labels(holes > 0, holes, numbers) >= HOLE * around])


def _object(lab_HWC: np.ndarray, min_share: float) -> np.ndarray | None:
    """The object before a plain background, or None when the picture is all surface."""
    ring = _ring(lab_HWC.shape[:2])
    distance = _background_distance(lab_HWC, ring)
    threshold = threshold_otsu(distance)
    found = distance > threshold
    radius = max(1, round(0.008 * max(found.shape)))
    disk = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    found = ndimage.binary_closing(found, disk)
    filled = ndimage.binary_opening(ndimage.binary_fill_holes(found), disk)
    labels, count = ndimage.label(filled)
    if count == 0:
        return None
    sizes = ndimage.sum_labels(filled, labels, np.arange(1, count + 1))
    on_ring = ndimage.sum_labels(ring & filled, labels, np.arange(1, count + 1))
    # Parts that the border cuts are neighbours, unless the largest of all is such a part.
    whole = on_ring < 0.02 * ring.sum()
    largest = int(sizes.argmax())
    keep = (sizes >= 0.2 * sizes[largest]) & (whole | (np.arange(count) == largest))
    found = np.isin(labels, np.flatnonzero(keep) + 1) & ~_holes(found, labels, sizes)
    outside = ~ndimage.binary_dilation(found, disk)
    share, cut = float(found.mean()), float((found & ring).sum() / ring.sum())
    if not outside.any() or cut > MAX_ON_BORDER or share < (MIN_CUT if cut > 0.005 else min_share):
        return None
    contrast = float(np.median(distance[found]) - np.median(distance[outside]))
    between = share * (1 - share) * float(distance[found].mean() - distance[~found].mean()) ** 2
    near, far = found & ~ndimage.binary_erosion(found, EIGHT, 4), ndimage.binary_dilation(found, EIGHT, 4) & ~found
    step = float(np.median(distance[near]) - np.median(distance[far]))
    if contrast < MIN_CONTRAST or between < MIN_SEPARATION * distance.var() or step < MIN_STEP * contrast:
        return None
    return found if _solidity(labels == largest + 1) >= MIN_SOLIDITY else None


def foreground(image_HWC: np.ndarray, *, min_share: float = 0.05) -> np.ndarray:
    """Find the object's pixels: bool H x W. No network: the border ring shows the background's colours.

    Otsu's threshold on the Lab distance to those colours proposes an object; it is taken when it differs clearly from the
    background, has an outline (no mere shading), is solid, covers at least `min_share` (0..1) of the image, and does not
    leave the picture along much of the border. Otherwise the picture is all surface, and every pixel is returned.
    """
    height, width = image_HWC.shape[:2]
    everything = np.ones((height, width), dtype=bool)
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if min(size) < 16:
        return everything
    small = np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
    lab = ndimage.gaussian_filter(rgb2lab(small).astype(np.float32), (1.0, 1.0, 0.0))
    if (found := _object(lab, min_share)) is None:
        return everything
    soft = ndimage.gaussian_filter(found.astype(np.float32), 1.0, mode="nearest")
    large = Image.fromarray(np.round(soft * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large) >= 128
