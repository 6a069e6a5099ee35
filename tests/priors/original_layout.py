"""The layout of the original code, written from diffusers' modules: the way back of what `priors.original` reads."""

import torch
from torch import nn

Weights = dict[str, torch.Tensor]
OPEN_CLIP = "cond_stage_model.model."
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def _put(out: Weights, state: Weights, new: str, old: str, names: dict[str, str] | None = None) -> None:
    """Copy all below `new` to below `old`; with `names` the part behind `new` changes its name too."""
    for name, value in state.items():
        if not name.startswith(new):
            continue
        rest = name.removeprefix(new)
        if names is not None:
            first, _, kind = rest.rpartition(".")
            rest = f"{names[first]}.{kind}"
        out[old + rest] = value


def original_unet(unet: nn.Module) -> Weights:
    state, out, layers = unet.state_dict(), {}, unet.config.layers_per_block
    for new, old in (("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
                     ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
                     ("mid_block.attentions.0.", "middle_block.1.")):  # fmt: skip
        _put(out, state, new, old)
    for which in (0, 1):
        _put(out, state, f"mid_block.resnets.{which}.", f"middle_block.{2 * which}.", RESNET)
    for block in range(len(unet.config.block_out_channels)):
        for layer in range(layers + 1):
            down, up = 1 + block * (layers + 1) + layer, block * (layers + 1) + layer
            _put(out, state, f"down_blocks.{block}.resnets.{layer}.", f"input_blocks.{down}.0.", RESNET)
            _put(out, state, f"down_blocks.{block}.attentions.{layer}.", f"input_blocks.{down}.1.")
            _put(out, state, f"up_blocks.{block}.resnets.{layer}.", f"output_blocks.{up}.0.", RESNET)
            _put(out, state, f"up_blocks.{block}.attentions.{layer}.", f"output_blocks.{up}.1.")
        _put(out, state, f"down_blocks.{block}.downsamplers.0.conv.", f"input_blocks.{(block + 1) * (layers + 1)}.0.op.")
        last = block * (layers + 1) + layers
        behind = 2 if any(name.startswith(f"up_blocks.{block}.attentions") for name in state) else 1
        _put(out, state, f"up_blocks.{block}.upsamplers.0.conv.", f"output_blocks.{last}.{behind}.conv.")
    assert len(out) == len(state)
    return {f"model.diffusion_model.{name}": value for name, value in out.items()}


def original_vae(vae: nn.Module) -> Weights:
    state, out = vae.state_dict(), {}
    levels = len(vae.config.block_out_channels)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    plain = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    for part in ("quant_conv.", "post_quant_conv.", "encoder.conv_in.", "encoder.conv_out.", "decoder.conv_in.", "decoder.conv_out."):
        _put(out, state, part, part)
    for side, ours, theirs in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        _put(out, state, f"{side}.conv_norm_out.", f"{side}.norm_out.")
        for which in (0, 1):
            _put(out, state, f"{side}.mid_block.resnets.{which}.", f"{side}.mid.block_{which + 1}.", plain)
        _put(out, state, f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1.", attention)
        for block in range(levels):
            level = block if side == "encoder" else levels - 1 - block
            for layer in range(vae.config.layers_per_block + 1):
                _put(out, state, f"{side}.{ours}.{block}.resnets.{layer}.", f"{side}.{theirs}.{level}.block.{layer}.", plain)
            sampler = f"{theirs}sample"
            _put(out, state, f"{side}.{ours}.{block}.{sampler}rs.0.conv.", f"{side}.{theirs}.{level}.{sampler}.conv.")
    assert len(out) == len(state)
    for name, value in out.items():  # the original's attention is made of 1 x 1 convolutions
        if ".mid.attn_1." in name and value.ndim == 2:
            out[name] = value[:, :, None, None]
    return {f"first_stage_model.{name}": value for name, value in out.items()}


def original_clip(text: nn.Module) -> Weights:
    return {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": v for name, v in text.state_dict().items()}


def original_open_clip(text: nn.Module) -> Weights:
    """With one block more at the end, which the model does not use."""
    state, out = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}, {}
    layers, width = text.config.num_hidden_layers, text.config.hidden_size
    out["token_embedding.weight"] = state["embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["embeddings.position_embedding.weight"]
    out["text_projection"], out["logit_scale"] = torch.eye(width), torch.tensor(4.6)
    _put(out, state, "final_layer_norm.", "ln_final.")
    for layer in range(layers + 1):
        new, old = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for ours, theirs in (("layer_norm1.", "ln_1."), ("layer_norm2.", "ln_2."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj."),
                             ("self_attn.out_proj.", "attn.out_proj.")):  # fmt: skip
            _put(out, state, new + ours, old + theirs)
        for kind in ("weight", "bias"):
            out[f"{old}attn.in_proj_{kind}"] = torch.cat([state[f"{new}self_attn.{each}_proj.{kind}"] for each in "qkv"])
    return {OPEN_CLIP + name: value for name, value in out.items()}


def original_ldm_bert(text: nn.Module) -> Weights:
    state, out = text.state_dict(), {}
    for new, old in (("model.embed_tokens.", "token_emb."), ("model.embed_positions.", "pos_emb.emb."), ("model.layer_norm.", "norm."),
                     ("to_logits.", "to_logits.")):  # fmt: skip
        _put(out, state, new, old)
    for layer in range(text.config.encoder_layers):
        new, attend, forward = f"model.layers.{layer}.", f"attn_layers.layers.{2 * layer}.", f"attn_layers.layers.{2 * layer + 1}."
        for ours, theirs in ((f"self_attn.{each}_proj.", f"{attend}1.to_{each}.") for each in "qkv"):
            _put(out, state, new + ours, theirs)
        _put(out, state, f"{new}self_attn.out_proj.", f"{attend}1.to_out.")
        _put(out, state, f"{new}self_attn_layer_norm.", f"{attend}0.")
        _put(out, state, f"{new}final_layer_norm.", f"{forward}0.")
        _put(out, state, f"{new}fc1.", f"{forward}1.net.0.0.")
        _put(out, state, f"{new}fc2.", f"{forward}1.net.2.")
    assert len(out) == len(state)
    return {f"cond_stage_model.transformer.{name}": value for name, value in out.items()}
