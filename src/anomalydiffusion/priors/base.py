"""What a prior can do: the seam between our method and anybody's latent diffusion model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from anomalydiffusion.core.errors import PriorError

__all__ = ["Context", "Estimate", "Gain", "Graft", "Memory", "Prior"]

# B batch, C channels, H W image, h w latent grid, N tokens, D width of a token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """An encoded prompt: `tokens_BND` after the text encoder, `span` = [start, stop) of the learned tokens in it.

    `surroundings`, for inpainting priors alone: what `Prior.surroundings` says of a picture with a hole; None = all is hole.
    """

    tokens_BND: torch.Tensor
    span: tuple[int, int] = (0, 0)
    surroundings: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens_BND.ndim != 3 or not 0 <= self.span[0] <= self.span[1] <= self.tokens_BND.shape[1]:
            raise PriorError(f"tokens of shape {tuple(self.tokens_BND.shape)} cannot hold learned tokens at {self.span}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What the denoiser believes about `z_t = sqrt(a_t) clean + sqrt(1 - a_t) noise`, both B x C x h x w."""

    clean: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graft:
    """Real defects that a drawing looks at while it is drawn: their keys and values in self-attention take part under its mask.

    `reference_BChw` are the clean latents of pictures with a defect, noised to each step with `noise_BChw`; `there_B1hw` marks it in
    them, `here_B1hw` where it is wanted. `weight` 0..1: how much of what a wanted cell gets comes from there. `surroundings` as in
    `Context`, of the references.
    """

    reference_BChw: torch.Tensor
    noise_BChw: torch.Tensor
    there_B1hw: torch.Tensor
    here_B1hw: torch.Tensor
    weight: float
    surroundings: torch.Tensor | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Memory:
    """What the denoiser's inner levels answered to calls of one kind: one prompt, adapter and batch. While `fresh`, they are asked anew.

    From one step of a drawing to the next they change little; the finest level, which is always asked, follows each step's latent
    [after DeepCache, arXiv 2312.00858, with the whole of that level].
    """

    fresh: bool = True
    answers: dict[int, Any] = field(default_factory=dict)  # by block


Gain = torch.Tensor  # B x 1 x h x w, positive: multiplies attention to the learned tokens; 1 = leave alone


class Prior(Protocol):
    """A frozen text-conditioned latent diffusion model."""

    factor: int  # pixels per latent cell and side
    latent_channels: int
    working_size: int  # pixels per side that the denoiser was trained on
    token_width: int
    max_tokens: int
    inpaints: bool  # whether the denoiser is told what surrounds a hole
    digest: str
    alphas: torch.Tensor  # cumulative alpha of each training step, T values falling from near 1, on the CPU
    device: torch.device

    def encode(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in -1..1 -> scaled latents (the mean, no sampling)."""
        ...

    def surroundings(self, x_BCHW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor | None:
        """What an inpainting prior is told of pictures with a hole where the mask is 1; None from any other prior."""
        ...

    def decode(self, z_BChw: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> images, about -1..1, not clipped."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token numbers of `text` without start and end."""
        ...

    def word_embeddings(self, ids: list[int]) -> torch.Tensor:
        """Rows of the text encoder's embedding table, N x D."""
        ...

    def embed(self, text: tuple[list[int], list[int]], learned_BKD: torch.Tensor) -> Context:
        """Encode `text[0]`, the learned word embeddings, `text[1]` as one sequence, padded to `max_tokens`."""
        ...

    def predict(
        self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None, graft: Graft | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The network's raw output at step `t_B`, in its own parametrisation; with `memory`, its inner levels' from there."""
        ...

    def target(self, clean: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        """What `predict` should have answered."""
        ...

    def denoise(self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None) -> Estimate:
        """Predict the clean latent and the noise in it."""
        ...
