"""A membrane meets what is around it and is flat inside; a blend has the source's gradients."""

import numpy as np
import pytest

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.seams import membrane, poisson_blend


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(60, 190, (height, width, 3))


def disc(height: int, width: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.asarray(np.hypot(y - height // 2, x - width // 2) <= radius)


def blot(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A rough mask of several parts, some at the image's sides."""
    return np.random.default_rng(seed).random((height, width)) < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_blending_what_differs_by_a_constant_gives_the_target_back(seed: int) -> None:
    target = picture(9, 14, seed)
    np.testing.assert_allclose(poisson_blend(target + np.array([40.0, -7.0, 0.5]), target, blot(9, 14, seed)), target, atol=1e-9)


def test_blending_a_flat_source_into_a_ramp_gives_the_ramp() -> None:
    y, x = np.mgrid[:12, :15].astype(float)
    ramp, inside = (3 * x - 2 * y + 50)[..., None], disc(12, 15, 4)  # away from the sides: a plane is harmonic
    np.testing.assert_allclose(poisson_blend(np.full_like(ramp, 9.0), ramp, inside), ramp, atol=1e-9)


def test_a_blend_has_the_source_s_laplacian_and_at_a_side_its_gradient() -> None:
    source, target, inside = picture(10, 13, 1), picture(10, 13, 2), blot(10, 13)
    out = poisson_blend(source, target, inside)
    assert (out[~inside] == target[~inside]).all()

    def laplacian(image: np.ndarray) -> np.ndarray:
        """The sum of the differences to the neighbours that are there: a mirrored side adds 0."""
        big = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        return big[:-2, 1:-1] + big[2:, 1:-1] + big[1:-1, :-2] + big[1:-1, 2:] - 4 * image

    np.testing.assert_allclose(laplacian(out)[inside], laplacian(source)[inside], atol=1e-8)


def test_a_blend_over_everything_keeps_the_source_s_gradients_and_the_target_s_mean() -> None:
    source, target = picture(4, 5, 1), picture(4, 5, 2)
    out = poisson_blend(source, target, np.ones((4, 5), bool))
    np.testing.assert_allclose(out.mean((0, 1)), target.mean((0, 1)))
    np.testing.assert_allclose(np.diff(out, axis=0), np.diff(source, axis=0))


def test_a_blend_of_unlike_shapes_is_refused() -> None:
    with pytest.raises(DataError, match="expected H x W x C"):
        poisson_blend(picture(20, 20), picture(19, 20), np.ones((20, 20), bool))


@pytest.mark.parametrize("largest", [None, 400, 60])
def test_a_membrane_over_a_plane_is_the_plane_whatever_stands_inside(largest: int | None) -> None:
    y, x = np.mgrid[:60, :80].astype(float)
    plane, inside = np.stack([0.5 * x - 0.2 * y, np.full_like(x, 3.0)], 2), disc(60, 80, 20)
    given = np.where(inside[..., None], 1e6, plane)
    found = membrane(given, inside, largest=largest)
    assert np.abs(found - plane[inside]).max() < (1e-9 if largest is None else 1.5)


def test_a_coarse_membrane_is_near_the_exact_one() -> None:
    inside = disc(90, 110, 35)
    inside[:, :8] = True  # touches a side
    wave = np.sin(np.mgrid[:90, :110] / 25).sum(0)[..., None]
    exact, coarse = membrane(wave, inside, largest=None), membrane(wave, inside, largest=500)
    assert np.abs(exact - coarse).max() < 0.2 and np.abs(exact - coarse).mean() < 0.04
