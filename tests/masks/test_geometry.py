from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion.core.errors import MaskError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.masks.geometry import accept, border_shares, foreground, measure


def mask_of(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Mask:
    pixels = np.zeros(shape, dtype=bool)
    for y0, y1, x0, x1 in boxes:
        pixels[y0:y1, x0:x1] = True
    return Mask(pixels_HW=pixels, origin="test")


def disk(shape: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - center[0], x - center[1]) <= radius


def picture(truth: np.ndarray, inside: tuple[int, int, int], outside: tuple[int, int, int], noise: float = 6.0) -> np.ndarray:
    image = np.where(truth[..., None], inside, outside).astype(float)
    return (image + np.random.default_rng(0).normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_measure_knows_simple_shapes() -> None:
    square = measure(mask_of((100, 200), (10, 30, 50, 70)))
    assert square.area == pytest.approx(400 / 20_000)
    assert (square.parts, square.border) == (1, 0.0)
    assert square.elongation == pytest.approx(1.0)
    assert measure(mask_of((100, 200), (10, 12, 50, 90))).elongation == pytest.approx(20.0)
    assert measure(mask_of((9, 9), (4, 5, 4, 5))).elongation == pytest.approx(1.0)


def test_parts_touch_by_their_corners_and_border_is_the_fullest_side() -> None:
    assert measure(mask_of((20, 20), (2, 4, 2, 4), (4, 6, 4, 6))).parts == 1
    assert measure(mask_of((20, 20), (2, 4, 2, 4), (5, 7, 5, 7))).parts == 2
    shape = mask_of((20, 40), (0, 5, 0, 10))
    assert border_shares(shape.pixels_HW) == {"top": 0.25, "bottom": 0.0, "left": 0.25, "right": 0.0}
    assert measure(mask_of((20, 40), (0, 15, 0, 10))).border == 0.75


def test_accept_says_each_reason() -> None:
    left = np.zeros((50, 100), dtype=bool)
    left[:, :50] = True
    assert accept(mask_of((50, 100), (10, 20, 10, 20)), foreground_HW=left) is None
    assert accept(mask_of((50, 100), (10, 11, 10, 12))) == "marks 2 pixels, fewer than 4"
    assert accept(mask_of((50, 100), (10, 11, 10, 11))) == "marks 1 pixel, fewer than 4"
    assert "covers too much of the image (90%" in str(accept(mask_of((50, 100), (0, 45, 0, 100))))
    assert "touches most of a border (60% of the bottom side" in str(accept(mask_of((50, 100), (48, 50, 10, 70))))
    assert accept(mask_of((50, 100), (48, 50, 10, 70)), max_border=1) is None
    assert accept(mask_of((50, 100), (48, 50, 10, 60))) is None  # just half
    assert "lies off the object (43% on it" in str(accept(mask_of((50, 100), (10, 20, 47, 54)), foreground_HW=left))
    with pytest.raises(MaskError, match="object's pixels are"):
        accept(mask_of((50, 100), (10, 20, 10, 20)), foreground_HW=left[:, :50])


@pytest.mark.parametrize("shape", [(300, 400), (400, 130), (1500, 1100)])
def test_foreground_finds_an_object_before_a_plain_background(shape: tuple[int, int]) -> None:
    truth = disk(shape, (shape[0] * 0.45, shape[1] * 0.52), 0.3 * min(shape))
    image = picture(truth, (190, 150, 90), (50, 50, 45))
    holes = disk(shape, (shape[0] * 0.45, shape[1] * 0.5), 0.05 * min(shape))
    image[holes] = (48, 50, 46)  # looks like the background, but lies inside
    assert overlap(foreground(image), truth) > 0.95


def test_foreground_keeps_several_objects_and_leaves_out_a_cut_neighbour() -> None:
    first, second, neighbour = (disk((240, 320), c, r) for c, r in (((120, 90), 50), ((120, 220), 50), ((245, 10), 40)))
    found = foreground(picture(first | second | neighbour, (220, 220, 210), (30, 60, 40)))
    assert overlap(found, first | second) > 0.93
    assert not (found & neighbour).any()


def test_foreground_of_a_surface_is_everything() -> None:
    rng = np.random.default_rng(1)
    noise = np.repeat(rng.integers(60, 200, (200, 300, 1)), 3, axis=2).astype(np.uint8)
    y, x = np.mgrid[-1:1:200j, -1:1:300j]
    vignette = np.repeat((200 * np.exp(-1.2 * (x**2 + y**2)))[..., None], 3, axis=2).astype(np.uint8)
    strip = picture(np.zeros((200, 300), dtype=bool), (0, 0, 0), (130, 130, 130))
    strip[:, :12] //= 8
    stripes = picture((np.mgrid[:200, :300][1] // 25) % 2 == 0, (10, 10, 10), (240, 240, 240))
    for image in (noise, vignette, strip, stripes, np.full((200, 300, 3), 7, np.uint8), np.zeros((3, 500, 3), np.uint8)):
        assert foreground(image).mean() > 0.9


def test_foreground_passes_over_objects_that_are_too_small() -> None:
    truth = disk((200, 200), (100, 100), 15)
    image = picture(truth, (200, 200, 200), (20, 20, 20))
    assert foreground(image).all()
    assert overlap(foreground(image, min_share=0.01), truth) > 0.7
