"""Any diffusers folder loads into the same Prior; damage is named."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.load import BUNDLED, digest_folder, load_prior
from tests.conftest import build_prior_folder


@pytest.mark.parametrize("family", ["sd", "ldm"])
def test_each_family_answers_as_the_model_that_wrote_it(tmp_path: Path, family: str) -> None:
    folder = build_prior_folder(tmp_path / family, family)
    prior = load_prior(str(folder))
    assert (prior.factor, prior.latent_channels, prior.working_size, prior.max_tokens) == (8, 4, 64, 32)
    context = prior.embed((prior.tokenize("a photo of"), []), torch.randn(2, 3, prior.token_width))
    assert context.tokens_BND.shape == (2, 32, 32)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_pretrained(folder / "unet").eval()  # diffusers' own attention
    with torch.no_grad():
        expected = plain(z, t, encoder_hidden_states=context.tokens_BND).sample
        torch.testing.assert_close(prior.predict(z, t, context), expected, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for part in (prior.vae, prior.unet, prior.text_encoder) for p in part.parameters())


@pytest.mark.skipif((BUNDLED / "model_index.json").exists(), reason="the bundled prior is there")
def test_a_missing_bundled_prior_says_how_to_make_one() -> None:
    with pytest.raises(PriorError, match=r"prior train --config recipes/tiny\.toml"):
        load_prior("tiny")


def test_digest_follows_content_not_place(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "copy")
    assert digest_folder(copy) == digest_folder(small_folder)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert digest_folder(copy) != digest_folder(small_folder)


def test_damage_is_named(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "cut")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PriorError, match=r"unet.*cannot be loaded"):
        load_prior(str(copy))
    (copy / "model_index.json").unlink()
    with pytest.raises(PriorError, match=r"model_index\.json is missing"):
        load_prior(str(copy))
    with pytest.raises(PriorError, match="not a diffusers folder"):
        load_prior(str(tmp_path / "nowhere"))


def test_a_folder_cannot_name_a_class_to_run(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "evil")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "SubprocessRunner"))
    with pytest.raises(PriorError, match="SubprocessRunner is not one of"):
        load_prior(str(copy))


def test_pickles_are_not_read(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "pickle")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), copy / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(PriorError, match="unet"):
        load_prior(str(copy))
