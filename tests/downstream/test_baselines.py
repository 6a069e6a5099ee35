"""What is pasted comes from the shot, what is blended solves Poisson's equation, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.downstream.baselines import BASELINES, cut_out, cutpaste, perlin, poisson

Shots = list[tuple[np.ndarray, Mask]]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, radius: float) -> Mask:
    y, x = np.mgrid[:height, :width]
    return Mask(pixels_HW=np.hypot(y - height // 2, x - width // 2) <= radius, origin="real")


def some_shots() -> Shots:
    scratch = np.zeros((20, 31), bool)
    scratch[0, 3:17] = scratch[9:11, 20:] = True  # touches two sides
    return [(picture(40, 30, 1), disc(40, 30, 6)), (picture(20, 31, 2), Mask(pixels_HW=scratch, origin="real"))]


@pytest.mark.parametrize("name", BASELINES)
def test_one_seed_one_result_and_only_the_mask_changes(name: str) -> None:
    normal, shots = picture(50, 70), some_shots()
    before = normal.copy()
    results = [BASELINES[name](normal, shots, seed=seed) for seed in (3, 3, 4, 5, 6)]
    (first, mask), (again, same), (other, _) = results[:3]
    assert (first == again).all() and (mask.pixels_HW == same.pixels_HW).all() and (first != other).any()
    assert (normal == before).all()
    for image, mask in results:
        assert image.dtype == np.uint8 and image.shape == normal.shape and mask.pixels_HW.shape == (50, 70)
        assert (image[~mask.pixels_HW] == normal[~mask.pixels_HW]).all()
        assert (image[mask.pixels_HW] != normal[mask.pixels_HW]).any()
        assert mask.origin == name


@pytest.mark.parametrize("name", BASELINES)
@given(size=st.tuples(st.integers(1, 24), st.integers(1, 24)), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_tiny_and_odd_sizes_and_defects_larger_than_the_image(name: str, size: tuple[int, int], seed: int) -> None:
    normal, shots = picture(*size), [*some_shots(), (picture(30, 45, 3), Mask(pixels_HW=np.ones((30, 45), bool), origin="real"))]
    image, mask = BASELINES[name](normal, shots, seed=seed)
    assert image.shape == normal.shape and mask.pixels_HW.shape == size
    assert (image[~mask.pixels_HW] == normal[~mask.pixels_HW]).all()


@pytest.mark.parametrize("name", BASELINES)
def test_defects_lie_on_the_object(name: str) -> None:
    normal, shots = picture(60, 90), [(picture(40, 30, 1), disc(40, 30, 4))]
    ground = disc(60, 90, 18).pixels_HW
    for seed in range(12):
        assert ground[BASELINES[name](normal, shots, seed=seed, ground_HW=ground)[1].pixels_HW].all()
    everywhere, nowhere = np.ones((60, 90), bool), np.zeros((60, 90), bool)
    free, bound = (BASELINES[name](normal, shots, seed=3, ground_HW=where)[0] for where in (None, everywhere))
    assert (free == bound).all()
    for wrong in (nowhere, ground[:50]):
        with pytest.raises(DataError, match="an object of"):
            BASELINES[name](normal, shots, seed=0, ground_HW=wrong)


def test_a_defect_larger_than_the_object_is_pasted_where_most_of_it_is_on_it() -> None:
    ground = np.zeros((60, 90), bool)
    ground[20:30, 40:50] = True
    _, mask = cutpaste(picture(60, 90), [(picture(40, 30, 1), disc(40, 30, 8))], seed=0, ground_HW=ground)
    assert mask.pixels_HW[ground].mean() > 0.8


@pytest.mark.parametrize("size", [(8, 4000), (1500, 1300)])
def test_perlin_on_large_images(size: tuple[int, int]) -> None:
    image, mask = perlin(np.zeros((*size, 3), np.uint8), seed=0)
    assert image.shape[:2] == mask.pixels_HW.shape == size and 0 < mask.area < 0.5


def test_perlin_keeps_a_tenth_to_four_fifths_and_grey_stays_grey() -> None:
    """On a white and on a black image the same seed blends the same texture: the two differ by beta times white."""
    white, black = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64, 3), np.uint8)
    kept = []
    for seed in range(20):
        (light, mask), (dark, same) = perlin(white, seed=seed), perlin(black, seed=seed)
        assert (mask.pixels_HW == same.pixels_HW).all() and (light == light[..., :1]).all()
        difference = light[mask.pixels_HW].astype(int) - dark[mask.pixels_HW]
        assert np.ptp(difference) <= 1  # rounding
        kept.append(difference.mean() / 255)
    assert 0.09 < min(kept) < 0.35 and 0.55 < max(kept) < 0.81
    colour = black.copy()
    colour[0, 0, 0] = 1
    assert any((image != image[..., :1])[1:].any() for image, _ in (perlin(colour, seed=seed) for seed in range(5)))


def test_a_defect_cut_out_without_change_is_the_shot_s_own() -> None:
    image, mask = picture(40, 30), disc(40, 30, 6)
    patch, inside = cut_out(image, mask)
    x0, y0, x1, y1 = mask.box
    assert (inside == np.pad(mask.pixels_HW[y0:y1, x0:x1], 1)).all()
    np.testing.assert_allclose(patch, image[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1], atol=1e-6)
    for shot, edge in some_shots():  # also where the shot ends at the mask
        x0, y0, x1, y1 = edge.box
        patch, inside = cut_out(shot, edge)
        np.testing.assert_allclose(patch[1:-1, 1:-1], shot[y0:y1, x0:x1], atol=1e-6)
        assert (inside[1:-1, 1:-1] == edge.pixels_HW[y0:y1, x0:x1]).all()


def test_a_cut_out_defect_is_mirrored_turned_and_scaled() -> None:
    image, pixels = picture(20, 20), np.zeros((20, 20), bool)
    pixels[4:9, 6], pixels[8, 6:14] = True, True  # an L
    mask = Mask(pixels_HW=pixels, origin="real")
    patch, inside = cut_out(image, mask)
    for changed, wanted in (({"mirror": True}, np.fliplr), ({"angle": np.pi / 2}, lambda a: np.rot90(a, -1))):
        other, marked = cut_out(image, mask, **changed)
        assert (marked == wanted(inside)).all()
        np.testing.assert_allclose(other, wanted(patch), atol=1e-6)
    whole, round_ = picture(60, 60), disc(60, 60, 15)
    for scale in (0.5, 2.0):
        marked = cut_out(whole, round_, scale=scale, angle=0.3)[1]
        assert marked.sum() == pytest.approx(scale**2 * round_.pixels_HW.sum(), rel=0.05)
    assert max(cut_out(whole, round_, within=(9, 50))[1].shape) <= 9 + 2


def test_pasted_pixels_come_from_the_shot() -> None:
    flat = np.full((30, 30, 3), (10, 200, 90), np.uint8)
    for seed in range(5):
        image, mask = cutpaste(picture(40, 50), [(flat, disc(30, 30, 7))], seed=seed)
        assert (image[mask.pixels_HW] == (10, 200, 90)).all()
        assert 0.7**2 * 0.9 < mask.pixels_HW.sum() / disc(30, 30, 7).pixels_HW.sum() < 1.4**2 * 1.1


def test_poisson_takes_patch_and_place_of_cutpaste() -> None:
    normal, shots = picture(50, 70), some_shots()
    for seed in range(6):
        assert (cutpaste(normal, shots, seed=seed)[1].pixels_HW == poisson(normal, shots, seed=seed)[1].pixels_HW).all()


def test_a_flat_shot_vanishes_in_a_flat_image() -> None:
    normal, shot = np.full((30, 40, 3), 120, np.uint8), np.full((20, 20, 3), 30, np.uint8)
    for seed in range(3):
        assert (poisson(normal, [(shot, disc(20, 20, 5))], seed=seed)[0] == 120).all()


def test_nonsense_is_refused() -> None:
    normal, shots = picture(20, 20), some_shots()
    for name in ("cutpaste", "poisson"):
        with pytest.raises(DataError, match="no shots"):
            BASELINES[name](normal, [], seed=0)
        with pytest.raises(DataError, match="same size"):
            BASELINES[name](normal, [(picture(5, 5), disc(6, 5, 2))], seed=0)
    for name, make in BASELINES.items():
        with pytest.raises(DataError, match="uint8 RGB"):
            make(normal[..., 0], shots, seed=0)
