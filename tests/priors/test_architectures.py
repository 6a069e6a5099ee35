"""The published architectures have the published sizes, and original weights of these sizes are read as such."""

from pathlib import Path

import pytest
import torch

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.architectures import ARCHITECTURES, build
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.original import components_of
from tests.priors import original_layout as layout

MILLIONS = {  # denoiser, autoencoder, text encoder
    "ldm-text2im-large-256": (872.3, 83.7, 582.0),
    "stable-diffusion-v1-5": (859.5, 83.7, 123.1),
    "stable-diffusion-2-1-base": (865.9, 83.7, 340.4),
    "stable-diffusion-inpainting": (859.5, 83.7, 123.1),
}
TEXTS = dict(
    zip(ARCHITECTURES, (layout.original_ldm_bert, layout.original_clip, layout.original_open_clip, layout.original_clip), strict=True)
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_the_published_ones_and_are_read_off_original_weights(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        parts = build(name)
        sizes = tuple(sum(p.numel() for p in parts[part].parameters()) / 1e6 for part in ("unet", "vae", "text_encoder"))
        assert sizes == pytest.approx(MILLIONS[name], abs=0.06)
        weights = {**layout.original_unet(parts["unet"]), **layout.original_vae(parts["vae"]), **TEXTS[name](parts["text_encoder"])}
        original = tmp_path / "model.yaml"
        original.write_text("model: {params: {parameterization: eps}}")
        _, found = components_of(weights, tmp_path / "model.ckpt", original, torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        one, two = parts[part], found[part]
        assert {k: v.shape for k, v in one.named_parameters()} == {k: v.shape for k, v in two.named_parameters()}
    for key in ("sample_size", "attention_head_dim", "use_linear_projection", "cross_attention_dim"):
        ours, theirs = found["unet"].config[key], parts["unet"].config[key]
        assert ours == (list(theirs) if isinstance(theirs, tuple) else theirs), key
    assert found["vae"].config.sample_size == parts["vae"].config.sample_size


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(PriorError, match="random:sd9: no such architecture; known are ldm-text2im-large-256, "):
        load_prior("random:sd9")
