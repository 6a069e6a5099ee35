"""Drawn materials and flaws: one seed one picture, and the mask holds all that was touched."""

import numpy as np
import pytest

from anomalydiffusion.core.seeds import rng
from anomalydiffusion.data.flaws import FLAWS, draw_flaw, draw_shape
from anomalydiffusion.data.materials import MATERIALS, draw_material, field


def test_a_field_is_white_or_smooth_as_asked() -> None:
    def rough(slope: float) -> float:
        return float(np.abs(np.diff(field(rng(0, "f"), 64, slope), axis=1)).mean())

    assert rough(0.2) > 2 * rough(1.5) > 4 * rough(3.0)
    grain = field(rng(0, "f"), 64, 1.0, stretch=30, angle=0.0)
    assert np.abs(np.diff(grain, axis=1)).mean() < 0.5 * np.abs(np.diff(grain, axis=0)).mean()
    assert abs(grain.mean()) < 1e-9 and abs(grain.std() - 1) < 1e-6


@pytest.mark.parametrize("material", sorted(set(MATERIALS), key=lambda m: m.__name__), ids=lambda m: m.__name__)
def test_every_material_is_drawn_in_range(material) -> None:
    for seed in range(3):
        image, name = material(rng(seed, "m"), 64)
        assert image.shape == (64, 64, 3) and np.isfinite(image).all() and name
        assert 0.01 < np.clip(image, 0, 1).mean() < 0.99


def test_one_seed_one_material() -> None:
    first, again, other = (draw_material(rng(seed, "m"), 48)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(25))
def test_a_flaw_touches_nothing_outside_its_mask(seed: int) -> None:
    ground, _ = draw_material(rng(seed, "ground"), 96)
    image, mask, name = draw_flaw(rng(seed, "flaw"), ground)
    assert name in FLAWS and mask.sum() >= 4
    assert np.array_equal(image[~mask], ground[~mask])
    assert (image[mask] != ground[mask]).any()


def test_shapes_are_black_and_white_and_named() -> None:
    shape, caption = draw_shape(rng(4, "s"), 64)
    assert set(np.unique(shape)) == {0, 255} and caption.startswith("a binary mask of ")
