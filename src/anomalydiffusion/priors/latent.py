"""The adapter over diffusers' components: autoencoder, denoiser, text encoder, tokenizer, schedule -> Prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from anomalydiffusion.core.devices import compiled, scarce
from anomalydiffusion.core.errors import PriorError
from anomalydiffusion.core.pixels import to_latent_mask
from anomalydiffusion.priors.attention import install
from anomalydiffusion.priors.base import Context, Estimate, Gain, Graft, Memory
from anomalydiffusion.priors.fit import cells_of, inpaints

__all__ = ["LatentPrior"]


class LatentPrior:
    """A latent diffusion model from diffusers' components; everything is frozen and in evaluation mode."""

    def __init__(
        self,
        *,
        vae: Any,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        digest: str,
        earlier: Callable[[], str] | None = None,
    ) -> None:
        self.vae, self.unet, self.text_encoder, self.tokenizer, self.scheduler = vae, unet, text_encoder, tokenizer, scheduler
        for module in (vae, unet, text_encoder):
            module.requires_grad_(False).eval()
        install(unet)
        if vae.dtype == torch.bfloat16 and vae.device.type == "cpu":
            vae.to(memory_format=torch.channels_last)  # as the products read pictures: else each is brought into that order and back
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise PriorError(f"prediction type '{self.prediction_type}' is not known; epsilon, v_prediction and sample are")
        self.digest, self._earlier = digest, earlier
        self.device, self.dtype = next(unet.parameters()).device, next(unet.parameters()).dtype
        self.alphas = scheduler.alphas_cumprod.double().cpu()  # the sampler's numbers: no device waits for them
        self._alphas = self.alphas.float().to(self.device)
        self.factor = _factor(vae)
        self.latent_channels = int(vae.config.latent_channels)
        self.working_size = cells_of(unet.config.sample_size, len(unet.config.block_out_channels)) * self.factor
        self.token_width = int(text_encoder.get_input_embeddings().weight.shape[1])
        # a tokenizer may name 512 or 1e30; what the text encoder has positions for counts
        self.max_tokens = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        self.inpaints = inpaints(int(unet.config.in_channels), self.latent_channels)
        self._scale = float(vae.config.scaling_factor)
        self._nothing: dict[torch.Size, torch.Tensor] = {}
        self.spares = scarce(self.device)  # the text encoder leaves the card while nothing is said
        self.family = _family(vae, text_encoder)
        self._compiled: Any = None

    def is_known_as(self, digest: str) -> bool:
        """Whether this is the prior of that digest; of earlier versions' too, by which it goes from then on: a run has one name for it."""
        if digest != self.digest and self._earlier is not None and digest == self._earlier():
            self.digest = digest
        return digest == self.digest

    def compile(self) -> None:
        """From now on the denoiser's calls without a gradient are compiled ones, its weights and those of its adapters as they are then.

        Each kind of call that is new, by its shapes, adapter or re-weighting, takes a minute or more. Pictures are the same within a
        grey level in float32. Raises `ConfigError` where nothing can be compiled.
        """
        self._compiled = compiled(self.unet, self.device)

    def encode(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = self.vae.encode(x_BCHW.to(self.device, self.vae.dtype))
        latent = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent
        return (latent.float() * self._scale).contiguous()  # what is made of it rounds as after a file, which keeps no other order

    def surroundings(self, x_BCHW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor | None:
        """`[m, E(x (.) (1 - m))]`, B x (1 + C) x h x w, for inpainting priors: the hole on the latent grid, and the rest encoded.

        The hole is max-pooled, so that every cell that the sample replaces is said to be hole; the models were trained with the
        nearest pixel's. Pictures are encoded one by one, so that none depends on its batch. None from any other prior.
        """
        if not self.inpaints:
            return None
        x, mask = x_BCHW.to(self.device), mask_B1HW.to(self.device, torch.float32)
        seen = torch.cat([self.encode(row[None]) for row in x * (1 - mask)])
        return torch.cat([to_latent_mask(mask, self.factor), seen], dim=1)

    def _all_hole(self, z_BChw: torch.Tensor) -> torch.Tensor:
        """The surroundings where nothing is seen; encoded once for each size."""
        size = z_BChw.shape[-2:]
        if size not in self._nothing:
            grey = torch.zeros(1, 3, *(side * self.factor for side in size))
            told = self.surroundings(grey, torch.ones_like(grey[:, :1]))
            assert told is not None
            self._nothing[size] = told
        return self._nothing[size].expand(len(z_BChw), -1, -1, -1)

    def decode(self, z_BChw: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self.vae.decode(z_BChw.to(self.vae.dtype) / self._scale).sample
        return out.float()

    def tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def word_embeddings(self, ids: list[int]) -> torch.Tensor:
        table = self._listening().get_input_embeddings().weight
        return table[torch.tensor(ids, device=self.device)].detach().clone().float()

    def _listening(self) -> Any:
        """The text encoder, where it is needed."""
        return self.text_encoder.to(self.device) if self.spares else self.text_encoder

    def all_said(self) -> None:
        """Nothing is encoded for a while: on a card with little memory, the text encoder makes room for what draws."""
        if self.spares:
            self.text_encoder.to("cpu")

    def embed(self, text: tuple[list[int], list[int]], learned_BKD: torch.Tensor) -> Context:
        """Splice at word-embedding level, then run the whole sequence through the text encoder.

        Raises `PriorError` when the sequence is longer than the encoder's positions: learned tokens are never cut off.
        """
        batch, count, width = learned_BKD.shape
        if width != self.token_width:
            raise PriorError(f"learned tokens are {width} wide, this prior's are {self.token_width}: they belong to another prior")
        start_id, end_id = _special(self.tokenizer)
        head = [start_id, *text[0]]
        tail = [*text[1], end_id]
        pad = self.max_tokens - len(head) - count - len(tail)
        if pad < 0:
            raise PriorError(f"prompt and learned tokens take {self.max_tokens - pad} positions, the text encoder has {self.max_tokens}")
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else end_id
        ids = torch.tensor([head + [pad_id] * count + tail + [pad_id] * pad], device=self.device)
        text_encoder = self._listening()
        table = text_encoder.get_input_embeddings()
        words = table(ids).expand(batch, -1, -1)
        spliced = torch.cat([words[:, : len(head)], learned_BKD.to(words), words[:, len(head) + count :]], dim=1)
        # The one way that works for CLIP and LDM-BERT alike and across versions: hand the table's answer ourselves.
        handle = table.register_forward_hook(lambda module, given, answer: spliced)
        try:
            tokens = text_encoder(ids.expand(batch, -1))[0]
        finally:
            handle.remove()
        return Context(tokens_BND=tokens, span=(len(head), len(head) + count))

    def predict(
        self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None, graft: Graft | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor:  # fmt: skip
        count, extra = len(z_BChw), {} if gain is None else {"gain": gain, "span": context.span}
        if graft is not None:  # the references are drawn beside, under the same words
            z_BChw = torch.cat([z_BChw, self.noised(graft.reference_BChw, graft.noise_BChw, t_B)])
            t_B, extra = t_B.expand(count).repeat(2), {**extra, "graft": graft}
            if gain is not None:
                extra["gain"] = torch.cat([gain, torch.ones_like(gain)])
            told = None
            if context.surroundings is not None and graft.surroundings is not None:
                told = torch.cat([context.surroundings, graft.surroundings])
            context = replace(context, tokens_BND=context.tokens_BND.repeat(2, 1, 1), surroundings=told)
        tokens = context.tokens_BND.to(self.dtype)
        if self.inpaints:
            told = self._all_hole(z_BChw) if context.surroundings is None else context.surroundings
            z_BChw = torch.cat([z_BChw, told.to(z_BChw)], dim=1)
        given = {"encoder_hidden_states": tokens, "cross_attention_kwargs": extra or None}
        if memory is not None:
            if self._compiled is not None:
                raise PriorError("a compiled denoiser is one piece and remembers nothing: leave compile or reuse away")
            from anomalydiffusion.priors.reuse import remembering  # diffusers is slow to import

            with remembering(self.unet, memory):
                return self.unet(z_BChw.to(self.dtype), t_B, **given).sample[:count].float()
        if self._compiled is None or torch.is_grad_enabled():
            return self.unet(z_BChw.to(self.dtype), t_B, **given).sample[:count].float()
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(z_BChw.to(self.dtype), t_B, **given).sample[:count].float().clone()  # the next call overwrites a graph's own

    def _roots(self, t_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = self._alphas[t_B].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def target(self, clean: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        signal, sigma = self._roots(t_B)
        if self.prediction_type == "epsilon":
            return noise
        return clean if self.prediction_type == "sample" else signal * noise - sigma * clean

    def weight(self, t_B: torch.Tensor) -> torch.Tensor:
        """B x 1 x 1 x 1 factor on a squared error that makes every parametrisation's loss comparable: 1, or the v-loss's."""
        _, sigma = self._roots(t_B)
        return 1 / sigma.square().clamp_min(0.05) if self.prediction_type == "sample" else torch.ones_like(sigma)

    def estimate(self, z: torch.Tensor, answer: torch.Tensor, t_B: torch.Tensor) -> Estimate:
        """Turn a raw answer into the clean latent and the noise: `z = sqrt(a) clean + sqrt(1 - a) noise`."""
        signal, sigma = self._roots(t_B)
        if self.prediction_type == "v_prediction":
            return Estimate(clean=signal * z - sigma * answer, noise=signal * answer + sigma * z)
        if self.prediction_type == "sample":
            return Estimate(clean=answer, noise=(z - signal * answer) / sigma.clamp_min(1e-6))
        return Estimate(clean=(z - sigma * answer) / signal.clamp_min(1e-6), noise=answer)

    def denoise(self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None) -> Estimate:
        return self.estimate(z_BChw, self.predict(z_BChw, t_B, context, gain), t_B)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        """`q(z_t | z_0)`: the clean latent with the noise of step `t_B`."""
        signal, sigma = self._roots(t_B)
        return signal * clean + sigma * noise


def _factor(vae: Any) -> int:
    if hasattr(vae, "spatial_compression_ratio"):
        return int(vae.spatial_compression_ratio)
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _family(vae: Any, text_encoder: Any) -> str:
    """What the parts are made of: "stable-diffusion-1", "stable-diffusion-2", "ldm-text2img", or "own" for those trained here."""
    if type(text_encoder).__name__ == "LDMBertModel":
        return "ldm-text2img"
    if type(vae).__name__ == "AutoencoderDC":
        return "own"
    return "stable-diffusion-1" if text_encoder.config.hidden_act == "quick_gelu" else "stable-diffusion-2"


def _special(tokenizer: Any) -> tuple[int, int]:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if start is None or end is None:
        raise PriorError("the tokenizer names no start or end token")
    return int(start), int(end)
