"""A diffusers folder -> the parts of a prior; what is missing in it is refused, what is left over is named."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.core.names import shown
from anomalydiffusion.priors.files import PARTS, variant_of, weight_files
from anomalydiffusion.priors.fit import check_counts, check_fit
from anomalydiffusion.priors.weights import PICKLES, converted, filled, read_weights

__all__ = ["parts_in"]

log = logging.getLogger(__name__)

# Only these classes are built from a folder's word: a folder cannot name code to run.
CLASSES = {
    "AutoencoderKL": "diffusers.AutoencoderKL",
    "AutoencoderDC": "diffusers.AutoencoderDC",
    "UNet2DConditionModel": "diffusers.UNet2DConditionModel",
    "CLIPTextModel": "transformers.CLIPTextModel",
    "CLIPTokenizer": "transformers.CLIPTokenizer",
    "CLIPTokenizerFast": "transformers.CLIPTokenizer",
    "BertTokenizer": "transformers.BertTokenizer",
    "BertTokenizerFast": "transformers.BertTokenizer",
    "LDMBertModel": "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertModel",
}
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler",
              "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler")  # fmt: skip


def _named(name: str) -> Any:
    """The class of that name; its library is imported only now, which takes seconds."""
    module, _, found = name.rpartition(".")
    return getattr(importlib.import_module(module), found)


def _component(folder: Path, part: str, class_name: str, dtype: torch.dtype) -> Any:
    where = folder / part
    try:
        if part == "scheduler":
            if class_name not in SCHEDULERS:
                raise PriorError(f"{where}: scheduler {class_name} is not one of {', '.join(SCHEDULERS)}")
            _counted(where / "scheduler_config.json")
            return _named("diffusers.DDIMScheduler").from_pretrained(where, local_files_only=True)
        if class_name not in CLASSES:
            raise PriorError(f"{where}: a {class_name} is not one of {', '.join(CLASSES)}")
        kind = _named(CLASSES[class_name])
        return kind.from_pretrained(where, local_files_only=True) if part == "tokenizer" else _network(where, kind, dtype)
    except PriorError:
        raise
    except Exception as error:
        raise PriorError(f"{where}: cannot be loaded as {class_name} ({error})") from error


def _counted(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):  # of a name alone, the library would ask the hub for that
        raise PriorError(f"{path}: holds no settings; get the folder anew")
    check_counts(f"{path.parent}: ", config)


def _network(where: Path, kind: Any, dtype: torch.dtype) -> Any:
    """A network around the weights in its folder, which stay mapped where they have the wanted number format.

    The libraries would fill what is missing with random numbers, and hold twice what they convert: large safetensors are handed over
    converted, but for an autoencoder, which is small, and in whose old files diffusers knows names that nobody else does.
    """
    _counted(where / "config.json")
    files = weight_files(where)
    pickles = [path for path in files if path.suffix in PICKLES]
    for path in pickles:
        read_weights(path)  # refuses what would build more than tensors; the library maps it again
    given: dict[str, Any] = {"use_safetensors": not pickles, "variant": next(filter(None, map(variant_of, files)), None)}
    source: Path | None = where
    if where.name not in PARTS["vae"] and not pickles and _other(files, dtype):
        weights = {name: value for file in files for name, value in converted(file, dtype).items()}
        if where.name in PARTS["unet"]:
            return filled(lambda: kind.from_config(kind.load_config(where, local_files_only=True)), weights, dtype, str(where))
        source, given = None, {"state_dict": weights, "config": kind.config_class.from_pretrained(where, local_files_only=True)}
    model, found = kind.from_pretrained(source, **given, local_files_only=True, dtype=dtype, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise PriorError(
            f"{where}: lacks {len(missing)} of {len(model.state_dict())} weights ({', '.join(missing[:3])}); get the whole file"
        )
    if beyond := sorted(name for name in found["unexpected_keys"] if not name.endswith("position_ids")):
        log.warning("%s: %d weights have no place and are left out: %s", where, len(beyond), ", ".join(beyond[:20]))
    return model


def _other(files: list[Path], dtype: torch.dtype) -> bool:
    """Whether any of these safetensors hold numbers to be converted."""
    held = (value for file in files for value in read_weights(file).values())
    return any(value.dtype != dtype for value in held)


def _check_configs(folder: Path, vae: Any, text_encoder: Any) -> None:
    """Refuse a denoiser that does not fit the rest, before its weights are read."""
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        channels, widths = unet["in_channels"], unet["cross_attention_dim"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # damaged or incomplete: loading says so, or takes diffusers' defaults
    latent, width = vae.config.latent_channels, text_encoder.config.hidden_size
    check_fit(f"{folder}: ", channels=channels, latent=latent, tokens=widths, width=width)


def parts_in(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """vae, text_encoder, tokenizer, scheduler and unet of a diffusers folder, of the classes that its `model_index.json` names.

    Weights are safetensors, or where there are none pickles of which nothing but tensors is built; the half precision's
    (`NAME.fp16.safetensors`) where no other safetensors are there. An autoencoder overflows in float16 and is read in single precision
    there. Raises `PriorError` naming the part that is missing, not whole or not supported.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PriorError(f"{folder}: model_index.json is missing or damaged; a diffusers folder has one") from error
    if not isinstance(index, dict):
        raise PriorError(f"{folder}: model_index.json names no parts; get the folder anew")
    parts: dict[str, Any] = {}
    for role, names in PARTS.items():
        part = next((name for name in names if index.get(name)), None)
        if part is None:
            raise PriorError(f"{folder}: model_index.json names no {' or '.join(names)}")
        if not isinstance(index[part], list) or len(index[part]) != 2:
            raise PriorError(f"{folder}: model_index.json has {shown(index[part])} for the {part}, not a library and a class; get it anew")
        if role == "unet":
            _check_configs(folder, parts["vae"], parts["text_encoder"])
        single = role == "vae" and dtype == torch.float16
        parts[role] = _component(folder, part, str(index[part][1]), torch.float32 if single else dtype)
    return parts
