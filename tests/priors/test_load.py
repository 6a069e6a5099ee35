"""Any diffusers folder loads into the same Prior; damage is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomalydiffusion.core.config import from_dict, read_toml
from anomalydiffusion.core.errors import ConfigError, PriorError
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.data.corpus import CorpusConfig, draw_corpus
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import BUNDLED, digest_folder, load_prior
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.training.autoencoder import build_autoencoder
from anomalydiffusion.training.prior import PriorConfig
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


@pytest.fixture(scope="module")
def tiny() -> LatentPrior:
    return load_prior()


def _drawn(prior: LatentPrior, count: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures from seeds that the bundled prior's corpus does not use, as latents; and their captions."""
    pictures = list(draw_corpus(CorpusConfig(pictures=count, drawn=1.0, shapes=0.0, flawed=0.0), [], seed=1))
    images = torch.cat([to_tensor(picture.image_HWC) for picture in pictures])
    return prior.encode(images), [picture.caption for picture in pictures]


def test_the_bundled_prior_is_small_and_loads_by_the_same_code(tiny: LatentPrior) -> None:
    files = list(BUNDLED.rglob("*.safetensors"))
    assert len(files) == 3 and sum(path.stat().st_size for path in files) <= 30e6
    assert (tiny.working_size, tiny.factor, tiny.prediction_type) == (128, 4, "v_prediction")
    assert {path.name for path in BUNDLED.iterdir()} >= {"README.md", "ATTRIBUTION.csv"}


def test_the_recipe_makes_the_bundled_autoencoder_s_shapes(tiny: LatentPrior) -> None:
    recipe = from_dict(PriorConfig, read_toml(Path(__file__).parents[2] / "recipes" / "tiny.toml"))
    made = build_autoencoder(recipe.autoencoder).state_dict()
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in tiny.vae.state_dict().items()}


def test_the_bundled_autoencoder_keeps_fine_structure(tiny: LatentPrior) -> None:
    pictures = [picture.image_HWC for picture in draw_corpus(CorpusConfig(pictures=12, shapes=0.0), [], seed=1)]
    found = measure_autoencoder(lambda x: tiny.decode(tiny.encode(x)), pictures)
    assert found["psnr"] > 36 and 0.8 < found["gradient_energy_ratio"] < 1.1


def test_the_bundled_denoiser_denoises_and_listens_to_captions(tiny: LatentPrior) -> None:
    clean, captions = _drawn(tiny, 16)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(clean),), 400)
    noisy = tiny.noised(clean, noise, t)

    def error(said: list[str]) -> float:
        contexts = [tiny.embed((tiny.tokenize(text), []), torch.zeros(1, 0, tiny.token_width)).tokens_BND for text in said]
        with torch.no_grad():
            estimate = tiny.denoise(noisy, t, Context(tokens_BND=torch.cat(contexts))).clean
        return float((estimate - clean).square().mean())

    told = error(captions)
    signal = float(tiny.alphas[400])
    assert told < 0.8 * float((noisy * signal**0.5 - clean).square().mean())  # better than only scaling down
    assert told < error(captions[1:] + captions[:1])  # another picture's caption misleads


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
    with pytest.raises(PriorError, match="no such prior"):
        load_prior(str(tmp_path / "nowhere"))


def test_a_folder_cannot_name_a_class_to_run(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "evil")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "SubprocessRunner"))
    with pytest.raises(PriorError, match="SubprocessRunner is not one of"):
        load_prior(str(copy))


def test_in_half_precision_the_autoencoder_stays_single_where_it_would_overflow(small_folder: Path) -> None:
    for dtype, autoencoder in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        prior = load_prior(str(small_folder), dtype=dtype)
        assert (prior.unet.dtype, prior.text_encoder.dtype, prior.vae.dtype) == (dtype, dtype, autoencoder)
    with pytest.raises(ConfigError, match="'foo' is not known"):
        load_prior(str(small_folder), device="foo")


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("in_channels", 5, "takes 5 channels, its autoencoder gives 4; depth"),
        ("cross_attention_dim", 2048, r"takes tokens 2048 wide, its text encoder gives 32; models with several text encoders \(SDXL\)"),
        ("cross_attention_dim", [32, 64], r"takes tokens \[32, 64\] wide"),
    ],
)
def test_models_that_take_more_than_a_latent_and_a_prompt_are_refused(
    small_folder: Path, tmp_path: Path, setting: str, value: object, says: str
) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "other")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), setting: value}))
    with pytest.raises(PriorError, match=f"other: its denoiser {says}"):
        load_prior(str(copy))


def test_pickles_are_not_read(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "pickle")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), copy / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(PriorError, match="unet"):
        load_prior(str(copy))


@pytest.mark.parametrize(
    "index",
    ["[" * 5000, "[]", "5", '{"vae": 5}', '{"vae": ["diffusers"]}', '{"vae": {"a": 1}}', '{"vae": ["diffusers", ["os.system"]]}', "\x00"],
)
def test_a_hostile_index_is_one_line(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(PriorError, match=str(tmp_path)):
        load_prior(str(tmp_path))
