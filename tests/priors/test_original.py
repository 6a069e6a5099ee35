"""One file of original weights answers as the modules that it was written from; nothing in it is run; what does not fit is named."""

import hashlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from anomalydiffusion.app.cli import app
from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.training.denoiser import build_tokenizer
from tests.priors import original_layout as layout

FAMILIES = ("stable-diffusion-1", "stable-diffusion-2", "ldm-text2img")
V_YAML = {"model": {"params": {"parameterization": "v", "image_size": 16, "unet_config": {"params": {
    "model_channels": 64, "channel_mult": [1, 2], "num_head_channels": 64, "context_dim": 64}}}}}  # fmt: skip


class Models:
    """Small models of one family, and its tokenizer's files; `told`: channels besides the latent's that the denoiser takes."""

    def __init__(self, family: str, folder: Path, told: int = 0) -> None:
        torch.manual_seed(0)
        self.family, second = family, family == "stable-diffusion-2"
        self.vae = AutoencoderKL(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        self.unet = UNet2DConditionModel(
            in_channels=4 + told, out_channels=4, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 2) if second else 8, use_linear_projection=second,
        )  # fmt: skip
        words, beside = 700, folder / "tokenizer"
        beside.mkdir(parents=True)
        if family == "ldm-text2img":
            (beside / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "crack", "on", "metal"]))
            self.text: nn.Module = LDMBertModel(
                LDMBertConfig(vocab_size=words, d_model=64, encoder_layers=2, encoder_ffn_dim=96, encoder_attention_heads=2, head_dim=64,
                              max_position_embeddings=24)
            )  # fmt: skip
        else:
            build_tokenizer(["a crack on metal !"], 600, 24).backend_tokenizer.model.save(str(beside))
            self.text = CLIPTextModel(
                CLIPTextConfig(vocab_size=words, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
                               max_position_embeddings=24, hidden_act="gelu" if second else "quick_gelu")
            )  # fmt: skip
        for part in (self.vae, self.unet, self.text):
            part.requires_grad_(False).eval()

    def weights(self) -> layout.Weights:
        write = {"ldm-text2img": layout.original_ldm_bert, "stable-diffusion-2": layout.original_open_clip}
        text = write.get(self.family, layout.original_clip)(self.text)
        betas = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").betas
        found = {**layout.original_unet(self.unet), **layout.original_vae(self.vae), **text, "betas": betas}
        return {name: value.clone().contiguous() for name, value in found.items()}


def write(models: Models, path: Path, weights: layout.Weights | None = None, **more: Any) -> Path:
    weights = models.weights() if weights is None else weights
    if models.family == "stable-diffusion-2":
        path.with_suffix(".yaml").write_text(yaml.safe_dump(V_YAML))
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, **more}, path)
    return path


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    return Models(request.param, tmp_path)


@pytest.fixture
def first(tmp_path: Path) -> Models:
    return Models("stable-diffusion-1", tmp_path)


def lightning_state() -> dict[str, Any]:
    """What Lightning 1 leaves in a checkpoint: a class as a key, numbers of numpy's."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    sys.modules.update({"pytorch_lightning": types.ModuleType("pytorch_lightning"), name: module})
    return {"callbacks": {kind: {"best_model_score": np.float64(0.5)}}, "global_step": 3}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_answers_as_the_modules_it_was_written_from(models: Models, tmp_path: Path, suffix: str) -> None:
    path = write(models, tmp_path / f"model{suffix}", **lightning_state())
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    prior = load_prior(str(path))
    second = models.family == "stable-diffusion-2"
    assert (prior.family, prior.prediction_type) == (models.family, "v_prediction" if second else "epsilon")
    assert prior.working_size == 2 * {"stable-diffusion-1": 64, "stable-diffusion-2": 16, "ldm-text2img": 32}[models.family]
    assert (prior.factor, prior.latent_channels, prior.max_tokens) == (2, 4, 24)
    z, t, ids = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randint(0, 700, (2, 24))
    tokens, image = models.text(ids)[0], torch.randn(1, 3, 16, 16)
    for ours, theirs in (
        (prior.text_encoder(ids)[0], tokens),
        (prior.unet(z, t, encoder_hidden_states=tokens).sample, models.unet(z, t, encoder_hidden_states=tokens).sample),
        (prior.vae.encode(image).latent_dist.mode(), models.vae.encode(image).latent_dist.mode()),
        (prior.vae.decode(z).sample, models.vae.decode(z).sample),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    context = prior.embed((prior.tokenize("a crack on"), []), torch.randn(1, 3, prior.token_width))
    assert context.tokens_BND.shape == (1, 24, 64)


def test_a_converted_file_is_the_same_prior_with_sums_that_fit(models: Models, tmp_path: Path) -> None:
    path = write(models, tmp_path / "model.ckpt")
    output = tmp_path / "converted"
    made = CliRunner().invoke(app, ["prior", "convert", str(path), "--output", str(output), "--json"])
    assert made.exit_code == 0, made.output
    sums = json.loads(made.stdout)["sha256"]
    assert len(sums) >= 8 and sums.keys() >= {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert all(hashlib.sha256((output / name).read_bytes()).hexdigest() == value for name, value in sums.items())
    one, two = load_prior(str(path)), load_prior(str(output))
    assert (one.family, one.working_size, one.prediction_type) == (two.family, two.working_size, two.prediction_type)
    assert torch.equal(one.alphas, two.alphas)
    for part in ("vae", "unet", "text_encoder"):
        ours, theirs = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    words = "a crack on metal"
    assert one.tokenizer(words, padding="max_length").input_ids == two.tokenizer(words, padding="max_length").input_ids
    if models.family == "ldm-text2img":
        from diffusers import LDMTextToImagePipeline

        assert isinstance(LDMTextToImagePipeline.from_pretrained(output).bert, LDMBertModel)
    again = CliRunner().invoke(app, ["prior", "convert", str(path), "--output", str(output)])
    assert again.exit_code != 0


@pytest.mark.parametrize("said", [None, False, True])
def test_weights_averaged_over_training_are_taken_where_the_yaml_says_so(first: Models, tmp_path: Path, said: bool | None) -> None:
    weights = first.weights()
    averaged = {name: value for name, value in weights.items() if name.startswith("model.diffusion_model.")}
    weights |= {f"model_ema.{name.removeprefix('model.').replace('.', '')}": value + 1 for name, value in averaged.items()}
    path = write(first, tmp_path / "model.safetensors", weights)
    if said is not None:
        path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"params": {"use_ema": said}}}))
    torch.testing.assert_close(load_prior(str(path)).unet.conv_in.weight, first.unet.conv_in.weight + bool(said))


def test_the_second_family_with_and_without_a_last_block_and_a_word_on_what_it_predicts(tmp_path: Path) -> None:
    models = Models("stable-diffusion-2", tmp_path)
    weights = models.weights()
    last = (f"{layout.OPEN_CLIP}transformer.resblocks.2.", f"{layout.OPEN_CLIP}text_projection", f"{layout.OPEN_CLIP}logit_scale")
    path = write(models, tmp_path / "model.safetensors", {name: value for name, value in weights.items() if not name.startswith(last)})
    path.with_suffix(".yaml").write_text(  # as published for 512 pixels: no parameterization, a list where all are equal
        "model: {params: {image_size: 64, use_ema: False, unet_config: {params: {num_head_channels: 64, num_res_blocks: [2, 2]}}}}"
    )
    prior = load_prior(str(path))
    assert (prior.prediction_type, prior.working_size) == ("epsilon", 128)
    ids = torch.randint(0, 700, (2, 24))
    torch.testing.assert_close(prior.text_encoder(ids)[0], models.text(ids)[0], atol=1e-5, rtol=1e-5)
    path.with_suffix(".yaml").write_text("model: {params: {parameterization: v, image_size: 64}}")  # as published for 768 pixels
    prior = load_prior(str(path))
    assert (prior.prediction_type, prior.working_size) == ("v_prediction", 192)


def test_models_of_more_than_words_are_refused(first: Models, tmp_path: Path) -> None:
    weights, name = first.weights(), "model.diffusion_model.input_blocks.0.0.weight"
    for more, said in (
        ({name: torch.cat([weights[name], weights[name]], 1)}, "takes 8 channels, its autoencoder gives 4; depth"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, "wants a picture's embedding or a class"),
    ):
        with pytest.raises(PriorError, match=said):
            load_prior(str(write(first, tmp_path / "model.safetensors", {**weights, **more})))


def test_an_inpainting_file_answers_as_the_modules_it_was_written_from(tmp_path: Path) -> None:
    models = Models("stable-diffusion-1", tmp_path, told=5)
    prior = load_prior(str(write(models, tmp_path / "model.ckpt")))
    assert prior.inpaints and prior.family == "stable-diffusion-1"
    z, told, t, ids = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.tensor([10, 900]), torch.randint(0, 700, (2, 24))
    tokens = models.text(ids)[0]
    expected = models.unet(torch.cat([z, told], 1), t, encoder_hidden_states=tokens).sample
    torch.testing.assert_close(prior.predict(z, t, Context(tokens_BND=tokens, surroundings=told)), expected, atol=1e-5, rtol=1e-5)


def test_another_schedule_in_the_weights_is_kept(first: Models, tmp_path: Path) -> None:
    betas = torch.linspace(1e-4, 0.02, 1000)
    prior = load_prior(str(write(first, tmp_path / "model.safetensors", {**first.weights(), "betas": betas})))
    torch.testing.assert_close(prior.alphas, torch.cumprod(1 - betas.double(), 0), atol=1e-6, rtol=1e-4)


def test_the_yaml_beside_it_must_belong_to_it(first: Models, tmp_path: Path) -> None:
    path = write(first, tmp_path / "model.safetensors")
    other = {"model": {"params": {"unet_config": {"params": {"model_channels": 320}}}}}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(PriorError, match=r"model.yaml: says model_channels = 320, the weights have 64"):
        load_prior(str(path))
    deep, large = "[" * 900, "model: {params: {image_size: .inf}}"
    for broken in ("model: [", "model: 3", "model: {params: {image_size: [64, 64]}}", "", deep, large, "<<: {a: b}", "a: !!bool x"):
        path.with_suffix(".yaml").write_text(broken)
        with pytest.raises(PriorError, match=r"model.yaml: not a configuration"):
            load_prior(str(path))


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"unet_config": {"params": {"num_heads": 10**40}}}, "says num_heads = 1000.*, which does not divide the weights"),
     ({"unet_config": {"params": {"num_head_channels": 10**40}}}, "says num_head_channels = 1000.*, which does not divide"),
     ({"timesteps": 10**9}, "says timesteps = 1000000000: expected 1..100,000"), ({"timesteps": -5}, "says timesteps = -5: expected"),
     ({"linear_start": -1.0}, "says linear_start, linear_end = .* expected to rise")],
)  # fmt: skip
def test_a_yaml_that_asks_for_what_no_model_has_is_refused(first: Models, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    weights = {name: value for name, value in first.weights().items() if name != "betas"}
    path = write(first, tmp_path / "model.safetensors", weights)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"params": asked}}))
    with pytest.raises(PriorError, match=rf"model\.yaml: {says}"):
        load_prior(str(path))


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_wants_something_run_is_refused(first: Models, tmp_path: Path) -> None:
    trace = tmp_path / "run"
    path = write(first, tmp_path / "model.ckpt", callbacks=Evil(trace))
    with pytest.raises(PriorError, match=r"model.ckpt: refused, it wants .*mkdir"):
        load_prior(str(path))
    assert not trace.exists()


def test_what_is_missing_or_does_not_belong_is_named(first: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = first.weights()
    path = tmp_path / "model.safetensors"
    load_prior(str(write(first, path, {**weights, "odd.weight": torch.zeros(1), "model.diffusion_model.odd": torch.ones(1)})))
    assert "2 weights have no place and are left out: odd, odd.weight" in caplog.text
    (tmp_path / "two").mkdir()
    second = Models("stable-diffusion-2", tmp_path / "two")
    load_prior(str(write(second, tmp_path / "two" / "model.ckpt", {**second.weights(), f"{layout.OPEN_CLIP}odd": torch.zeros(1)})))
    assert "text encoder: 1 weights have no place and are left out: odd" in caplog.text
    lost = [name for name in weights if name.endswith("input_blocks.1.1.norm.bias")]
    for without, said in (
        (lost, r"its denoiser: lacks 1 of \d+ weights \(down_blocks.0.attentions.0.norm.bias\)"),
        ([name for name in weights if name.startswith("first_stage_model.")], "holds no autoencoder"),
        ([name for name in weights if not name.startswith("cond_stage")], r"holds no denoiser .*only cond_stage_model"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "lacks the weight"),
    ):
        with pytest.raises(PriorError, match=said):
            load_prior(str(write(first, path, {name: value for name, value in weights.items() if name not in without})))
    with pytest.raises(PriorError, match="several text encoders"):
        load_prior(str(write(first, path, {**weights, "conditioner.embedders.0.weight": torch.zeros(1)})))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(PriorError, match="damaged, cut short"):
        load_prior(str(path))
    with pytest.raises(PriorError, match="no such prior"):
        load_prior(str(tmp_path / "other.ckpt"))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(PriorError, match="not a file of weights"):
        load_prior(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("kept", [0, 1, 5000])
def test_a_cut_pickle_is_named(first: Models, tmp_path: Path, kept: int) -> None:
    path = write(first, tmp_path / "model.ckpt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PriorError, match=r"model.ckpt: damaged, cut short, or no file of weights"):
        load_prior(str(path))


def test_a_page_saved_as_weights_and_damaged_words_are_named(first: Models, tmp_path: Path) -> None:
    path = write(first, tmp_path / "model.ckpt")
    (tmp_path / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(PriorError, match="tokenizer: the tokenizer's files are damaged"):
        load_prior(str(path))
    path.write_text("<html>not found</html>")
    with pytest.raises(PriorError, match=r"model.ckpt: damaged, cut short, or no file of weights") as caught:
        load_prior(str(path))
    assert "weights_only" not in str(caught.value)


def test_the_second_family_needs_its_yaml(tmp_path: Path) -> None:
    path = write(Models("stable-diffusion-2", tmp_path), tmp_path / "model.safetensors")
    path.with_suffix(".yaml").unlink()
    with pytest.raises(PriorError, match=r"put the model's yaml beside it as model.yaml"):
        load_prior(str(path))


def test_offline_the_tokenizer_s_files_are_named(first: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = write(first, tmp_path / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).unlink()
    with pytest.raises(PriorError, match=r"fetch vocab.json and merges.txt of openai/clip-vit-large-patch14 .* put them into .*tokenizer"):
        load_prior(str(path))
