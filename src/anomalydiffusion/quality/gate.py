"""Pair -> Verdict: is the defect there, and is it a new one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.types import Mask, Pair, Verdict

__all__ = ["GateConfig", "Reference", "check_pair", "reference", "visibility"]

SIDE = 32  # pixels of the thumbnails that are compared with the shots
FLIPS = [np.s_[::down, ::across] for down in (1, -1) for across in (1, -1)]  # those that shots are learned in


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """When a pair is kept."""

    visible: float = 1.0  # smoothed change in the mask over the normal variation around it
    change: float = 1.5  # smallest mean smoothed change in the mask, in Lab units
    copy: float = 0.985  # correlation with a shot's crop, mirrored or not, from which a pair counts as its copy

    def __post_init__(self) -> None:
        if self.visible < 0 or self.change < 0 or not 0 < self.copy <= 1:
            raise ConfigError("gate: visible and change must be at least 0, copy 0..1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """A shot's defect as small normalised grey pictures, one for each flip: flips x SIDE x SIDE."""

    thumbnails: np.ndarray
    name: str


def _thumbnail(image_HWC: np.ndarray, mask: Mask) -> np.ndarray:
    box = crop_box(mask.box, mask.pixels_HW.shape[:2], 1.5, 24)
    grey = resize(np.ascontiguousarray(extract(image_HWC, box)), SIDE).astype(np.float64).mean(2)
    flat = grey - grey.mean()
    return flat / (np.linalg.norm(flat) + 1e-9)


def reference(image_HWC: np.ndarray, mask: Mask, name: str) -> Reference:
    """Make the thumbnails of a shot that pairs are compared with."""
    flipped = [_thumbnail(image_HWC[flip], Mask(pixels_HW=mask.pixels_HW[flip], origin=mask.origin)) for flip in FLIPS]
    return Reference(thumbnails=np.stack(flipped), name=name)


def visibility(image_HWC: np.ndarray, normal_HWC: np.ndarray, mask: Mask) -> tuple[float, float]:
    """(mean change inside the mask, normal variation around it), both in Lab units after smoothing by one pixel.

    The variation is the median change between the normal image and itself moved by 2 to 4 pixels, near the mask: what
    a person would call its texture.
    """
    x0, y0, x1, y1 = mask.box
    pad = 16 + max(x1 - x0, y1 - y0) // 4
    view = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    inside = mask.pixels_HW[view]
    after, before = rgb2lab(image_HWC[view]), rgb2lab(normal_HWC[view])

    def size(difference: np.ndarray) -> np.ndarray:
        return np.linalg.norm(ndimage.gaussian_filter(difference, (1.0, 1.0, 0.0)), axis=2)

    change = float(size(after - before)[inside].mean())
    shifts = [size(before - np.roll(before, (dy, dx), (0, 1))) for dy, dx in ((0, 3), (3, 0), (2, 2))]
    return change, float(np.median([np.median(shift) for shift in shifts]))


def check_pair(pair: Pair, references: Sequence[Reference], config: GateConfig | None = None) -> Verdict:
    """Judge one pair: visible enough against the normal's own variation, and no near copy of a shot, mirrored or not."""
    config = config or GateConfig()
    change, variation = visibility(pair.image_HWC, pair.normal_HWC, pair.mask)
    own = _thumbnail(pair.image_HWC, pair.mask)
    likeness = [float((own * each.thumbnails).sum((1, 2)).max()) for each in references]
    nearest = int(np.argmax(likeness)) if likeness else -1
    reasons = []
    if change < config.change or change < config.visible * variation:
        reasons.append("not visible")
    if likeness and likeness[nearest] >= config.copy:
        reasons.append(f"near copy of {references[nearest].name}")
    x0, y0, x1, y1 = pair.provenance.touched_box
    inside = pair.mask.pixels_HW[y0:y1, x0:x1]
    moved = np.abs(pair.image_HWC[y0:y1, x0:x1].astype(np.int16) - pair.normal_HWC[y0:y1, x0:x1]).mean(2)
    outside = pair.mask.pixels_HW.size - int(inside.sum())  # the whole image's; beyond the touched box nothing moved
    measures = {
        "change": change, "variation": variation, "likeness": max(likeness, default=0.0),
        "grey_inside": float(moved[inside].mean()), "grey_outside": float(moved[~inside].sum()) / max(1, outside),
    }  # fmt: skip
    return Verdict(keep=not reasons, reasons=tuple(reasons), measures={k: round(v, 4) for k, v in measures.items()})
