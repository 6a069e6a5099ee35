"""An object before a plain background is found; a picture that is all surface is all foreground."""

import numpy as np
import pytest

from anomalydiffusion.data.foreground import foreground


def disk(shape: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - center[0], x - center[1]) <= radius


def picture(truth: np.ndarray, inside: tuple[int, int, int], outside: tuple[int, int, int], noise: float = 6.0) -> np.ndarray:
    image = np.where(truth[..., None], inside, outside).astype(float)
    return (image + np.random.default_rng(0).normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("shape", [(300, 400), (400, 130), (1500, 1100)])
def test_foreground_finds_an_object_before_a_plain_background(shape: tuple[int, int]) -> None:
    truth = disk(shape, (shape[0] * 0.45, shape[1] * 0.52), 0.3 * min(shape))
    image = picture(truth, (190, 150, 90), (50, 50, 45))
    holes = disk(shape, (shape[0] * 0.45, shape[1] * 0.5), 0.05 * min(shape))
    image[holes] = (48, 50, 46)  # looks like the background, but lies inside
    assert overlap(foreground(image), truth) > 0.95


@pytest.mark.parametrize("radius", [40, 60, 110])
def test_what_is_seen_through_a_washer_is_background(radius: int) -> None:
    shape = (400, 400)
    washer = disk(shape, (200, 200), 150) & ~disk(shape, (200, 200), radius)
    assert overlap(foreground(picture(washer, (190, 190, 185), (40, 42, 45))), washer) > 0.95


def test_a_small_mark_of_the_backgrounds_colour_stays_object() -> None:
    plate, mark = disk((400, 400), (200, 200), 150), disk((400, 400), (200, 200), 20)
    assert overlap(foreground(picture(plate & ~mark, (190, 190, 185), (40, 42, 45))), plate) > 0.99


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
