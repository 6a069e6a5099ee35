"""The grain of a defect is measured where the answer is known."""

import numpy as np
import pytest
from scipy import ndimage

from anomalydiffusion.core.types import Mask
from anomalydiffusion.training.recipes import grain_ratio, measures


def _shot(inside: float, around: float = 8.0, side: int = 40, seed: int = 0) -> tuple[np.ndarray, Mask]:
    """A dark square of `side` pixels whose grain has the deviation `inside`, on a surface of deviation `around`."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((120, 140), bool)
    pixels[30 : 30 + side, 40 : 40 + side] = True
    grey = np.where(pixels, 90.0, 150.0) + random.standard_normal(pixels.shape) * np.where(pixels, inside, around)
    image = np.clip(grey + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), Mask(pixels_HW=pixels, origin="real")


def test_a_smooth_hole_has_no_grain() -> None:
    assert grain_ratio(*_shot(0.0)) == pytest.approx(0.0, abs=0.02)


def test_the_same_texture_has_all_of_it() -> None:
    assert grain_ratio(*_shot(8.0)) == pytest.approx(1.0, abs=0.1)


def test_it_is_a_ratio_of_amplitudes() -> None:
    assert grain_ratio(*_shot(4.0)) == pytest.approx(0.5, abs=0.06)  # a ratio of energies would be 0.25
    assert grain_ratio(*_shot(16.0)) == pytest.approx(2.0, abs=0.2)


def test_shading_is_not_grain() -> None:
    image, mask = _shot(8.0)
    bent = np.where(mask.pixels_HW, 30 * np.sin(np.mgrid[:120, :140][1] / 15), 0)
    shaded = np.clip(image + ndimage.gaussian_filter(bent, 3)[..., None], 0, 255).astype(np.uint8)
    assert grain_ratio(shaded, mask) == pytest.approx(1.0, abs=0.12)


def test_too_few_pixels_tell_nothing() -> None:
    assert grain_ratio(*_shot(8.0, side=6)) is None  # 2 x 2 are left after the rim of two pixels
    whole = Mask(pixels_HW=np.ones((60, 60), bool), origin="real")
    assert grain_ratio(np.full((60, 60, 3), 100, np.uint8), whole) is None  # nothing lies around it


def test_each_defect_type_gets_the_median_of_its_shots_cut_to_one() -> None:
    found = measures({
        ("plate", "hole"): [_shot(0.0), _shot(0.0, seed=1), _shot(8.0, seed=2), _shot(8.0, side=6)],
        ("plate", "rough"): [_shot(20.0)], ("plate", "scratch"): [_shot(8.0, side=5)],
    })  # fmt: skip
    assert set(found) == {"plate/hole", "plate/rough", "plate/scratch"}
    assert found["plate/hole"]["grain"] < 0.05
    assert found["plate/rough"] == {"grain": 1.0} and found["plate/scratch"] == {"grain": 1.0}
