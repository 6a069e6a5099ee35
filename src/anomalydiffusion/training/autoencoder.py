"""Train a small autoencoder that starts as the best linear patch code and learns what a linear code cannot do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import to_batch
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.priors.measure import gradient_energy
from anomalydiffusion.training.loop import LoopConfig, Progress, run_loop

if TYPE_CHECKING:  # slow to import, and most commands never need them
    from diffusers import AutoencoderDC

__all__ = ["AutoencoderConfig", "build_autoencoder", "level_channels", "linear_start", "train_autoencoder"]

CONSTANT = 16.0  # a channel this large makes the decoder's last RMS norm nearly a mere scale (error below 1 %)
LIFT = 2.0  # added before the decoder's last ReLU and taken off after it: the ReLU never cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig:
    """Shape and training of the autoencoder. It halves the picture once for each entry of the layers."""

    latent_channels: int = 16
    width: int = 16  # channels at half resolution; quadrupled with every further halving, so that nothing is lost
    encoder_layers: tuple[int, ...] = (1, 2)
    decoder_layers: tuple[int, ...] = (2, 4)
    crop: int = 64
    batch_size: int = 16
    grain: float = 0.05  # weight of the gradient-energy term
    spread: float = 1e-3  # weight of the penalty on large latents
    finish: float = 0.0  # minutes in which the decoder alone goes on learning, with `finish_grain` in place of `grain`
    finish_grain: float = 0.5
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=1e-3, minutes=35.0, steps=1_000_000))

    def __post_init__(self) -> None:
        if not self.encoder_layers or len(self.encoder_layers) != len(self.decoder_layers):
            raise ConfigError("encoder_layers and decoder_layers: expected as many entries in each, one for every halving")


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """Build the network: residual blocks between pixel (un)shuffles, nothing at full resolution but one convolution."""
    halvings = len(config.encoder_layers)
    widths = (config.width, *(config.width * 4**level for level in range(halvings)))
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, *config.encoder_layers), decoder_layers_per_block=(0, *config.decoder_layers),
        encoder_qkv_multiscales=((),) * len(widths), decoder_qkv_multiscales=((),) * len(widths),
        encoder_out_shortcut=False, decoder_in_shortcut=False, scaling_factor=1.0,
    )  # fmt: skip


@torch.no_grad()
def linear_start(vae: AutoencoderDC, images_BCHW: torch.Tensor) -> None:
    """Set the weights so that the network is the principal-component code of its patches, computed on `images_BCHW`.

    Residual branches start at zero, the shuffles carry the pixels, the last convolution of the encoder and the first of
    the decoder hold the components. Latents are scaled by the square root of each component's deviation: between raw
    (one channel holds nearly all variance) and white (grain as loud as shape).
    """
    encoder, decoder = vae.encoder, vae.decoder
    for module in vae.modules():
        if type(module).__name__ == "ResBlock":
            module.norm.weight.zero_()
            module.norm.bias.zero_()
        if type(module).__name__ in ("DCDownBlock2d", "DCUpBlock2d"):
            module.conv.weight.zero_()
            module.conv.bias.zero_()
    for channel in range(3):
        encoder.conv_in.conv.weight[channel, channel, 1, 1] = 1.0

    rows = []
    for batch in images_BCHW.split(64):
        x = encoder.conv_in(batch)
        for block in encoder.down_blocks:
            x = block(x)
        rows.append(x.permute(0, 2, 3, 1).flatten(0, 2).double())
    features = torch.cat(rows)
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    keep = vae.config.latent_channels
    basis, deviation = vectors[:, -keep:].flip(1), values[-keep:].flip(0).clamp_min(1e-8).sqrt()
    gain = deviation.rsqrt() / deviation.sqrt().square().mean().sqrt()

    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:, :, 1, 1] = (basis * gain).T.float()
    encoder.conv_out.bias.copy_(-(mean @ basis * gain).float())
    decoder.conv_in.weight.zero_()
    decoder.conv_in.weight[:, :, 1, 1] = (basis / gain).float()
    decoder.conv_in.bias.copy_(mean.float())
    pixels = 12  # channels at half resolution that carry RGB
    decoder.up_blocks[1][0].conv.bias[4 * pixels : 4 * pixels + 4] = CONSTANT
    decoder.norm_out.weight.fill_(CONSTANT / decoder.norm_out.weight.numel() ** 0.5)
    decoder.norm_out.bias.fill_(LIFT)
    decoder.norm_out.weight[pixels:] = 0
    decoder.norm_out.bias[pixels:] = 0
    for channel in range(pixels):
        decoder.conv_out.conv.weight[channel, channel, 1, 1] = 1.0
    decoder.conv_out.conv.bias.fill_(-LIFT)
    decoder.norm_out.requires_grad_(False)  # these only undo the network's last activation; everything before them learns
    decoder.conv_out.requires_grad_(False)


@torch.no_grad()
def level_channels(vae: AutoencoderDC) -> None:
    """Scale the latent channels so that a unit of each moves the picture about as far; the pictures stay as they were.

    White noise on such latents is like white noise on the picture: it drowns detail first and shape last, and a denoiser
    learns shape first. On latents as `linear_start` leaves them it drowns both at once, and a small denoiser spends its
    training on detail alone. How far a unit moves the picture is taken to be the norm of the decoder's first weights for
    that channel; levelling twice changes nothing more.
    """
    first, last = vae.decoder.conv_in, vae.encoder.conv_out
    reach = first.weight.square().sum((0, 2, 3)).sqrt()
    first.weight /= reach[:, None, None]
    last.weight *= reach[:, None, None, None]
    last.bias *= reach


def _crops(images: np.ndarray, config: AutoencoderConfig, seed: int, step: int, micro: int) -> torch.Tensor:
    generator = rng(seed, "crops", step, micro)
    out = np.empty((config.batch_size, config.crop, config.crop, 3), np.uint8)
    for row in range(config.batch_size):
        image = images[int(generator.integers(len(images)))]
        top, left = generator.integers(0, image.shape[0] - config.crop + 1, 2)
        out[row] = image[top : top + config.crop, left : left + config.crop]
    return to_batch(out)


def train_autoencoder(
    vae: AutoencoderDC, images_NHWC: np.ndarray, config: AutoencoderConfig, folder: Path, *, seed: int,
    progress: Progress | None = None,
) -> nn.Module:  # fmt: skip
    """Train on crops of uint8 `images_NHWC`; returns the network with averaged weights.

    `L = mean_i log MSE_i + grain |log E(out_i) / E(in_i)| + spread mean(z^2)`: the first term is the mean PSNR itself,
    the second holds the gradient energy E (grain) at 1. Fidelity alone would smooth the grain away; a last spell of the
    decoder alone, with more weight on the grain, brings it back without moving the latents.
    """
    vae.to(memory_format=torch.channels_last)
    device = next(vae.parameters()).device

    def objective(grain_weight: float, step: int, micro: int) -> dict[str, torch.Tensor]:
        x = _crops(images_NHWC, config, seed, step, micro).to(device)
        z = vae.encode(x).latent
        out = vae.decode(z).sample
        error = (out - x).square().flatten(1).mean(1)
        fidelity = (error + 1e-6).log().mean()
        grain = ((gradient_energy(out) + 1e-5) / (gradient_energy(x) + 1e-5)).log().abs().mean()
        loss = fidelity + grain_weight * grain + config.spread * z.square().mean()
        return {"loss": loss, "psnr": 10 * np.log10(4) - 4.343 * fidelity, "grain": grain, "latent": z.std()}

    trained = run_loop(vae, partial(objective, config.grain), config.loop, folder, progress=progress, rate=_rate)
    if not config.finish:
        return trained
    vae.load_state_dict(trained.state_dict())
    vae.encoder.requires_grad_(False)
    last = replace(config.loop, minutes=config.finish, learning_rate=config.loop.learning_rate / 2)
    return run_loop(vae, partial(objective, config.finish_grain), last, folder / "decoder", progress=progress, rate=_rate)


def _rate(parameter: nn.Parameter) -> float:
    """Learning rate by fan-in: one Adam step moves every weight alike, so a wide layer's output would jump off the optimum."""
    return 48.0 / parameter[0].numel() if parameter.ndim == 4 else 0.3
