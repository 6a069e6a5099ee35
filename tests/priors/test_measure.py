"""Fidelity and grain have known answers."""

import math

import numpy as np
import pytest
import torch

from anomalydiffusion.priors.measure import gradient_energy, measure_autoencoder

PICTURES = [np.random.default_rng(i).integers(40, 200, (37, 50, 3), dtype=np.uint8) for i in range(2)]


def test_a_perfect_round_trip_keeps_everything() -> None:
    found = measure_autoencoder(lambda x: x, PICTURES)
    assert found["psnr"] > 69 and found["gradient_energy_ratio"] == pytest.approx(1.0)


def test_an_offset_costs_fidelity_but_no_grain() -> None:
    found = measure_autoencoder(lambda x: x + 4 / 127.5, PICTURES)
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / 4), abs=0.01)
    assert found["gradient_energy_ratio"] == pytest.approx(1.0, abs=1e-3)


def test_a_blur_takes_the_grain() -> None:
    found = measure_autoencoder(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1), PICTURES)
    assert found["gradient_energy_ratio"] < 0.3


def test_a_distance_that_is_given_is_averaged_over_images_before_and_after() -> None:
    levels = lambda before, after: float(np.abs(after.astype(int) - before).max() + before[0, 0, 0])  # noqa: E731
    found = measure_autoencoder(lambda x: x + 4 / 127.5, PICTURES, distance=levels)
    assert found["perceptual_distance"] == 4 + np.mean(
        [float(image[0, 0, 0]) for image in PICTURES]
    ) and "perceptual_distance" not in measure_autoencoder(lambda x: x, PICTURES)


def test_gradient_energy_of_a_ramp_is_its_squared_slopes() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    assert gradient_energy((0.5 * y + 0.25 * x)[None, None]).item() == pytest.approx(0.25 + 0.0625)
