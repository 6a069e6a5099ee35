"""The autoencoder starts as the best linear patch code, and its channels can be levelled without moving the pictures."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.training.autoencoder import AutoencoderConfig, build_autoencoder, level_channels, linear_start


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Smooth fields with some grain: 24 x 3 x 32 x 32, -1..1."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(24, 3, 6, 6, generator=random), 32, mode="bicubic", align_corners=False)
    return (0.3 * coarse + 0.03 * torch.randn(24, 3, 32, 32, generator=random)).clamp(-1, 1)


@pytest.fixture(params=[2, 3], ids=["factor 4", "factor 8"])
def begun(pictures: torch.Tensor, request: pytest.FixtureRequest) -> AutoencoderDC:
    torch.manual_seed(0)
    layers = (1,) * request.param
    vae = build_autoencoder(AutoencoderConfig(latent_channels=12 * (request.param - 1), encoder_layers=layers, decoder_layers=layers))
    linear_start(vae, pictures)
    return vae.eval()


@torch.no_grad()
def test_it_starts_as_the_principal_components_of_patches(begun: AutoencoderDC, pictures: torch.Tensor) -> None:
    out = begun.decode(begun.encode(pictures).latent).sample
    side, kept = begun.spatial_compression_ratio, begun.config.latent_channels
    patches = pictures.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * side**2).double().numpy()
    centred = patches - patches.mean(0)
    lost = (np.linalg.svd(centred, compute_uv=False)[kept:] ** 2).sum() / patches.size
    assert (out - pictures).square().mean().item() == pytest.approx(lost, rel=0.02)


@torch.no_grad()
def test_levelled_channels_are_as_loud_as_in_the_picture_and_the_pictures_stay(begun: AutoencoderDC, pictures: torch.Tensor) -> None:
    before, out = begun.encode(pictures).latent, begun.decode(begun.encode(pictures).latent).sample
    level_channels(begun)
    after, again = begun.encode(pictures).latent, begun.decode(begun.encode(pictures).latent).sample
    assert torch.allclose(out, again, atol=1e-4)
    old, new = (z.transpose(0, 1).flatten(1).std(1) for z in (before, after))
    assert torch.allclose((new / new[0]).log(), 2 * (old / old[0]).log(), atol=0.05)  # roots of the deviations before, now themselves
    channels = after.shape[1]
    unit = torch.zeros(channels, *after.shape[1:])
    unit[range(channels), range(channels), 2, 2] = 0.1
    moved = (begun.decode(after[:1] + unit).sample - begun.decode(after[:1]).sample).flatten(1).norm(dim=1)
    assert moved.max() < 1.02 * moved.min()
    level_channels(begun)
    assert torch.allclose(begun.encode(pictures).latent, after, atol=1e-5)


def test_every_halving_needs_layers_on_both_sides() -> None:
    with pytest.raises(ConfigError, match="one for every halving"):
        AutoencoderConfig(encoder_layers=(1, 1), decoder_layers=(1, 1, 1))
