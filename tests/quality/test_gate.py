"""The gate keeps what is there and new, and says why it does not."""

import numpy as np
import pytest

from anomalydiffusion.core.types import Mask, Pair, Provenance
from anomalydiffusion.quality.gate import GateConfig, check_pair, reference


def _pair(image: np.ndarray, normal: np.ndarray, mask: Mask) -> Pair:
    provenance = Provenance(
        product="p", defect="d", seed=0, attempt=0, normal="n", normal_sha256="", mask_origin="user", touched_box=mask.box,
        prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0, version="0",
    )  # fmt: skip
    return Pair(image_HWC=image, mask=mask, normal_HWC=normal, requested=mask, provenance=provenance)


def _normal(noise: float, seed: int = 0) -> np.ndarray:
    grey = 120 + noise * np.random.default_rng(seed).standard_normal((100, 120, 1))
    return np.repeat(np.clip(grey, 0, 255), 3, axis=2).astype(np.uint8)


def _mask() -> Mask:
    pixels = np.zeros((100, 120), bool)
    pixels[40:60, 50:80] = True
    return Mask(pixels_HW=pixels, origin="user")


def _darkened(normal: np.ndarray, mask: Mask, by: float) -> np.ndarray:
    out = normal.astype(float)
    out[mask.pixels_HW] -= by
    return np.clip(out, 0, 255).astype(np.uint8)


def test_nothing_there_is_not_visible_and_a_defect_is() -> None:
    normal, mask = _normal(4), _mask()
    assert check_pair(_pair(normal, normal, mask), []).reasons == ("not visible",)
    verdict = check_pair(_pair(_darkened(normal, mask, 60), normal, mask), [])
    assert verdict.keep and verdict.measures["grey_inside"] > 50 and verdict.measures["grey_outside"] == 0


def test_a_rough_surface_asks_for_more() -> None:
    mask = _mask()
    faint = [check_pair(_pair(_darkened(n, mask, 10), n, mask), []).keep for n in (_normal(2), _normal(45))]
    assert faint == [True, False]


def test_a_copy_of_a_shot_is_caught_and_named() -> None:
    normal, mask = _normal(3), _mask()
    shot = _darkened(normal, mask, 70)
    verdict = check_pair(_pair(shot, normal, mask), [reference(shot, mask, "shot.png")])
    assert verdict.reasons == ("near copy of shot.png",)
    random = np.random.default_rng(5).integers(0, 256, shot.shape, dtype=np.uint8)
    assert check_pair(_pair(shot, normal, mask), [reference(random, mask, "other.png")], GateConfig()).keep


def _slanted(size: tuple[int, int], top: int, left: int) -> tuple[np.ndarray, Mask]:
    """A rough surface with a bent scratch that is like none of its own mirror images."""
    image = np.random.default_rng(1).integers(60, 200, (*size, 3), dtype=np.uint8)
    pixels = np.zeros(size, bool)
    for step in range(25):
        pixels[top + step : top + step + 4, left + step * step // 20 : left + step * step // 20 + 3] = True
    image[pixels] = 10
    return image, Mask(pixels_HW=pixels, origin="real")


@pytest.mark.parametrize("place", [(30, 41), (0, 6)])
@pytest.mark.parametrize("flip", [np.s_[:, :], np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]], ids=["as is", "across", "down", "both"])
def test_a_mirrored_copy_is_a_copy(place: tuple[int, int], flip: tuple[slice, ...]) -> None:
    shot, mask = _slanted((100, 121), *place)
    copy, moved = np.ascontiguousarray(shot[flip]), Mask(pixels_HW=mask.pixels_HW[flip], origin="user")
    verdict = check_pair(_pair(copy, np.full_like(shot, 120), moved), [reference(shot, mask, "shot.png")])
    assert verdict.reasons == ("near copy of shot.png",) and verdict.measures["likeness"] > 0.999


def test_a_turned_shot_is_no_copy() -> None:
    shot, mask = _slanted((100, 100), 30, 41)
    turned = _pair(np.rot90(shot).copy(), np.full_like(shot, 120), Mask(pixels_HW=np.rot90(mask.pixels_HW), origin="user"))
    assert check_pair(turned, [reference(shot, mask, "shot.png")]).keep
