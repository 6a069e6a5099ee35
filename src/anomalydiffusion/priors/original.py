"""Weights in the layout of the original code (CompVis, Stability) -> diffusers' components, their shapes read off the weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.priors.original_text import clip, ldm_bert, open_clip
from anomalydiffusion.priors.weights import Weights, count, filled, part

__all__ = ["components_of"]

log = logging.getLogger(__name__)

UNET, EMA, VAE, TEXT = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
HEAD = 64  # width of the denoiser's attention heads where its projections are linear
HEADS = 8  # of the denoiser's attention elsewhere
SCALE = 0.18215  # of the latents, where neither weights nor yaml say it
BETAS = (0.00085, 0.012)  # the same
# Kept with the weights but no part of them: averages, the schedule, counters.
PASSED = ("model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "lvlb_weights",
          "logvar", "scale_factor", "scale_shift", "global_step")  # fmt: skip
Yaml = dict[str, Any]


def _denoiser_weights(weights: Weights) -> Weights:
    """The denoiser's own weights, averaged over training where the file has them: the original sampling scripts take those."""
    plain = part(weights, UNET)
    averaged = {name: weights.get(f"{EMA}diffusion_model{name.replace('.', '')}") for name in plain}
    if all(value is not None for value in averaged.values()):
        return {name: value for name, value in averaged.items() if value is not None}
    return plain


def _unet_config(own: Weights, said: Yaml) -> dict[str, Any]:
    """What the denoiser's weights say about its shape: levels end with a strided convolution ("op")."""
    levels: list[list[int]] = [[]]
    for index in range(1, count(own, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in own:
            levels.append([])
        else:
            levels[-1].append(index)
    widths = [own[f"input_blocks.{level[0]}.0.out_layers.3.weight"].shape[0] for level in levels]
    attends = [f"input_blocks.{level[0]}.1.proj_in.weight" in own for level in levels]
    if not any(attends):
        raise PriorError("its denoiser has no cross-attention, so no words can reach it; give a text-to-image model")
    first = f"input_blocks.{levels[attends.index(True)][0]}.1."
    linear = own[first + "proj_in.weight"].ndim == 2
    if "num_head_channels" in said and int(said["num_head_channels"]) > 0:
        heads: Any = [width // int(said["num_head_channels"]) for width in widths]
    else:
        heads = int(said.get("num_heads", HEADS)) if not linear else [max(1, width // HEAD) for width in widths]
    return {
        "in_channels": own["input_blocks.0.0.weight"].shape[1], "out_channels": own["out.2.weight"].shape[0],
        "block_out_channels": widths, "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": own[first + "transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "transformer_layers_per_block": count(own, first + "transformer_blocks."),
        "use_linear_projection": linear, "attention_head_dim": heads,
    }  # fmt: skip


def _vae_config(own: Weights, scale: float) -> dict[str, Any]:
    levels = count(own, "encoder.down.")
    return {
        "in_channels": own["encoder.conv_in.weight"].shape[1], "out_channels": own["decoder.conv_out.weight"].shape[0],
        "block_out_channels": [own[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(own, "encoder.down.0.block."), "latent_channels": own["post_quant_conv.weight"].shape[1],
        "scaling_factor": scale,
    }  # fmt: skip


FAMILIES = {  # what the text encoder's names begin with -> (family, what stands before them, how it is built)
    f"{TEXT}transformer.attn_layers.": ("ldm-text2img", f"{TEXT}transformer.", ldm_bert),
    f"{TEXT}model.transformer.": ("stable-diffusion-2", f"{TEXT}model.", open_clip),
    f"{TEXT}transformer.": ("stable-diffusion-1", f"{TEXT}transformer.", clip),
}


def _read_yaml(path: Path) -> Yaml:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return dict(found["model"]["params"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise PriorError(f"{path}: not a configuration of the original code (model.params is not there); give the model's own") from error


def _nested(said: Yaml, *names: str) -> Yaml:
    for name in names:
        inner = said.get(name)
        said = inner if isinstance(inner, dict) else {}
    return said


def _check_yaml(path: Path, said: Yaml, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse a yaml that belongs to other weights."""
    widths, inner = unet["block_out_channels"], vae["block_out_channels"]
    told = {
        "unet_config": {
            "in_channels": unet["in_channels"], "out_channels": unet["out_channels"], "model_channels": widths[0],
            "channel_mult": [width // widths[0] for width in widths], "num_res_blocks": unet["layers_per_block"],
            "context_dim": unet["cross_attention_dim"],
        },
        "first_stage_config": {
            "ch": inner[0], "ch_mult": [width // inner[0] for width in inner], "num_res_blocks": vae["layers_per_block"],
            "z_channels": vae["latent_channels"],
        },
    }  # fmt: skip
    for block, figures in told.items():
        params = _nested(said, block, "params")
        params = {**params, **_nested(params, "ddconfig")}
        for name, figure in figures.items():
            if name in params and params[name] not in (figure, [figure]):
                raise PriorError(f"{path}: says {name} = {params[name]}, the weights have {figure}; give the yaml that belongs to them")


def _scheduler(weights: Weights, said: Yaml, prediction: str) -> diffusers.DDIMScheduler:
    """The schedule from the weights' own betas, else the yaml's, else Stable Diffusion's."""
    start, end = float(said.get("linear_start", BETAS[0])), float(said.get("linear_end", BETAS[1]))
    steps = int(said.get("timesteps", 1000))
    betas = weights.get("betas")
    if betas is not None:
        start, end, steps = float(betas[0]), float(betas[-1]), len(betas)
    given = {"num_train_timesteps": steps, "beta_start": start, "beta_end": end, "beta_schedule": "scaled_linear", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction}  # fmt: skip
    out = diffusers.DDIMScheduler(**given)
    if betas is not None and not torch.allclose(out.betas, betas.float(), rtol=1e-3):
        out = diffusers.DDIMScheduler(**given, trained_betas=betas.float().numpy())
    return out


def _family(weights: Weights, source: Path) -> tuple[str, str, Any]:
    """The family by its text encoder's names; refuse what is no whole text-to-image model of one."""
    if any(name.startswith("conditioner.") for name in weights):
        raise PriorError(
            f"{source}: a model with several text encoders (SDXL), not supported yet; give one of Stable Diffusion 1 or 2's family, "
            "or LDM text2img"
        )
    for prefix, what in ((UNET, "denoiser"), (VAE, "autoencoder"), (TEXT, "text encoder")):
        if not any(name.startswith(prefix) for name in weights):
            seen = ", ".join(sorted({name.split(".")[0] for name in weights})[:5])
            raise PriorError(f"{source}: holds no {what} ({prefix}...), only {seen}; give a whole checkpoint, no adapter and no part")
    for prefix, found in FAMILIES.items():
        if any(name.startswith(prefix) for name in weights):
            return found
    raise PriorError(f"{source}: its text encoder is not one of {', '.join(found[0] for found in FAMILIES.values())}")


def _name_what_is_left(weights: Weights, own: Weights, renamed: Weights, source: Path) -> None:
    """Say in the log which weights went nowhere, so that nobody wonders; renaming keeps the memory they lie in."""
    used = {value.data_ptr() for value in renamed.values()}
    left = [name for name, value in own.items() if value.data_ptr() not in used]
    left += [name for name in weights if not name.startswith((UNET, VAE, TEXT, *PASSED))]
    if left:
        log.warning("%s: %d weights have no place and are left out: %s", source, len(left), ", ".join(sorted(left)[:20]))


def components_of(weights: Weights, source: Path, original: Path | None, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """(family, {vae, unet, text_encoder, scheduler}) from a checkpoint's weights; `original` is its yaml, where there is one.

    Families: "stable-diffusion-1", "stable-diffusion-2", "ldm-text2img", told from the text encoder's names, never from the
    file's. Shapes come from the weights; the yaml says what weights cannot (heads, picture size, v- or noise-prediction) and is
    refused where it contradicts them. Denoiser weights averaged over training are taken where the file holds them. Raises
    `PriorError` naming what is missing or not supported; names in the log what fits nowhere.
    """
    said = _read_yaml(original) if original else {}
    family, prefix, text_encoder_of = _family(weights, source)
    if family == "stable-diffusion-2" and "parameterization" not in said:
        raise PriorError(f"{source}: models of this family predict the noise or v, which the weights do not tell; put the model's yaml "
                         f"beside it as {source.with_suffix('.yaml').name}")  # fmt: skip
    predicts_v = said.get("parameterization", "eps") == "v"
    own_unet = _denoiser_weights(weights)
    own_vae = {name: value for name, value in part(weights, VAE).items() if not name.startswith("loss.")}
    scale = float(weights["scale_factor"]) if "scale_factor" in weights else float(said.get("scale_factor", SCALE))
    try:
        unet_config, vae_config = _unet_config(own_unet, _nested(said, "unet_config", "params")), _vae_config(own_vae, scale)
        if original:
            _check_yaml(original, said, unet_config, vae_config)
        unet_config["sample_size"] = int(said.get("image_size", 32 if family == "ldm-text2img" else 96 if predicts_v else 64))
        vae_config["sample_size"] = unet_config["sample_size"] * 2 ** (len(vae_config["block_out_channels"]) - 1)
        renamed_unet = convert_ldm_unet_checkpoint({UNET + name: value for name, value in own_unet.items()}, unet_config)
        renamed_vae = convert_ldm_vae_checkpoint({VAE + name: value for name, value in own_vae.items()}, vae_config)
        parts: dict[str, Any] = {
            "vae": filled(lambda: diffusers.AutoencoderKL.from_config(vae_config), renamed_vae, dtype, "autoencoder"),
            "unet": filled(lambda: diffusers.UNet2DConditionModel.from_config(unet_config), renamed_unet, dtype, "denoiser"),
            "text_encoder": text_encoder_of(part(weights, prefix), dtype),
        }
    except (KeyError, IndexError) as error:
        raise PriorError(f"{source}: lacks the weight {error}; get the whole file") from error
    except PriorError as error:
        raise PriorError(str(error) if original and str(original) in str(error) else f"{source}: {error}") from error
    _name_what_is_left(weights, own_unet | own_vae, renamed_unet | renamed_vae, source)
    return family, {**parts, "scheduler": _scheduler(weights, said, "v_prediction" if predicts_v else "epsilon")}
