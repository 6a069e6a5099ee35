"""Re-weighting against an explicit softmax in double precision."""

import pytest
import torch
from diffusers.models.attention_processor import Attention

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.attention import GainAttention, install


def _layer() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8, processor=GainAttention()).double()


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
    own = Attention(query_dim=16, heads=2, dim_head=8, processor=GainAttention()).double()
    torch.testing.assert_close(own(x, gain=torch.full((1, 1, 4, 4), 5.0), span=(0, 7)), own(x))


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
    assert all(isinstance(p, GainAttention) for p in small_prior.unet.attn_processors.values())
    install(small_prior.unet)
