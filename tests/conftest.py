"""Small real things that tests share."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# the same examples each time: benchmarks/fuzz.py is what looks for new ones
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def build_prior_folder(folder: Path, family: str = "sd", seed: int = 0) -> Path:
    """Write a diffusers folder of the real classes with few random weights.

    `family`: `sd` (CLIP, AutoencoderKL), `inpainting` (the same, told of the surroundings) or `ldm` (LDM-BERT).
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel

    from anomalydiffusion.training.denoiser import build_tokenizer

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=9 if family == "inpainting" else 4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    if family != "ldm":
        tokenizer = build_tokenizer(["a photo of an anomaly", "a crack on metal"], 600, 32)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        names = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler}
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "an", "anomaly", "crack"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("\n".join(words))
        tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=32)
        text = LDMBertModel(
            LDMBertConfig(
                vocab_size=len(words), d_model=32, encoder_layers=2, encoder_ffn_dim=64, encoder_attention_heads=4, head_dim=8,
                max_position_embeddings=32,
            )
        )  # fmt: skip
        names = {"vqvae": vae, "unet": unet, "bert": text, "tokenizer": tokenizer, "scheduler": scheduler}
    index: dict[str, object] = {"_class_name": "LDMTextToImagePipeline" if family == "ldm" else "StableDiffusionPipeline"}
    for name, part in names.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_prior_folder(tmp_path_factory.mktemp("prior") / "sd")


@pytest.fixture
def small_prior(small_folder: Path):
    from anomalydiffusion.priors.load import load_prior

    return load_prior(str(small_folder))


def build_released_folder(
    folder: Path, width: int, tokens: int = 2, keys: tuple[str, ...] = ("bottle+broken_large", "metal_nut+scratch")
) -> dict[str, torch.Tensor]:
    """What the authors' training leaves, with random numbers in it; statistics of the batch norms as after a training."""
    from anomalydiffusion.conditioning.released import ReleasedEncoder

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = torch.nn.ParameterDict({key: torch.nn.Parameter(torch.randn(3, width)) for key in keys})
    torch.save({"string_to_token": {"*": torch.tensor(1008)}, "string_to_param": vectors}, folder / "embeddings.pt")
    encoder = ReleasedEncoder(tokens, width)
    for name, value in encoder.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    torch.save(encoder.state_dict(), folder / "spatial_encoder.pt")
    return {key: value.detach() for key, value in vectors.items()}
