"""Train the denoiser and its text encoder on cached latents, with a tokenizer learned on the captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.seeds import derive, rng
from anomalydiffusion.training.loop import LoopConfig, Progress, run_loop

if TYPE_CHECKING:  # slow to import, and most commands never need them
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["Denoiser", "DenoiserConfig", "build_denoiser", "build_tokenizer", "schedule", "time_steps", "train_denoiser", "vary"]

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = 0.05  # deviation of the word embeddings to begin with
SLOWER = 0.02  # the text encoder's learning rate over the denoiser's: at the same one its places outgrow its words, which fall silent


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """Shape and training of the denoiser and the text encoder."""

    widths: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = 1
    attention: int = 16  # cells on a side up to which a level has attention; above, it would cost more than all else
    head_width: int = 32
    text_width: int = 192
    text_layers: int = 3
    max_tokens: int = 32
    vocabulary: int = 1500
    batch_size: int = 32
    drop_caption: float = 0.1
    focus: float = 0.4  # share of the batch whose time steps are drawn where shapes form, not evenly
    floor: float = 0.03  # the noise's variance below which a time step's loss weighs no more
    close: float = 0.8  # share of the steps that see twice as many crops of half the side: cheaper steps, so more of them
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1_000_000, minutes=50.0, learning_rate=6e-4, warmup=300, weight_decay=0.01, average=0.999)
    )

    def __post_init__(self) -> None:
        for name in ("drop_caption", "focus", "close"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a share, 0..1")
        if not 0 < self.floor <= 1:
            raise ConfigError(f"floor = {self.floor}: expected above 0 and at most 1")


def build_tokenizer(captions: Sequence[str], size: int, max_tokens: int) -> CLIPTokenizer:
    """Learn byte-pair merges on the captions, in CLIP's own format."""
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer()
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = plain.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=size, special_tokens=[START, END], initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([*captions, " ".join(alphabet)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges: list[Any] = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_tokens)


class Denoiser(nn.Module):
    """Denoiser and text encoder as one trainable module."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


def build_denoiser(config: DenoiserConfig, latent_channels: int, grid: int, tokenizer: CLIPTokenizer) -> Denoiser:
    """Build both networks with random weights, for latents of `latent_channels` x `grid` x `grid`.

    The caption enters by cross-attention and, pooled, beside the time step in every residual block, where it scales features.
    """
    start_id, end_id = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    attends = [grid >> level <= config.attention for level in range(len(config.widths))]
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=grid, in_channels=latent_channels, out_channels=latent_channels, block_out_channels=config.widths,
        layers_per_block=config.layers_per_block, cross_attention_dim=config.text_width, norm_num_groups=8,
        attention_head_dim=tuple(width // config.head_width for width in config.widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        use_linear_projection=True, resnet_time_scale_shift="scale_shift",
        addition_embed_type="text", addition_embed_type_num_heads=config.text_width // 32,
    )  # fmt: skip
    text_encoder: Any = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=3 * config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=config.text_width // 32,
        max_position_embeddings=config.max_tokens, projection_dim=config.text_width,
        bos_token_id=start_id, eos_token_id=end_id, pad_token_id=end_id,
    ))  # fmt: skip
    with torch.no_grad():  # words outweigh places, and padding says what was before it: else all captions sound alike
        words, places = text_encoder.get_input_embeddings().weight, text_encoder.embeddings.position_embedding.weight
        words *= WORDS / words.std()
        words[[start_id, end_id]] = 0
        places *= WORDS / 10 / places.std()
    return Denoiser(unet, text_encoder)


def vary(caption: str, generator: np.random.Generator, drop: float) -> str:
    """One of several ways to say a caption: with or without the material, by name or as "an anomaly", or nothing."""
    if generator.random() < drop:
        return ""
    flaw, on, ground = caption.partition(" on ")
    if not on or flaw.startswith(("a photo", "a binary")):
        return caption
    if generator.random() < 0.25:
        flaw = str(generator.choice(["an anomaly", "a defect"]))
    said = flaw if generator.random() < 0.3 else f"{flaw} on {ground}"
    return f"a photo of {said}" if generator.random() < 0.6 else said


def schedule() -> DDIMScheduler:
    """What a new denoiser learns on: scaled linear betas, zero terminal SNR.

    They begin at a tenth of what is usual: levelled channels need steps of little noise for their detail.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.0001, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        steps_offset=0, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip


def time_steps(generator: np.random.Generator, count: int, train_steps: int, focus: float) -> np.ndarray:
    """Time steps, a share of `focus` from a logit-normal law and the rest evenly: `train_steps sigmoid(0.4 + n)`, n normal."""
    shapes = train_steps / (1 + np.exp(-generator.normal(0.4, 1.0, count)))
    evenly = generator.uniform(0, train_steps, count)
    drawn = np.where(generator.random(count) < focus, shapes, evenly)
    return drawn.astype(np.int64).clip(0, train_steps - 1)


def _crops(generator: np.random.Generator, latents_BChw: np.ndarray) -> np.ndarray:
    """A square of half the side out of each latent, at a random place."""
    side = latents_BChw.shape[-1] // 2
    places = generator.integers(0, latents_BChw.shape[-1] - side + 1, (len(latents_BChw), 2)).tolist()
    return np.stack([latent[:, y : y + side, x : x + side] for latent, (y, x) in zip(latents_BChw, places, strict=True)])


def train_denoiser(
    model: Denoiser, latents: np.ndarray, captions: list[str], tokenizer: CLIPTokenizer, scheduler: DDIMScheduler, scale: float,
    config: DenoiserConfig, folder: Path, *, seed: int, progress: Progress | None = None,
) -> nn.Module:  # fmt: skip
    """Minimise `|| z_0 - z_theta(z_t, t, c) ||^2 / max(1 - a_t, floor)` over denoiser and text encoder on cached latents.

    `z_theta` is the clean latent that the network's answer stands for. It answers with v = sqrt(a) noise - sqrt(1 - a) z_0
    [arXiv 2202.00512], so that what it is given goes past it to the answer and it learns only the difference; or, where `scheduler`
    says "sample", with the clean latent itself: with many channels and few features a network cannot carry the noise through.
    The weight makes the loss that of v, but at the last few steps, where even the faintest channel (`level_channels`) is louder
    than the noise.
    """
    alphas, answers_clean = scheduler.alphas_cumprod, scheduler.config.prediction_type == "sample"
    device = next(model.parameters()).device
    alphas = alphas.to(device)
    model.unet.to(memory_format=torch.channels_last)
    ids = {text: torch.tensor(tokenizer(text, padding="max_length", truncation=True).input_ids) for text in [""]}

    def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
        generator = rng(seed, "denoiser", step, micro)
        close = generator.random() < config.close
        count = config.batch_size * (2 if close else 1)
        rows = np.sort(generator.integers(0, len(latents), count))
        clean = torch.from_numpy(_crops(generator, latents[rows]) if close else latents[rows]).float().to(device) * scale
        words = [vary(captions[row], generator, config.drop_caption) for row in rows]
        for text in set(words) - set(ids):
            ids[text] = torch.tensor(tokenizer(text, padding="max_length", truncation=True).input_ids)
        t = torch.from_numpy(time_steps(generator, count, len(alphas), config.focus)).to(device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(derive(seed, "noise", step, micro))).to(device)
        alpha = alphas[t].view(-1, 1, 1, 1)
        context = model.text_encoder(torch.stack([ids[text] for text in words]).to(device))[0]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        answer = model.unet(noisy, t, encoder_hidden_states=context).sample.float()
        estimate = answer if answers_clean else alpha.sqrt() * noisy - (1 - alpha).sqrt() * answer
        return {"loss": ((estimate - clean).square().flatten(1).mean(1) / (1 - alphas[t]).clamp_min(config.floor)).mean()}

    slow = {id(parameter) for parameter in model.text_encoder.parameters()}

    def rate(parameter: nn.Parameter) -> float:
        return SLOWER if id(parameter) in slow else 1.0

    return run_loop(model, objective, config.loop, folder, progress=progress, rate=rate)
