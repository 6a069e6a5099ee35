"""Text encoders in the layout of the original code: CLIP, OpenCLIP, and the transformer of LDM text2img."""

from __future__ import annotations

import logging

import torch
from torch import nn

from anomalydiffusion.priors.weights import Weights, count, filled

__all__ = ["clip", "ldm_bert", "open_clip"]

HEAD = 64  # width of an attention head
BEHIND = ("text_projection", "logit_scale")  # of OpenCLIP, behind the last block

log = logging.getLogger(__name__)


def _clip(own: Weights, layers: int, act: str, dtype: torch.dtype) -> nn.Module:
    """CLIP's text model from weights under its Hugging Face names, below "text_model." or not, as this transformers has them."""
    import transformers

    (vocabulary, width), positions = own["embeddings.token_embedding.weight"].shape, own["embeddings.position_embedding.weight"].shape[0]
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=own["encoder.layers.0.mlp.fc1.weight"].shape[0], hidden_act=act,
        num_hidden_layers=layers, num_attention_heads=max(1, width // HEAD), max_position_embeddings=positions, projection_dim=width,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    with torch.device("meta"):
        names = [name for name, _ in transformers.CLIPTextModel(config).named_parameters()]
    above = "text_model." if names[0].startswith("text_model.") else ""
    return filled(
        lambda: transformers.CLIPTextModel(config), {above + name: value for name, value in own.items()}, dtype, "its text encoder"
    )


def clip(own: Weights, dtype: torch.dtype) -> nn.Module:
    """CLIP's text model (Stable Diffusion 1)."""
    own = {name.removeprefix("text_model."): value for name, value in own.items() if not name.endswith("position_ids")}
    return _clip(own, count(own, "encoder.layers."), "quick_gelu", dtype)


def open_clip(own: Weights, dtype: torch.dtype) -> nn.Module:
    """OpenCLIP's text transformer (Stable Diffusion 2), as far as its last block but one: the denoiser was trained on that.

    Files that other tools write hold no last block to be left out, and then none of what follows it.
    """
    own = dict(own)
    out = {"embeddings.token_embedding.weight": own.pop("token_embedding.weight"),
           "embeddings.position_embedding.weight": own.pop("positional_embedding"),
           "final_layer_norm.weight": own.pop("ln_final.weight"), "final_layer_norm.bias": own.pop("ln_final.bias")}  # fmt: skip
    blocks, whole = count(own, "transformer.resblocks."), any(name in own for name in BEHIND)
    layers = blocks - 1 if whole else blocks
    names = {  # ours: theirs
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(layers):
        new, old = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            out |= {f"{new}{ours}.{kind}": own.pop(f"{old}{theirs}.{kind}") for ours, theirs in names.items()}
            thirds = own.pop(f"{old}attn.in_proj_{kind}").chunk(3)
            out |= {f"{new}self_attn.{name}_proj.{kind}": third for name, third in zip("qkv", thirds, strict=True)}
    _name([name for name in own if not name.startswith((f"transformer.resblocks.{layers}.", *BEHIND, "attn_mask"))])
    return _clip(out, layers, "gelu", dtype)


def _name(left: list[str]) -> None:
    if left:
        log.warning("text encoder: %d weights have no place and are left out: %s", len(left), ", ".join(sorted(left)[:20]))


def ldm_bert(own: Weights, dtype: torch.dtype) -> nn.Module:
    """The transformer of LDM text2img: attention and feed-forward blocks take turns in one list, each behind its norm."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    own = dict(own)
    layers = count(own, "attn_layers.layers.") // 2
    out = {"model.embed_tokens.weight": own.pop("token_emb.weight"), "model.embed_positions.weight": own.pop("pos_emb.emb.weight"),
           **{f"model.layer_norm.{kind}": own.pop(f"norm.{kind}") for kind in ("weight", "bias")},
           **{f"to_logits.{kind}": own.pop(f"to_logits.{kind}") for kind in ("weight", "bias")}}  # fmt: skip
    for layer in range(layers):
        new, attend, forward = (f"model.layers.{layer}.", *(f"attn_layers.layers.{2 * layer + step}." for step in (0, 1)))
        out |= {f"{new}self_attn.{name}_proj.weight": own.pop(f"{attend}1.to_{name}.weight") for name in "qkv"}
        for kind in ("weight", "bias"):
            out |= {f"{new}self_attn.out_proj.{kind}": own.pop(f"{attend}1.to_out.{kind}"),
                    f"{new}self_attn_layer_norm.{kind}": own.pop(f"{attend}0.{kind}"),
                    f"{new}final_layer_norm.{kind}": own.pop(f"{forward}0.{kind}"),
                    f"{new}fc1.{kind}": own.pop(f"{forward}1.net.0.0.{kind}"),
                    f"{new}fc2.{kind}": own.pop(f"{forward}1.net.2.{kind}")}  # fmt: skip
    _name(list(own))
    config = LDMBertConfig(
        vocab_size=out["model.embed_tokens.weight"].shape[0], d_model=out["model.embed_tokens.weight"].shape[1], encoder_layers=layers,
        encoder_ffn_dim=out["model.layers.0.fc1.weight"].shape[0], head_dim=HEAD,
        encoder_attention_heads=out["model.layers.0.self_attn.q_proj.weight"].shape[0] // HEAD,
        max_position_embeddings=out["model.embed_positions.weight"].shape[0],
    )  # fmt: skip
    return filled(lambda: LDMBertModel(config), out, dtype, "its text encoder")
