"""A region that went through the autoencoder changes nowhere else, and not at all with all of its grain."""

import numpy as np

from anomalydiffusion.generation.roundtrip import redecode
from anomalydiffusion.generation.settings import GenerateConfig


def test_only_the_region_changes_and_a_seed_gives_one_region(small_prior) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    config = GenerateConfig()
    (once, mask), (again, same), (_, other) = (redecode(small_prior, image, config, grain=0.3, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(once, again) and np.array_equal(mask.pixels_HW, same.pixels_HW)
    assert not np.array_equal(mask.pixels_HW, other.pixels_HW)
    changed = (once != image).any(2)
    y0, x0, y1, x1 = (max(0, mask.box[1] - 3), max(0, mask.box[0] - 3), mask.box[3] + 3, mask.box[2] + 3)
    outside = changed.copy()
    outside[y0:y1, x0:x1] = False
    assert changed[mask.pixels_HW].mean() > 0.5 and not outside.any()


def test_with_its_grain_the_round_trip_is_no_change(small_prior) -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    assert np.array_equal(redecode(small_prior, image, GenerateConfig(), grain=1.0, seed=0)[0], image)
