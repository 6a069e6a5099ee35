"""A Gaussian has an ideal denoiser in closed form: it tests any sampler."""

import pytest
import torch

from anomalydiffusion.priors.base import Estimate
from anomalydiffusion.priors.sampling import ddim, strided_steps

ALPHAS = torch.linspace(0.9999, 1e-4, 1000, dtype=torch.float64)
MEAN, DEVIATION = 1.5, 0.5


def _ideal(z: torch.Tensor, t: torch.Tensor) -> Estimate:
    """E[x0 | z_t] for x0 ~ N(MEAN, DEVIATION^2)."""
    a = ALPHAS[t].view(-1, 1, 1, 1)
    gain = a.sqrt() * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
    clean = MEAN + gain * (z - a.sqrt() * MEAN)
    return Estimate(clean=clean, noise=(z - a.sqrt() * clean) / (1 - a).sqrt())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_law_they_should(eta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 1, 200, 200, generator=generator, dtype=torch.float64)

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch.randn(z.shape, generator=generator, dtype=torch.float64)

    out = ddim(_ideal, z, ALPHAS, strided_steps(1000, 250), eta=eta, noise=noise)
    assert abs(float(out.mean()) - MEAN) < 0.02
    assert abs(float(out.std()) - DEVIATION) < 0.02


def test_strided_steps_fall_from_the_last_training_step() -> None:
    assert strided_steps(1000, 4) == [999, 749, 499, 249]
    assert strided_steps(1000, 1000)[-1] == 0
    for bad in (0, 1001):
        with pytest.raises(ValueError, match="steps must be"):
            strided_steps(1000, bad)


def test_after_step_sees_every_step_and_the_clean_end() -> None:
    seen = []

    def watch(z: torch.Tensor, t: int, s: int, estimate: Estimate) -> torch.Tensor:
        seen.append((t, s))
        return z

    ddim(_ideal, torch.zeros(1, 1, 2, 2, dtype=torch.float64), ALPHAS, [999, 499, 0], eta=0.0, after_step=watch)
    assert seen == [(999, 499), (499, 0), (0, -1)]
