"""A refitted label is what is seen to have changed, wherever the request was a little wrong."""

import numpy as np
import pytest
from scipy import ndimage

from anomalydiffusion.core.types import Mask, Pair, Provenance
from anomalydiffusion.quality.refit import fitted, refit

SIZE = (160, 180)


def _pair(image: np.ndarray, normal: np.ndarray, requested: np.ndarray) -> Pair:
    mask = Mask(pixels_HW=requested, origin="warped")
    provenance = Provenance(
        product="p", defect="d", seed=0, attempt=0, normal="n", normal_sha256="", mask_origin="warped", touched_box=mask.box,
        prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0, version="0",
    )  # fmt: skip
    return Pair(image_HWC=image, mask=mask, normal_HWC=normal, requested=mask, provenance=provenance)


def _truth(kind: str, random: np.random.Generator) -> np.ndarray:
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    if kind == "disc":
        return np.hypot(yy - 80, xx - 90) < random.integers(6, 30)
    if kind == "blots":
        noise = ndimage.gaussian_filter(random.standard_normal(SIZE), 9)
        return noise > np.quantile(noise, 0.96)
    out = np.zeros(SIZE, bool)
    for step in range(80):
        left = int(50 + 20 * np.sin(step / 15) + step / 2)
        out[30 + step : 33 + step, left : left + 3] = True
    return out


@pytest.mark.parametrize("kind", ["disc", "scratch", "blots"])
@pytest.mark.parametrize("seed", range(6))
def test_a_known_change_is_found_to_nine_tenths(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = _truth(kind, random)
    normal = 120 + random.uniform(2, 10) * ndimage.gaussian_filter(random.standard_normal(SIZE), 0.6)
    rough = np.clip(1 + ndimage.gaussian_filter(random.standard_normal(SIZE), 1.5), 0.3, 2)
    drawn = normal + random.choice([-1, 1]) * random.uniform(25, 90) * rough * truth * ndimage.gaussian_filter(truth.astype(float), 0.6)
    image, before = (np.repeat(np.clip(each, 0, 255)[..., None], 3, axis=2).astype(np.uint8) for each in (drawn, normal))
    asked = np.roll(ndimage.binary_dilation(truth, iterations=int(random.integers(1, 5))), random.integers(-3, 4, 2), (0, 1))
    found = refit(_pair(image, before, asked))
    assert found is not None and found.origin == "warped, refitted"
    overlap = [(each & truth).sum() / (each | truth).sum() for each in (found.pixels_HW, asked)]
    assert overlap[0] >= 0.9 and overlap[0] > overlap[1]


@pytest.mark.parametrize(("inner", "outer"), [(4, 12), (36, 44)])
def test_a_ring_stays_open(inner: int, outer: int) -> None:
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(yy - 80, xx - 90)
    ring = (away >= inner) & (away < outer)
    normal = np.full((*SIZE, 3), 120, np.uint8)
    image = normal.copy()
    image[ring] = 40
    found = refit(_pair(image, normal, ring))
    assert found is not None and not found.pixels_HW[80, 90]
    assert (found.pixels_HW & ring).sum() / (found.pixels_HW | ring).sum() >= 0.9


def test_nothing_seen_gives_no_label_and_the_pair_keeps_what_was_asked_for() -> None:
    normal = np.full((*SIZE, 3), 120, np.uint8)
    asked = _truth("disc", np.random.default_rng(0))
    pair = _pair(normal, normal, asked)
    assert refit(pair) is None and fitted(pair).mask is pair.requested


def test_specks_and_what_is_far_off_are_not_marked_and_holes_are() -> None:
    normal = np.full((*SIZE, 3), 120, np.uint8)
    image, asked = normal.copy(), np.zeros(SIZE, bool)
    asked[60:90, 60:100] = True
    image[60:90, 60:100] = 40
    image[70:76, 75:85] = 120  # a hole
    image[50:51, 70:72] = 30  # a speck
    image[130:150, 20:40] = 30  # far off
    found = refit(_pair(image, normal, asked))
    assert found is not None and (found.pixels_HW == asked).all()
