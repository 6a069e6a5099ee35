"""Write a prior as a diffusers folder with safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.runs import replace_folder
from anomalydiffusion.priors.files import SUMS

__all__ = ["SUMS", "save_prior"]


def save_prior(parts: dict[str, Any], output: Path, dtype: torch.dtype) -> None:
    """Write `parts` (vae, unet, text_encoder, tokenizer, scheduler) so that diffusers and `load_prior` read them.

    The folder appears whole or not at all and replaces what was there. Beside the parts it holds their SHA-256 sums.
    """
    ldm = type(parts["text_encoder"]).__name__ == "LDMBertModel"
    names = {"vae": "vqvae", "text_encoder": "bert"} if ldm else {}
    index: dict[str, Any] = {"_class_name": "LDMTextToImagePipeline" if ldm else "StableDiffusionPipeline"}
    with replace_folder(output) as target:
        for role, part in parts.items():
            name = names.get(role, role)
            whole: Any = part.to(dtype) if isinstance(part, nn.Module) else part
            whole.save_pretrained(target / name)
            library = "transformers" if role in ("text_encoder", "tokenizer") else "diffusers"
            index[name] = ["latent_diffusion" if name == "bert" else library, type(part).__name__]
        (target / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
        files = sorted(path for path in target.rglob("*") if path.is_file())
        (target / SUMS).write_text("".join(f"{digest_file(path)}  {path.relative_to(target).as_posix()}\n" for path in files))
