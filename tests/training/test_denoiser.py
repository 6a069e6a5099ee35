"""What a caption says reaches the denoiser from the first step on, and is not drowned later."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from anomalydiffusion.training.denoiser import SLOWER, Denoiser, DenoiserConfig, build_denoiser, build_tokenizer, schedule, train_denoiser
from anomalydiffusion.training.loop import LoopConfig

CAPTIONS = ["a photo of brick wall texture", "a photo of a perforated plate", "a scratch on brushed metal", "a photo of wood grain"]
CONFIG = DenoiserConfig(
    widths=(32,), text_width=64, text_layers=2, vocabulary=600, batch_size=4,
    loop=LoopConfig(steps=4, warmup=0, learning_rate=1e-3),
)  # fmt: skip


@pytest.fixture
def model() -> Denoiser:
    torch.manual_seed(0)
    return build_denoiser(CONFIG, 4, 8, build_tokenizer(CAPTIONS, 600, 32))


def test_attention_is_kept_to_coarse_levels() -> None:
    unet = build_denoiser(replace(CONFIG, widths=(32, 32), attention=8), 4, 16, build_tokenizer(CAPTIONS, 600, 32)).unet
    at = {name.split(".attentions")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert at == {"down_blocks.1", "mid_block", "up_blocks.0"}


@torch.no_grad()
def test_captions_sound_different_at_every_position(model: Denoiser) -> None:
    tokenizer = build_tokenizer(CAPTIONS, 600, 32)
    ids = torch.tensor([tokenizer(caption, padding="max_length", truncation=True).input_ids for caption in CAPTIONS])
    heard = model.text_encoder(ids)[0]
    apart = (heard - heard.mean(0)).square().mean((0, 2)).sqrt() / heard.std()
    assert apart[4:].min() > 0.3  # start, "a", "photo" and "of" are said by most
    pooled = model.unet.add_embedding(heard)
    assert (pooled - pooled.mean(0)).std() > 0.3 * pooled.std()


def test_the_text_encoder_learns_slower_than_the_denoiser(model: Denoiser, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    latents = np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float16)
    train_denoiser(model, latents, CAPTIONS * 4, build_tokenizer(CAPTIONS, 600, 32), schedule(), 1.0, CONFIG, tmp_path, seed=0)
    moved = {name: float((value - before[name]).abs().max()) for name, value in model.state_dict().items()}
    furthest = CONFIG.loop.steps * CONFIG.loop.learning_rate
    assert max(far for name, far in moved.items() if name.startswith("unet.")) > 0.3 * furthest
    assert 0 < max(far for name, far in moved.items() if name.startswith("text_encoder.")) < 1.5 * SLOWER * furthest


@pytest.mark.parametrize("answers", ["v_prediction", "sample"])
def test_the_loss_is_of_the_clean_latent_whatever_the_answer_stands_for(model: Denoiser, tmp_path: Path, answers: str) -> None:
    """An answer of nothing, on latents of nothing: as the clean latent it is right; as v it leaves sqrt(a) of the noise in."""
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    scheduler = DDIMScheduler.from_config(schedule().config, prediction_type=answers)
    config = replace(CONFIG, batch_size=256, close=0.0, focus=0.0, loop=LoopConfig(steps=1, warmup=0, log_every=1))
    losses = []
    train_denoiser(model, np.zeros((8, 4, 8, 8), np.float16), CAPTIONS * 2, build_tokenizer(CAPTIONS, 600, 32), scheduler, 1.0, config,
                   tmp_path, seed=0, progress=lambda step, means: losses.append(means["loss"]))  # fmt: skip
    a = scheduler.alphas_cumprod.double()
    left = (a * (1 - a) / (1 - a).clamp_min(config.floor)).mean().item() if answers == "v_prediction" else 0.0
    assert losses[0] == pytest.approx(left, rel=0.15)
