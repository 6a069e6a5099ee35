"""The gate keeps what is there and new, and says why it does not."""

import numpy as np

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
