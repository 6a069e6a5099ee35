"""A region that went through the autoencoder changes nowhere else, and not at all with all of its grain."""

import numpy as np
from scipy import ndimage

from anomalydiffusion.generation.roundtrip import redecode
from anomalydiffusion.generation.settings import GenerateConfig


def test_only_the_region_changes_and_a_seed_gives_one_region(small_prior) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    config = GenerateConfig()
    (once, mask), (again, same), (_, other) = (redecode(small_prior, image, config, grain=0.3, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(once, again) and np.array_equal(mask.pixels_HW, same.pixels_HW)
    assert not np.array_equal(mask.pixels_HW, other.pixels_HW)
    changed = (once != image).any(2)
    far = ndimage.distance_transform_edt(~mask.pixels_HW) >= config.feather
    assert changed[mask.pixels_HW].mean() > 0.5 and not changed[far].any()


def test_with_its_grain_the_round_trip_is_no_change(small_prior) -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    assert np.array_equal(redecode(small_prior, image, GenerateConfig(), grain=1.0, seed=0)[0], image)
