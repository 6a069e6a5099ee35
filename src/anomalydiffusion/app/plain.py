"""The published way, as one would write it with today's libraries: one at a time, float32, nothing kept from step to step.

What `bench` and `benchmarks/speed.py` measure us against; written for that alone. A pair is drawn on the whole
picture at the prior's size, by blended latent diffusion with ancestral DDIM [arXiv 2312.05767v2, generation], on request with adaptive
re-weighting on materialised attention probabilities. A defect is learned by the masked loss, samples one by one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalydiffusion.conditioning.spatial import SpatialEncoder

__all__ = ["Clock", "Learned", "Plain", "WeighedAttention", "draw", "gain_of", "learn"]

# B batch, C channels, H W picture, h w latent grid, N tokens, K learned ones, D width of a token

Noise = Callable[[str, int], torch.Tensor]


class Clock:
    """Seconds of each part, one number a visit."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part].append(time.perf_counter() - began)


class Learned(nn.Module):
    """What is learned: 8 anomaly vectors, and a ResNet-50 that turns the mask into 4 spatial tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(1, 8, width))
        self.spatial = SpatialEncoder(4, width, "resnet50")

    def forward(self, mask_11HW: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.vectors, self.spatial(mask_11HW)], dim=1)


class WeighedAttention:
    """`(softmax(Q K^T / sqrt(d)) (.) w) V` with the whole probability matrix in memory; w on the learned tokens' columns."""

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, temb: torch.Tensor | None = None, gain: torch.Tensor | None = None,
        span: tuple[int, int] = (0, 0),
    ) -> torch.Tensor:  # fmt: skip
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)))
        probabilities = attn.get_attention_scores(q, k, attention_mask)
        if gain is not None and encoder_hidden_states is not None:
            side = round(hidden_states.shape[1] ** 0.5)
            weight = F.interpolate(gain, (side, side), mode="bilinear", antialias=True).flatten(1)[:, :, None]
            probabilities[:, :, span[0] : span[1]] *= weight
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ v)))


class Plain:
    """A prior's networks as diffusers has them, and what was learned: `learned(mask)` gives 1 x K x D."""

    def __init__(self, prior: Any, learned: Callable[[torch.Tensor], torch.Tensor], scheduler: Any = None) -> None:
        self.vae, self.unet, self.text_encoder, self.tokenizer = prior.vae, prior.unet, prior.text_encoder, prior.tokenizer
        self.scheduler, self.learned = scheduler or prior.scheduler, learned
        self.size, self.factor, self.positions = prior.working_size, prior.factor, prior.max_tokens
        self.special = [
            next(each for each in pair if each is not None)
            for pair in (
                (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id), (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id),
            )
        ]  # fmt: skip
        self.reweighs(False)

    def reweighs(self, asked: bool) -> None:
        self.unet.set_attn_processor(WeighedAttention() if asked else AttnProcessor2_0())

    def encode(self, x_1CHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = self.vae.encode(x_1CHW)
        return (out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent) * self.vae.config.scaling_factor

    def decode(self, z_1Chw: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(z_1Chw / self.vae.config.scaling_factor).sample

    def condition(self, mask_11HW: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """The prompt with the learned tokens at its end, after the text encoder; and where they stand."""
        learned = self.learned(mask_11HW)
        head = [self.special[0], *self.tokenizer("a photo of", add_special_tokens=False).input_ids]
        span = (len(head), len(head) + learned.shape[1])
        filler = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.special[1]
        ids = torch.full((1, self.positions), filler)
        ids[0, : span[0]], ids[0, span[1]] = torch.tensor(head), self.special[1]
        table = self.text_encoder.get_input_embeddings()

        def splice(module: nn.Module, given: Any, words: torch.Tensor) -> torch.Tensor:
            return torch.cat([words[:, : span[0]], learned, words[:, span[1] :]], dim=1)

        handle = table.register_forward_hook(splice)
        try:
            return self.text_encoder(ids)[0], span
        finally:
            handle.remove()

    def answer(self, z: torch.Tensor, t: int, tokens: torch.Tensor, **steered: Any) -> torch.Tensor:
        return self.unet(z, torch.tensor([t]), encoder_hidden_states=tokens, cross_attention_kwargs=steered or None).sample

    def tensors(self, image_HWC: np.ndarray, mask_HW: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The whole picture at the prior's size in -1..1, its mask, and that on the latent grid."""
        picture = np.array(Image.fromarray(image_HWC).resize((self.size, self.size), Image.Resampling.LANCZOS))
        marks = np.array(Image.fromarray(mask_HW).resize((self.size, self.size), Image.Resampling.NEAREST))
        x, mask = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1, torch.from_numpy(marks)[None, None].float()
        return x, mask, F.interpolate(mask, scale_factor=1 / self.factor, mode="nearest")


def gain_of(seen_1CHW: torch.Tensor, picture_1CHW: torch.Tensor, mask_11HW: torch.Tensor) -> torch.Tensor:
    """`||m||_1 softmax_m(1 / ||m y - m x0_hat||^2)`, 1 outside [arXiv 2312.05767v2, adaptive re-weighting]."""
    inverse = 1 / (seen_1CHW - picture_1CHW).square().sum(1, keepdim=True).clamp_min(1e-12)
    weights = inverse.masked_fill(mask_11HW == 0, -torch.inf).flatten(1).softmax(1).view_as(mask_11HW)
    return torch.where(mask_11HW > 0, mask_11HW.sum() * weights, 1.0)


@torch.no_grad()
def draw(
    plain: Plain, image_HWC: np.ndarray, mask_HW: np.ndarray, *, steps: int = 200, walked: int | None = None, reweight: bool = False,
    noise: Noise | None = None, clock: Clock | None = None, on_step: Callable[[torch.Tensor], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """One pair's picture, uint8 at the prior's size; of the `steps`, only the first `walked` where that is given."""
    clock = clock or Clock()
    plain.reweighs(reweight)
    x, mask, latent_mask = plain.tensors(image_HWC, mask_HW)
    with clock("encode"):
        normal = plain.encode(x)
    noise = noise or (lambda purpose, t: torch.randn_like(normal))
    plain.scheduler.set_timesteps(steps)
    z = noise("start", 0)
    steered: dict[str, Any] = {}
    for t in plain.scheduler.timesteps.tolist()[:walked]:
        with clock("step"):
            with clock("embed"):
                tokens, span = plain.condition(mask)
            with clock("call"):
                answer = plain.answer(z, t, tokens, **steered)
            out = plain.scheduler.step(answer, t, z, eta=1.0, variance_noise=noise("step", t))
            if reweight:
                with clock("preview"):
                    steered = {"gain": gain_of(plain.decode(out.pred_original_sample), x, mask), "span": span}
            s = t - plain.scheduler.config.num_train_timesteps // steps
            background = normal if s < 0 else plain.scheduler.add_noise(normal, noise("background", s), torch.tensor([s]))
            z = out.prev_sample * latent_mask + background * (1 - latent_mask)
        if on_step:
            on_step(z)
    with clock("decode"):
        seen = plain.decode(z)
    return ((seen[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def learn(plain: Plain, learned: nn.Module, image_HWC: np.ndarray, mask_HW: np.ndarray, *, steps: int, accumulate: int = 4) -> list[float]:
    """Seconds of each of `steps` training steps of `accumulate` samples; the picture, encoded anew each time, is flipped at random."""
    plain.reweighs(False)
    optimizer, seconds = torch.optim.AdamW(learned.parameters(), lr=0.005), []
    train_steps = plain.scheduler.config.num_train_timesteps
    for _ in range(steps):
        began = time.perf_counter()
        for _ in range(accumulate):
            flipped = np.random.default_rng().random() < 0.5
            views = (np.ascontiguousarray(each[:, :: -1 if flipped else 1]) for each in (image_HWC, mask_HW))
            x, mask, latent_mask = plain.tensors(*views)
            clean, t = plain.encode(x), torch.randint(train_steps, (1,))
            noise = torch.randn_like(clean)
            tokens, _ = plain.condition(mask)
            answer = plain.answer(plain.scheduler.add_noise(clean, noise, t), int(t), tokens)
            kind = plain.scheduler.config.prediction_type
            velocity = plain.scheduler.get_velocity(clean, noise, t)
            target = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
            loss = (latent_mask * (target - answer)).square().mean()
            (loss / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds
