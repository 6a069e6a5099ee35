"""Where defects of a type lie: how alike pictures, and places in them, are to those of real defects, by the perceptual backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from anomalydiffusion.core.crops import crop_box, extract, resize
from anomalydiffusion.core.seams import membrane
from anomalydiffusion.core.types import Mask
from anomalydiffusion.quality.features import FeatureExtractor

__all__ = ["Places", "healed", "surroundings", "unit_vectors"]

SIDE = 96  # pixels of what is compared
AROUND = 2.0  # a view's side in lengths of the mask's box
LEAST = 64  # pixels of the image that a view shows at least
CLEAR = 2  # pixels of a view around the mask that may still show the defect, as its halo or its blur


def _square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle, resized: of pictures of any shape, what is compared as a whole."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return resize(image[top : top + side, left : left + side], SIDE)


def healed(view_HWC: np.ndarray, inside_HW: np.ndarray) -> np.ndarray:
    """A view with what surrounds its mask going on smoothly under it; as it is where the mask leaves nothing around."""
    inside = ndimage.binary_dilation(inside_HW, iterations=CLEAR)
    if inside.all() or not inside.any():
        return view_HWC
    out = view_HWC.copy()
    out[inside] = np.clip(membrane(view_HWC.astype(np.float64), inside) + 0.5, 0, 255).astype(np.uint8)
    return out


def surroundings(image_HWC: np.ndarray, mask: Mask) -> np.ndarray:
    """The square around a mask's box, twice as long, without what the mask marks: uint8 RGB, `SIDE` x `SIDE`."""
    box = crop_box(mask.box, image_HWC.shape[:2], AROUND, LEAST)
    return healed(resize(extract(image_HWC, box), SIDE), resize(extract(mask.pixels_HW, box), SIDE))


def unit_vectors(views: Sequence[np.ndarray], features: FeatureExtractor) -> np.ndarray:
    """One vector of length 1 for each view, all of one size: N x D.

    Of each feature map but the finest the mean over cells of their vectors, each brought to length 1 as in perceptual distances, and so
    is each mean: what a place is made of, wherever in the view.
    """
    parts = []
    for layer in features.maps(views)[1:]:
        mean = nn.functional.normalize(layer, dim=1).mean((2, 3))
        parts.append(nn.functional.normalize(mean, dim=1))
    return np.asarray(nn.functional.normalize(torch.cat(parts, 1), dim=1))


class Places:
    """The shots of one defect type: what each picture looks like as a whole, and around its defect.

    Likeness is the cosine of two feature vectors: 1 = the same; most places of one product are above 0.7, so compare, do not threshold.
    """

    def __init__(self, shots: Sequence[tuple[np.ndarray, Mask]], features: FeatureExtractor) -> None:
        self.features = features
        wholes = [healed(_square(image), _square(mask.pixels_HW)) for image, mask in shots]
        self.wholes, self.around = unit_vectors(wholes, features), unit_vectors([surroundings(*shot) for shot in shots], features)

    def looks(self, image_HWC: np.ndarray) -> np.ndarray:
        """How like each shot's picture a picture looks, as a whole: one figure a shot."""
        return np.asarray(self.wholes @ unit_vectors([_square(image_HWC)], self.features)[0])

    def likeness(self, shot: int, image_HWC: np.ndarray, masks: Sequence[Mask]) -> np.ndarray:
        """How like the surroundings of one shot's defect those of each mask in a picture are."""
        return np.asarray(unit_vectors([surroundings(image_HWC, mask) for mask in masks], self.features) @ self.around[shot])
