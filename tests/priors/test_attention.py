"""Re-weighting and grafts against an explicit softmax in double precision."""

import pytest
import torch
from diffusers.models.attention_processor import Attention

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.attention import SteeredAttention, install
from anomalydiffusion.priors.base import Graft


def _layer() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8, processor=SteeredAttention()).double()


def _explicit(attn: Attention, x: torch.Tensor, c: torch.Tensor, weight: torch.Tensor, span: tuple[int, int]) -> torch.Tensor:
    q, k, v = (part.view(part.shape[0], -1, 2, 8).transpose(1, 2) for part in (attn.to_q(x), attn.to_k(c), attn.to_v(c)))
    p = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    full = torch.ones_like(p)
    full[..., span[0] : span[1]] = weight.flatten(1)[:, None, :, None]
    out = ((p * full) @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
    return attn.to_out[0](out)


def test_values_and_gradients_match_the_formula() -> None:
    attn = _layer()
    x = torch.randn(2, 16, 16, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 3
    got = attn(x, encoder_hidden_states=c, gain=gain, span=(2, 5))
    want = _explicit(attn, x, c, gain, (2, 5))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(got.sum(), (x, c), retain_graph=True), torch.autograd.grad(want.sum(), (x, c)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_gain_of_one_and_self_attention_change_nothing() -> None:
    attn = _layer()
    x, c = torch.randn(1, 16, 16).double(), torch.randn(1, 7, 12).double()
    torch.testing.assert_close(
        attn(x, encoder_hidden_states=c, gain=torch.ones(1, 1, 4, 4), span=(0, 7)), attn(x, encoder_hidden_states=c), atol=1e-6, rtol=1e-6
    )
    own = Attention(query_dim=16, heads=2, dim_head=8, processor=SteeredAttention()).double()
    torch.testing.assert_close(own(x, gain=torch.full((1, 1, 4, 4), 5.0), span=(0, 7)), own(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_weight_on_one_cell_stays_finite_in_half_precision(dtype: torch.dtype) -> None:
    attn, gain = _layer(), torch.zeros(2, 1, 64, 64)
    gain[:, :, 20, 33] = 64 * 64  # what the paper's softmax gives where one cell of the largest mask is nearest by far
    gain[1] = 1
    gain[1, :, 5, 5] = 0
    x, c = torch.randn(2, 1024, 16), 3 * torch.randn(2, 7, 12)
    small = torch.nn.functional.interpolate(gain, (32, 32), mode="bilinear", antialias=True)
    want = _explicit(attn, x.double(), c.double(), small.double(), (2, 5))
    got = attn.to(dtype)(x.to(dtype), encoder_hidden_states=c.to(dtype), gain=gain, span=(2, 5))
    assert got.dtype == dtype and torch.isfinite(got).all()
    assert (got.double() - want).abs().max() < 0.05 * want.abs().max()


def test_the_gain_is_resized_with_its_mean_and_refused_when_it_cannot_fit() -> None:
    attn = _layer()
    c = torch.randn(1, 7, 12).double()
    gain = torch.rand(1, 1, 4, 4) + 0.5
    x = torch.randn(1, 4, 16).double()
    small = torch.nn.functional.interpolate(gain, (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        attn(x, encoder_hidden_states=c, gain=gain, span=(1, 3)), _explicit(attn, x, c, small.double(), (1, 3)), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(PriorError, match="does not fit"):
        attn(torch.randn(1, 5, 16).double(), encoder_hidden_states=c, gain=gain, span=(1, 3))


def test_it_is_installed_on_every_layer(small_prior) -> None:
    assert all(isinstance(p, SteeredAttention) for p in small_prior.unet.attn_processors.values())
    install(small_prior.unet)


def _graft(here: torch.Tensor, there: torch.Tensor, weight: float) -> Graft:
    nothing = torch.zeros(0)
    return Graft(reference_BChw=nothing, noise_BChw=nothing, here_B1hw=here, there_B1hw=there, weight=weight)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_wanted_cell_sees_what_is_marked_there_and_unmarked_here_and_no_other_cell_changes(weight: float) -> None:
    torch.manual_seed(0)
    attn = Attention(query_dim=16, heads=2, dim_head=8, processor=SteeredAttention()).double()
    x = torch.randn(4, 16, 16, dtype=torch.float64)  # two pictures, then their references, on 4 x 4 cells
    here, there = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    here[0, 0, 0, :2] = here[1, 0, 5, 5] = 1  # cell 0; cell 10, by one corner
    there[0, 0, 6:, 6:] = there[1, 0, :2] = 1  # cell 15; cells 0 to 3
    plain, got = attn(x), attn(x, graft=_graft(here, there, weight))
    wanted = {0: (0, [15]), 1: (10, [0, 1, 2, 3])}
    for row, (cell, marked) in wanted.items():
        seen = torch.cat([x[row, [other for other in range(16) if other != cell]], x[2 + row, marked]])[None]
        q, k, v = (part.view(1, -1, 2, 8).transpose(1, 2) for part in (attn.to_q(x[row, [cell]])[None], attn.to_k(seen), attn.to_v(seen)))
        grafted = attn.to_out[0](((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(1, 1, -1))[0, 0]
        torch.testing.assert_close(got[row, cell], (1 - weight) * plain[row, cell] + weight * grafted)
        rest = [other for other in range(16) if other != cell]
        torch.testing.assert_close(got[row, rest], plain[row, rest])
    torch.testing.assert_close(got[2:], plain[2:])
