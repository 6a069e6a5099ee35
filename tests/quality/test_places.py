"""Places are compared by what surrounds a mask, never by what it marks."""

import numpy as np
import pytest

from anomalydiffusion.core.types import Mask
from anomalydiffusion.quality.features import EfficientNetLite0
from anomalydiffusion.quality.places import Places, healed, surroundings


@pytest.fixture(scope="module")
def features() -> EfficientNetLite0:
    return EfficientNetLite0()


def _mask(y: int, x: int, size: tuple[int, int] = (200, 300)) -> Mask:
    pixels = np.zeros(size, bool)
    pixels[y - 12 : y + 12, x - 12 : x + 12] = True
    return Mask(pixels_HW=pixels, origin="user")


def _plate(seed: int) -> np.ndarray:
    """Rough and dark on the left, smooth and bright on the right; they meet at x = 150."""
    random = np.random.default_rng(seed)
    grey = np.where(
        np.arange(300)[None, :] < 150, 70 + 25 * random.standard_normal((200, 300)), 170 + 2 * random.standard_normal((200, 300))
    )
    return np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def test_what_a_mask_marks_does_not_count() -> None:
    image, mask = _plate(0), _mask(100, 150)
    other = image.copy()
    other[mask.pixels_HW] = np.random.default_rng(1).integers(0, 256, (int(mask.pixels_HW.sum()), 3))
    seen = surroundings(image, mask).astype(int)
    assert np.abs(surroundings(other, mask) - seen).max() <= 12  # resizing spreads a defect's edge by a pixel or two
    assert np.abs(surroundings(other, _mask(60, 60)) - seen).max() > 60


def test_light_and_shade_go_on_under_a_mask() -> None:
    ramp = np.repeat(np.linspace(40, 200, 96).astype(np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    marked = np.zeros((96, 96), bool)
    marked[30:60, 30:60] = True
    stained = ramp.copy()
    stained[marked] = 255
    assert np.abs(healed(stained, marked).astype(int) - ramp).max() <= 2
    assert (healed(stained, np.ones((96, 96), bool)) == stained).all()  # nothing is around


def test_a_place_at_the_same_kind_of_edge_is_most_like_and_so_is_a_picture_of_the_same_kind(features: EfficientNetLite0) -> None:
    places = Places([(_plate(0), _mask(90, 150)), (_plate(1)[:, :150], _mask(90, 70, (200, 150)))], features)
    here = [_mask(120, 40), _mask(60, 150), _mask(120, 250)]  # rough, at the edge, smooth
    at_edge, in_rough = places.likeness(0, _plate(2), here), places.likeness(1, _plate(2), here)
    assert at_edge.argmax() == 1 and in_rough.argmax() == 0
    assert at_edge[1] > at_edge[2] + 0.1
    assert places.likeness(0, _plate(0), [_mask(90, 150)]) == pytest.approx(1, abs=1e-4)
    whole, rough = places.looks(_plate(3)), places.looks(_plate(3)[:, :150])
    assert whole[0] > rough[0] and rough[1] > whole[1]
