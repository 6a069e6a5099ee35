"""Published architectures by name, built with random weights: for benchmarks, counting and tests, never for pictures."""

from __future__ import annotations

from typing import Any

import torch

from anomalydiffusion.core.errors import PriorError

__all__ = ["ARCHITECTURES", "build"]

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
            "steps_offset": 1}  # fmt: skip
UNET = {
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
HUGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # name -> what it has besides the above; `clip` None = LDM-BERT
    "ldm-text2im-large-256": {"unet": {"sample_size": 32, "cross_attention_dim": 1280, "attention_head_dim": 8}, "clip": None},
    "stable-diffusion-v1-5": {"unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, "clip": LARGE},
    "stable-diffusion-2-1-base": {
        "unet": {"sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "clip": HUGE,
    },
    "stable-diffusion-inpainting": {
        "unet": {"in_channels": 9, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, "clip": LARGE,
    },
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """vae, unet, text_encoder and scheduler of a published architecture, with random weights (the same at every call).

    Built on the device that `torch.device` stands for: below `with torch.device("meta")` nothing is filled and nothing is
    needed. Raises `PriorError` on an unknown name.
    """
    if name not in ARCHITECTURES:
        raise PriorError(f"random:{name}: no such architecture; known are {', '.join(ARCHITECTURES)}")
    import diffusers
    import transformers

    known, before = ARCHITECTURES[name], torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if known["clip"] is None:
                from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

                text_encoder: Any = LDMBertModel(LDMBertConfig())
            else:
                text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP, **known["clip"]))
            unet = diffusers.UNet2DConditionModel(**UNET, **known["unet"])
            vae = diffusers.AutoencoderKL(**VAE, sample_size=8 * known["unet"]["sample_size"])
    finally:
        torch.set_default_dtype(before)
    return {"vae": vae, "unet": unet, "text_encoder": text_encoder, "scheduler": diffusers.DDIMScheduler(**SCHEDULE)}
