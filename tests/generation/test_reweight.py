"""The gain against an explicit softmax, and against every number that could break it."""

import pytest
import torch

from anomalydiffusion.generation.reweight import attention_gain


def test_values_against_an_explicit_softmax() -> None:
    torch.manual_seed(0)
    d = torch.rand(1, 1, 4, 4, dtype=torch.float64) + 0.1
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, :3] = 1
    inside = d[mask > 0]
    explicit = len(inside) * torch.softmax((inside.mean() / inside).clamp_max(4.0), 0)
    gain = attention_gain(d, mask)
    torch.testing.assert_close(gain[mask > 0].double(), explicit, atol=1e-6, rtol=1e-6)
    assert (gain[mask == 0] == 1).all()
    assert abs(float(gain[mask > 0].mean()) - 1) < 1e-6
    assert gain[mask > 0][inside.argmin()] == gain[mask > 0].max()  # most weight where the defect is faintest


def test_the_paper_s_formula_is_the_softmax_of_the_reciprocal() -> None:
    torch.manual_seed(0)
    d = torch.rand(1, 1, 4, 4, dtype=torch.float64) + 0.3
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, :3] = 1
    gain = attention_gain(d, mask, bound=None)
    torch.testing.assert_close(gain[mask > 0].double(), 6 * torch.softmax(1 / d[mask > 0], 0), atol=1e-6, rtol=1e-6)
    assert (gain[mask == 0] == 1).all()
    d[0, 0, 1, 1] = 0.0  # f(0) = -inf
    gain, seen = attention_gain(d, mask, bound=None), (mask > 0) & (d > 0)
    assert gain[0, 0, 1, 1] == 0
    torch.testing.assert_close(gain[seen].double(), 6 * torch.softmax(1 / d[seen], 0), atol=1e-6, rtol=1e-6)


def test_a_bound_of_nothing_lets_all_cells_weigh_alike() -> None:
    assert (attention_gain(torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4), bound=0.0) == 1).all()


@pytest.mark.parametrize("bound", [4.0, None])
def test_gradients_against_an_explicit_softmax(bound: float | None) -> None:
    torch.manual_seed(1)
    d, mask = (torch.rand(2, 1, 4, 4, dtype=torch.float64) + 0.4).requires_grad_(), torch.zeros(2, 1, 4, 4)
    mask[0, :, 1:3, :3] = mask[1, :, 0] = 1
    wanted = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    explicit = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        inside, weight = d[row][mask[row] > 0], wanted[row][mask[row] > 0]
        ratio = 1 / inside if bound is None else (inside.mean() / inside).clamp_max(bound)
        explicit = explicit + (weight * len(inside) * torch.softmax(ratio, 0)).sum()
    (expected,) = torch.autograd.grad(explicit, d)
    (found,) = torch.autograd.grad((attention_gain(d, mask, bound=bound) * wanted * (mask > 0)).sum(), d)
    assert expected.abs().max() > 0.1 and (found[mask == 0] == 0).all()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bound", [4.0, None])
@pytest.mark.parametrize("value", [0.0, 1e-300, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_no_input_breaks_it(value: float, dtype: torch.dtype, bound: float | None) -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 1, 1] = 1
    mask[1] = 1
    d = torch.ones(2, 1, 4, 4).to(dtype)
    d[:, :, 1, 1] = torch.tensor(value, dtype=torch.float64).to(dtype)  # too large becomes infinite
    gain = attention_gain(d, mask, bound=bound)
    assert torch.isfinite(gain).all() and (gain >= 0).all()
    assert gain[0, 0, 1, 1] == 1  # one cell can only weigh as before
    assert abs(float(gain[1].mean()) - 1) < 1e-5


def test_an_empty_mask_changes_nothing() -> None:
    assert (attention_gain(torch.rand(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)) == 1).all()
