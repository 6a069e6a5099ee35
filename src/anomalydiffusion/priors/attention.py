"""The attention processor: looks harder at the learned tokens, or at a real defect, where it is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.base import Graft

if TYPE_CHECKING:  # slow to import, and most commands never need them
    from diffusers.models.attention_processor import Attention

__all__ = ["SteeredAttention", "install"]


class SteeredAttention:
    """`Attn = (softmax(Q K^T / sqrt(d)) (.) w) V`, w = gain on the learned tokens' columns, 1 elsewhere.

    [arXiv 2312.05767v2, adaptive attention re-weighting; on probabilities, not logits, and not renormalised.]
    Without a gain, and in self-attention, it is plain scaled dot-product attention. The product with w is computed as
    plain attention plus `(w - 1) P[:, span] V[span]`, so the whole probability matrix is never kept.

    With a graft the second half of the batch are pictures with a real defect. In self-attention a cell under the first half's masks
    attends to the marked cells of its reference and to the unmarked ones of its own picture, not to what is marked there:
    `out = (1 - g) Attn(Q, K, V) + g Attn(Q, [K_unmarked, K_there], [V_unmarked, V_there])`. All other cells are left alone.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        gain: torch.Tensor | None = None,
        span: tuple[int, int] = (0, 0),
        graft: Graft | None = None,
    ) -> torch.Tensor:
        """`hidden_states` B x N x D (transformer blocks flatten the grid); `gain` B x 1 x h x w on the latent grid."""
        residual = hidden_states
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        batch, length, _ = hidden_states.shape

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(source)), heads(attn.to_v(source))
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, source.shape[1], batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, scale=attn.scale)
        if gain is not None and encoder_hidden_states is not None:
            start, stop = span
            probability = (q.float() @ k.float().transpose(-1, -2) * attn.scale).softmax(-1)[..., start:stop]
            weight = _resize(gain, length).flatten(2)[..., None]  # B 1 N 1
            out = out + (((weight - 1) * probability) @ v[:, :, start:stop].float()).to(out.dtype)
        if graft is not None and encoder_hidden_states is None:
            (here, there), half = (_pooled(marks, length) for marks in (graft.here_B1hw, graft.there_B1hw)), batch // 2
            k, v = (torch.cat([each[:half], each[half:]], dim=2) for each in (k, v))
            seen = torch.cat([~here, there], dim=1)[:, None, None]
            grafted = F.scaled_dot_product_attention(q[:half], k, v, attn_mask=seen, scale=attn.scale)
            mixed = torch.where(here[:, None, :, None], out[:half].lerp(grafted, graft.weight), out[:half])
            out = torch.cat([mixed, out[half:]])
        out = out.transpose(1, 2).reshape(batch, length, -1)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _grid(of: torch.Tensor, length: int) -> tuple[int, int]:
    """Height and width of a layer's grid of `length` cells, shaped like the latent grid of a B x 1 x h x w map."""
    height, width = of.shape[-2:]
    scale = (length / (height * width)) ** 0.5
    size = (round(height * scale), round(width * scale))
    if size[0] * size[1] != length:
        raise PriorError(f"a map of {height} x {width} does not fit an attention layer of {length} cells")
    return size


def _pooled(marks_B1hw: torch.Tensor, length: int) -> torch.Tensor:
    """Which of a layer's cells have anything marked in them, B x length."""
    return F.adaptive_max_pool2d(marks_B1hw.float(), _grid(marks_B1hw, length)).flatten(1) > 0


def _resize(gain: torch.Tensor, length: int) -> torch.Tensor:
    """The gain map on a layer's grid of `length` cells (antialiased, so that the mean is kept when it shrinks)."""
    size = _grid(gain, length)
    if size == tuple(gain.shape[-2:]):
        return gain.float()
    return F.interpolate(gain.float(), size, mode="bilinear", antialias=True, align_corners=False)


def install(unet: Any) -> None:
    """Put `SteeredAttention` on every attention layer; a layer without it would ignore the gain silently."""
    unet.set_attn_processor({name: SteeredAttention() for name in unet.attn_processors})
    wrong = [name for name, processor in unet.attn_processors.items() if not isinstance(processor, SteeredAttention)]
    if wrong:
        raise PriorError(f"what steers attention could not be installed on {wrong[0]} and {len(wrong) - 1} more layers")
