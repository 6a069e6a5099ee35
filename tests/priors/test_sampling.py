"""A Gaussian has an ideal denoiser in closed form: it tests any sampler."""

import pytest
import torch

from anomalydiffusion.priors.base import Estimate
from anomalydiffusion.priors.sampling import Solver, sample, strided_steps

ALPHAS = torch.linspace(0.9999, 1e-4, 1000, dtype=torch.float64)
MEAN, DEVIATION = 1.5, 0.5
SOLVERS: tuple[Solver, ...] = ("ddim", "dpm")


def _ideal(z: torch.Tensor, t: torch.Tensor) -> Estimate:
    """E[x0 | z_t] for x0 ~ N(MEAN, DEVIATION^2)."""
    a = ALPHAS[t].view(-1, 1, 1, 1)
    gain = a.sqrt() * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
    clean = MEAN + gain * (z - a.sqrt() * MEAN)
    return Estimate(clean=clean, noise=(z - a.sqrt() * clean) / (1 - a).sqrt())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_law_they_should(eta: float, solver: Solver) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 1, 200, 200, generator=generator, dtype=torch.float64)

    def noise(purpose: str, t: int) -> torch.Tensor:
        return torch.randn(z.shape, generator=generator, dtype=torch.float64)

    out = sample(_ideal, z, ALPHAS, strided_steps(1000, 250), solver=solver, eta=eta, noise=noise)
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

    sample(_ideal, torch.zeros(1, 1, 2, 2, dtype=torch.float64), ALPHAS, [999, 499, 0], eta=0.0, after_step=watch)
    assert seen == [(999, 499), (499, 0), (0, -1)]


def _exact(z: torch.Tensor, t: int) -> torch.Tensor:
    """Where the deterministic walk leads from `z` at step `t`, in closed form: z's place in its law stays what it is."""
    a = ALPHAS[t]
    return MEAN + DEVIATION * (z - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a).sqrt()


def test_with_few_steps_dpm_is_nearer_to_the_exact_solution() -> None:
    z = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    error = {
        (solver, steps): float((sample(_ideal, z, ALPHAS, strided_steps(1000, steps), solver=solver, eta=0.0) - _exact(z, 999)).abs().max())
        for solver in SOLVERS for steps in (10, 20, 40, 80)
    }  # fmt: skip
    share = [error["dpm", steps] / error["ddim", steps] for steps in (10, 20, 40, 80)]
    assert share[0] < 0.9 and share[-1] < 0.5 and share == sorted(share, reverse=True), "of second order: its error falls faster"


@pytest.mark.parametrize("ancestral", [False, True])
def test_dpm_is_diffusers_own(ancestral: bool) -> None:
    from diffusers import DPMSolverMultistepScheduler

    steps = strided_steps(1000, 12)
    theirs = DPMSolverMultistepScheduler(
        trained_betas=(1 - ALPHAS / torch.cat([torch.ones(1, dtype=torch.float64), ALPHAS[:-1]])).numpy(), prediction_type="sample",
        algorithm_type="sde-dpmsolver++" if ancestral else "dpmsolver++",
    )  # fmt: skip
    theirs.set_timesteps(timesteps=steps)
    start = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh = {t: torch.randn(start.shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64) for t in steps}
    expected = start
    for t in steps:
        clean = _ideal(expected, torch.tensor([t])).clean
        expected = theirs.step(clean, t, expected, variance_noise=fresh[t]).prev_sample
    ours = sample(_ideal, start, ALPHAS, steps, solver="dpm", eta=float(ancestral), noise=lambda purpose, t: fresh[t])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_row_that_begins_later_is_what_it_would_be_alone() -> None:
    steps, start = strided_steps(1000, 10), torch.tensor([0.3, -0.7], dtype=torch.float64).reshape(2, 1, 1, 1)
    late = steps[4]

    def put(z: torch.Tensor, t: int, s: int, estimate: Estimate) -> torch.Tensor:
        return torch.cat([z[:1], start[1:]]) if s == late else z

    both = sample(_ideal, start, ALPHAS, steps, solver="dpm", eta=0.0, after_step=put, begins=[steps[0], late])
    alone = [sample(_ideal, start[row : row + 1], ALPHAS, steps[first:], solver="dpm", eta=0.0) for row, first in ((0, 0), (1, 4))]
    torch.testing.assert_close(both, torch.cat(alone), atol=0, rtol=0)
