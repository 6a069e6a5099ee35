"""Weights in the layout of the original code (CompVis, Stability) -> diffusers' components, their shapes read off the weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.core.names import shown
from anomalydiffusion.core.plainyaml import read_yaml_text
from anomalydiffusion.priors.fit import MOST, check_fit
from anomalydiffusion.priors.original_text import clip, ldm_bert, open_clip
from anomalydiffusion.priors.weights import Weights, count, filled, part

if TYPE_CHECKING:  # slow to import, and most commands never need them
    import diffusers

__all__ = ["UNET", "components_of"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What a yaml of the original code says, or what is usual where there is none."""

    predicts_v: bool = False
    averaged: bool = False  # take the weights averaged over training, where the file has them too
    image_size: int = 0  # of the latents; 0 = not said
    scale: float = SCALE
    betas: tuple[float, float] = BETAS
    steps: int = 1000
    heads: int = 0  # 0 = not said
    head_width: int = 0
    unet: Yaml = field(default_factory=dict)
    vae: Yaml = field(default_factory=dict)


def _read_yaml(path: Path) -> _Said:
    try:
        params = dict(read_yaml_text(path.read_text(encoding="utf-8"))["model"]["params"])
        unet, vae = (dict((params.get(f"{part}_config") or {}).get("params") or {}) for part in ("unet", "first_stage"))
        return _Said(
            predicts_v=params.get("parameterization", "eps") == "v", averaged=params.get("use_ema") is True,
            image_size=int(params.get("image_size") or 0), scale=float(params.get("scale_factor") or SCALE),
            betas=(float(params.get("linear_start") or BETAS[0]), float(params.get("linear_end") or BETAS[1])),
            steps=int(params.get("timesteps") or 1000), heads=max(0, int(unet.get("num_heads") or 0)),
            head_width=max(0, int(unet.get("num_head_channels") or 0)), unet=unet, vae=dict(vae.get("ddconfig") or {}),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PriorError(
            f"{path}: not a configuration of the original code ({type(error).__name__}: {error}); give the model's own"
        ) from error


def _denoiser_weights(weights: Weights, averaged: bool) -> Weights:
    """The denoiser's own weights; those averaged over training only where the yaml says so.

    Fine-tunes often keep the averages of the model that they began from, so a file that holds both means the plain ones.
    """
    plain = part(weights, UNET)
    found = {name: weights.get(f"{EMA}diffusion_model{name.replace('.', '')}") for name in plain}
    whole = {name: value for name, value in found.items() if value is not None}
    if len(whole) < len(plain):
        return plain
    log.info("the denoiser's %s weights are taken, of both that the file holds", "averaged" if averaged else "plain")
    return whole if averaged else plain


def _unet_config(own: Weights, said: _Said) -> dict[str, Any]:
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
    width = said.head_width or (HEAD if linear and not said.heads else 0)
    heads: Any = [max(1, each // width) for each in widths] if width else said.heads or HEADS
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


def _check_yaml(path: Path, said: _Said, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse a yaml that belongs to other weights, and what no schedule can be."""
    if not 1 <= said.steps <= MOST["timesteps"]:
        raise PriorError(f"{path}: says timesteps = {shown(said.steps)}: expected 1..{MOST['timesteps']:,}; give the model's own")
    if not 0 < said.betas[0] <= said.betas[1] < 1:
        raise PriorError(f"{path}: says linear_start, linear_end = {said.betas}: expected to rise between 0 and 1; give the model's own")
    attending = [width for width, kind in zip(unet["block_out_channels"], unet["down_block_types"], strict=True) if "Attn" in kind]
    for name, share in (("num_heads", 0 if said.head_width else said.heads), ("num_head_channels", said.head_width)):
        if share and any(width % share for width in (*attending, unet["block_out_channels"][-1])):
            raise PriorError(f"{path}: says {name} = {shown(share)}, which does not divide the weights' {attending} channels; give the "
                             "yaml that belongs to them")  # fmt: skip
    widths, inner = unet["block_out_channels"], vae["block_out_channels"]
    told = (
        (said.unet, {
            "in_channels": unet["in_channels"], "out_channels": unet["out_channels"], "model_channels": widths[0],
            "channel_mult": [width // widths[0] for width in widths], "num_res_blocks": unet["layers_per_block"],
            "context_dim": unet["cross_attention_dim"],
        }),
        (said.vae, {
            "ch": inner[0], "ch_mult": [width // inner[0] for width in inner], "num_res_blocks": vae["layers_per_block"],
            "z_channels": vae["latent_channels"],
        }),
    )  # fmt: skip
    for params, figures in told:
        for name, figure in figures.items():
            value = params.get(name, figure)
            if value != figure and not (isinstance(value, list) and value and all(each == figure for each in value)):
                raise PriorError(f"{path}: says {name} = {shown(value)}, the weights have {figure}; give the yaml that belongs to them")


def _scheduler(weights: Weights, said: _Said) -> diffusers.DDIMScheduler:
    """The schedule from the weights' own betas, else the yaml's, else Stable Diffusion's."""
    import diffusers

    (start, end), steps, betas = said.betas, said.steps, weights.get("betas")
    if betas is not None:
        start, end, steps = float(betas[0]), float(betas[-1]), len(betas)
    given = {"num_train_timesteps": steps, "beta_start": start, "beta_end": end, "beta_schedule": "scaled_linear", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction" if said.predicts_v else "epsilon"}  # fmt: skip
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


def _name_what_is_left(weights: Weights, own: Weights, renamed: Weights, text: str, source: Path) -> None:
    """Say in the log which weights went nowhere (the text encoder says its own); renaming keeps the memory they lie in."""
    used = {value.data_ptr() for value in renamed.values()}
    left = [name for name, value in own.items() if value.data_ptr() not in used]
    left += [name for name in weights if not name.startswith((UNET, VAE, text, *PASSED))]
    if left:
        log.warning("%s: %d weights have no place and are left out: %s", source, len(left), ", ".join(sorted(left)[:20]))


def components_of(weights: Weights, source: Path, original: Path | None, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """(family, {vae, unet, text_encoder, scheduler}) from a checkpoint's weights; `original` is its yaml, where there is one.

    Families: "stable-diffusion-1", "stable-diffusion-2", "ldm-text2img", told from the text encoder's names, never from the
    file's. Shapes come from the weights; the yaml says what weights cannot (heads, picture size, v- or noise-prediction, whether
    averaged weights are meant) and is refused where it contradicts them. The second family's v-predicting models are taken to be
    of 768 pixels, whatever their yaml says: the published one says 512. Raises `PriorError` naming what is missing or not
    supported; names in the log what fits nowhere.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    said = _read_yaml(original) if original else _Said()
    family, prefix, text_encoder_of = _family(weights, source)
    if family == "stable-diffusion-2" and original is None:
        raise PriorError(f"{source}: models of this family predict the noise or v, which the weights do not tell; put the model's yaml "
                         f"beside it as {source.with_suffix('.yaml').name}")  # fmt: skip
    usual = {"ldm-text2img": 32, "stable-diffusion-1": 64, "stable-diffusion-2": 64}[family]
    size = 96 if family == "stable-diffusion-2" and said.predicts_v and said.image_size in (0, 64) else said.image_size or usual
    own_unet = _denoiser_weights(weights, said.averaged)
    own_vae = {name: value for name, value in part(weights, VAE).items() if not name.startswith("loss.")}
    try:
        scale = float(weights["scale_factor"]) if "scale_factor" in weights else said.scale
        unet_config, vae_config = _unet_config(own_unet, said), _vae_config(own_vae, scale)
        if original:
            _check_yaml(original, said, unet_config, vae_config)
        unet_config["sample_size"] = size
        vae_config["sample_size"] = size * 2 ** (len(vae_config["block_out_channels"]) - 1)
        text_encoder = text_encoder_of(part(weights, prefix), dtype)
        check_fit(
            "", channels=unet_config["in_channels"], latent=vae_config["latent_channels"],
            tokens=unet_config["cross_attention_dim"], width=int(text_encoder.config.hidden_size),
        )  # fmt: skip
        if any(name.startswith("label_emb.") for name in own_unet):
            raise PriorError("its denoiser wants a picture's embedding or a class besides the words; give a text-to-image model")
        renamed_unet = convert_ldm_unet_checkpoint({UNET + name: value for name, value in own_unet.items()}, unet_config)
        renamed_vae = convert_ldm_vae_checkpoint({VAE + name: value for name, value in own_vae.items()}, vae_config)
        parts: dict[str, Any] = {
            "vae": filled(lambda: diffusers.AutoencoderKL.from_config(vae_config), renamed_vae, dtype, "its autoencoder"),
            "unet": filled(lambda: diffusers.UNet2DConditionModel.from_config(unet_config), renamed_unet, dtype, "its denoiser"),
            "text_encoder": text_encoder,
            "scheduler": _scheduler(weights, said),
        }
    except KeyError as error:
        raise PriorError(f"{source}: lacks the weight {error}; get the whole file") from error
    except (IndexError, ValueError, TypeError, AttributeError, ArithmeticError) as error:  # shapes that no such model has
        raise PriorError(f"{source}: is built like no model of the family {family} ({error}); get the whole file") from error
    except PriorError as error:
        raise PriorError(str(error) if original and str(original) in str(error) else f"{source}: {error}") from error
    _name_what_is_left(weights, own_unet | own_vae, renamed_unet | renamed_vae, prefix, source)
    return family, parts
