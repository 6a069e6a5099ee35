"""What was learned from the shots, as one file: anomaly vectors, spatial encoder, LoRA, and which prior they fit."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from anomalydiffusion.conditioning.lora import LoraParameters, add_lora
from anomalydiffusion.conditioning.released import ENCODER, ReleasedEncoder, read_released
from anomalydiffusion.conditioning.spatial import Backbone, SpatialEncoder
from anomalydiffusion.conditioning.tokens import AnomalyTokens, Key, insert
from anomalydiffusion.core.config import from_dict, to_dict
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.formats import check_format
from anomalydiffusion.core.names import is_folder, shown
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.core.seeds import derive
from anomalydiffusion.priors.base import Context, Gain, Graft, Memory
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.weights import count

if TYPE_CHECKING:  # slow to import, and most commands never need them
    from peft.tuners.tuners_utils import BaseTunerLayer

__all__ = ["Adapter", "AdapterConfig"]

FORMAT = 1
OLDEST = 1  # what is still read; tests/fixtures keeps an adapter of each format from here on


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What is learned. `lora_rank` 0 = embeddings only, as in the paper; a small prior cannot hold every defect in its condition."""

    anomaly_tokens: int = 8  # k
    spatial_tokens: int = 4  # n
    backbone: Backbone = "small"  # "released": the authors' own, which is read from their files and never trained
    initial_word: str = "anomaly"
    prompt: str = "a photo of {}"
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, least in (("anomaly_tokens", 1), ("spatial_tokens", 0), ("lora_rank", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least {least}")
        if not self.initial_word.strip():
            raise ConfigError("initial_word is empty; name what the learned tokens begin as, such as 'anomaly'")
        if self.prompt.count("{}") != 1:
            raise ConfigError(f"prompt {shown(self.prompt)} must hold {{}} once: the place of the learned tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an adapter comes from."""

    prior_digest: str
    config_digest: str = ""
    split_digest: str = ""
    steps: int = 0
    measures: dict[str, dict[str, float]] = field(default_factory=dict)


class Adapter(nn.Module):
    """Anomaly vectors and spatial encoder, and the LoRA weights that live inside the prior's denoiser.

    Adapters of different `name` may share a prior: each one's `predict` answers with its own LoRA weights and no other's.
    """

    def __init__(
        self, prior: LatentPrior, keys: Sequence[Key], config: AdapterConfig, origin: Origin, seed: int = 0, name: str = "default"
    ) -> None:
        super().__init__()
        self.config, self.origin, self.prior, self.name = config, origin, prior, name
        self.tokens = AnomalyTokens(keys, config.anomaly_tokens, prior.token_width, self._start(), seed)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of another name: meant so
            torch.manual_seed(seed)
            self.spatial = _encoder(config, prior.token_width)
            self.denoiser = prior.unet
            if config.lora_rank:
                add_lora(prior.unet, config.lora_rank, config.lora_targets, name)
        self.to(prior.device)
        self.digest = ""
        self._plain: torch.Tensor | None = None
        self._layers: tuple[tuple[str, ...], list[BaseTunerLayer]] | None = None

    def _start(self) -> torch.Tensor:
        """The word embedding that anomaly vectors start from."""
        return self.prior.word_embeddings(self.prior.tokenize(self.config.initial_word)).mean(0)

    def extend(self, keys: Sequence[Key], origin: Origin, seed: int) -> None:
        """Make room for further defects: from now on only their anomaly vectors are learned.

        What was learned before stays as it is, so the other defects look as they did.
        """
        self.trainable().requires_grad_(False)
        self.tokens.add(keys, self._start(), derive(seed, "tokens", len(self.keys)))  # another start than the first ones had
        self.tokens.to(self.prior.device)
        self.origin = replace(origin, measures={**self.origin.measures, **origin.measures})
        self.digest = ""

    @property
    def keys(self) -> list[Key]:
        return list(self.tokens.keys)

    def trainable(self) -> nn.ModuleDict:
        """The modules whose parameters are learned, where they want a gradient; of the denoiser the LoRA weights alone."""
        parts: dict[str, nn.Module] = {"tokens": self.tokens}
        if self.spatial is not None:
            parts["spatial"] = self.spatial
        if self.config.lora_rank:
            parts["lora"] = LoraParameters(self.denoiser, self.name)
        return nn.ModuleDict(parts)

    def context(
        self, keys: Sequence[Key], mask_B1HW: torch.Tensor, noise_BKD: torch.Tensor | None = None,
        surroundings: torch.Tensor | None = None, *, toward: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Context:  # fmt: skip
        """Condition of a batch: `prompt` with `{e_a, e_s}` in its place; `noise_BKD` is added to the learned tokens.

        An adapter without spatial tokens does not look at the masks. `surroundings` are for inpainting priors. `toward`: other masks,
        B x 1 x H x W, and for each how far `e_s` goes from that of its own mask to theirs, B values in 0..1.
        """
        learned = self.tokens.rows(keys)
        if self.spatial is not None:
            spatial = self.spatial(mask_B1HW.to(learned))
            if toward is not None:
                spatial = spatial.lerp(self.spatial(toward[0].to(learned)), toward[1].to(learned)[:, None, None])
            learned = torch.cat([learned, spatial], dim=1)
        if noise_BKD is not None:
            learned = learned + noise_BKD.to(learned)
        return replace(insert(self.prior, self.config.prompt, learned), surroundings=surroundings)

    def predict(
        self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None, graft: Graft | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The raw output of the prior with this adapter's LoRA weights in it."""
        if not self.config.lora_rank:
            return self.frozen(z_BChw, t_B, context, gain, graft, memory)
        if self.denoiser.active_adapters() != [self.name]:
            self.denoiser.set_adapter(self.name)
        return self.prior.predict(z_BChw, t_B, context, gain, graft, memory)

    def frozen(
        self, z_BChw: torch.Tensor, t_B: torch.Tensor, context: Context, gain: Gain | None = None, graft: Graft | None = None,
        memory: Memory | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The raw output of the prior's own weights."""
        with self.unheard():
            return self.prior.predict(z_BChw, t_B, context, gain, graft, memory)

    def plain(self, count: int) -> torch.Tensor:
        """The prompt with nothing learned in it, encoded once: `count` x N x D, what the frozen prior would draw."""
        if self._plain is None:
            empty = torch.zeros(1, 0, self.prior.token_width, device=self.prior.device)
            self._plain = insert(self.prior, self.config.prompt, empty).tokens_BND
        return self._plain.expand(count, -1, -1)

    def _tuned(self) -> list[BaseTunerLayer]:
        """The denoiser's layers with LoRA weights in them, whichever adapter's; looked for anew when one was added."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        names = tuple(getattr(self.denoiser, "peft_config", ()))
        if self._layers is None or self._layers[0] != names:
            self._layers = names, [each for each in self.denoiser.modules() if isinstance(each, BaseTunerLayer)]
        return self._layers[1]

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """No adapter's LoRA weights take part while this lasts."""
        layers = self._tuned()
        if not layers or layers[0].disable_adapters:
            yield
            return
        # what peft's own switch sets; that walks all modules and all weights, each time as long as a small denoiser's call
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def save(self, path: Path) -> None:
        """Write `path` (safetensors; settings and origin in its metadata), whole or not at all."""
        tensors = {"tokens.vectors": self.tokens.rows(self.keys)}  # defects x k x D
        if self.spatial is not None:
            tensors |= {f"spatial.{name}": value for name, value in self.spatial.state_dict().items()}
        if self.config.lora_rank:
            from peft import get_peft_model_state_dict

            tensors |= {f"lora.{name}": value for name, value in get_peft_model_state_dict(self.denoiser, adapter_name=self.name).items()}
        record = {"format": FORMAT, "keys": self.keys, "config": to_dict(self.config), "origin": to_dict(self.origin)}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = save(plain, metadata={"anomalydiffusion": json.dumps(record)})
        write_atomic(path, data)
        self.digest = hashlib.sha256(data).hexdigest()[:16]

    @classmethod
    def from_released(cls, folder: Path, prior: LatentPrior) -> Adapter:
        """The adapter in a folder of the authors' own checkpoints, `embeddings.pt` and `spatial_encoder.pt`.

        Those were learned under many prompts, of which the first, "a photo of a", is used. What they were learned from is
        not recorded there. Raises `RunError` where they do not fit this prior.
        """
        vectors, weights = read_released(folder)
        first = next(iter(vectors.values()))
        if first.shape[1] != prior.token_width:
            raise RunError(
                f"{folder}: its vectors are {first.shape[1]} wide, this prior's {prior.token_width}; give the prior they belong to"
            )
        config = AdapterConfig(
            anomaly_tokens=first.shape[0], spatial_tokens=count(weights, "styles."), backbone="released", lora_rank=0,
            prompt="a photo of a {}",
        )  # fmt: skip
        adapter = cls(prior, list(vectors), config, Origin(prior_digest=prior.digest))
        adapter.tokens.load_state_dict({f"vectors.{row}": own for row, own in enumerate(vectors.values())})
        if adapter.spatial is not None:
            try:
                adapter.spatial.load_state_dict(weights)
            except RuntimeError as error:
                raise RunError(
                    f"{folder / ENCODER}: is no released spatial encoder ({str(error).splitlines()[1].strip()[:200]})"
                ) from error
        return adapter.eval()

    @staticmethod
    def vectors_of(path: Path) -> dict[Key, torch.Tensor]:
        """The anomaly vectors in an adapter's file by (product, defect), k x D each; no prior is needed."""
        keys, _, _, tensors = _read(path)
        return dict(zip(keys, tensors["tokens.vectors"], strict=True))

    @staticmethod
    def digest_of(path: Path) -> str:
        """SHA-256 of an adapter's file, 16 hexadecimal digits. Raises `RunError` where there is none."""
        if not path.is_file():
            raise RunError(f"{path}: no adapter here; run 'anomalydiffusion train' first")
        return digest_file(path)[:16]

    @staticmethod
    def check(path: Path) -> None:
        """Raises `RunError` where an adapter's file is missing, damaged or newer: before something long is begun for it."""
        _read(path)

    @classmethod
    def load(cls, path: Path, prior: LatentPrior, name: str = "default") -> Adapter:
        """Read an adapter onto `prior`. Raises `RunError` when it is damaged, newer, or was trained on another prior."""
        keys, config, origin, tensors = _read(path)
        if not prior.is_known_as(origin.prior_digest):
            raise RunError(
                f"{path}: trained on prior {origin.prior_digest}, but this prior is {prior.digest}; pass the --prior it was trained on"
            )
        if (width := tensors["tokens.vectors"].shape[2]) != prior.token_width:
            raise RunError(f"{path}: its vectors are {width} wide, this prior's {prior.token_width}; train again")
        try:
            adapter = cls(prior, keys, config, origin, name=name)
            adapter._fill(path, tensors)
        except (ConfigError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: does not fit this prior ({' '.join(str(error).split())[:200]}); train again") from error
        adapter.digest = cls.digest_of(path)
        return adapter.eval()

    def _fill(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what was learned."""
        part = {
            kind: {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(kind + ".")} for kind in ("tokens", "spatial", "lora")
        }
        self.tokens.load_state_dict({f"vectors.{row}": own for row, own in enumerate(part["tokens"]["vectors"])})
        if self.spatial is not None:
            self.spatial.load_state_dict(part["spatial"])
        if self.config.lora_rank:
            from peft import set_peft_model_state_dict

            result: Any = set_peft_model_state_dict(self.denoiser, part["lora"], adapter_name=self.name)
            if result is not None and result.unexpected_keys:
                raise RunError(
                    f"{path}: {len(result.unexpected_keys)} LoRA weights do not fit this prior, first {result.unexpected_keys[0]}"
                )


def _read(path: Path) -> tuple[list[Key], AdapterConfig, Origin, dict[str, torch.Tensor]]:
    """Keys, settings and origin that are noted in an adapter's file, and its tensors, which have the shapes that those say."""
    try:
        with safe_open(path, "pt") as file:
            record = dict(json.loads((file.metadata() or {})["anomalydiffusion"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise RunError(f"{path}: no adapter here; run 'anomalydiffusion train' first") from error
    except Exception as error:
        raise RunError(f"{path}: this adapter is damaged or not ours ({error}); train again") from error
    check_format(path, record, reads=FORMAT, oldest=OLDEST, anew="train again")
    try:
        keys = [(product, defect) for product, defect in record["keys"]]
        config, origin = from_dict(AdapterConfig, record["config"]), from_dict(Origin, record["origin"])
        if not all(is_folder(word) for key in keys for word in key) or len(set(keys)) != len(keys):
            raise ValueError(f"keys are {shown(keys)}")
        _check_shapes(len(keys), config, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise RunError(f"{path}: this adapter is damaged or not ours ({error!r:.200}); train again") from error
    return keys, config, origin, tensors


def _check_shapes(count_keys: int, config: AdapterConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse settings that the weights do not have: what is built by them could be larger than any memory."""
    vectors = tensors["tokens.vectors"]
    if vectors.ndim != 3 or vectors.shape[:2] != (count_keys, config.anomaly_tokens):
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} for {count_keys} defects, {config.anomaly_tokens} tokens each")
    heads = count(tensors, "spatial.styles." if config.backbone == "released" else "spatial.heads.")
    if config.spatial_tokens != heads:
        raise ValueError(f"{heads} heads for {config.spatial_tokens} spatial tokens")
    ranks = {value.shape[0] for name, value in tensors.items() if name.startswith("lora.") and "lora_A" in name and value.ndim > 1}
    if ranks != ({config.lora_rank} if config.lora_rank else set()):
        raise ValueError(f"LoRA of ranks {sorted(ranks)}, not {config.lora_rank}")


def _encoder(config: AdapterConfig, width: int) -> nn.Module | None:
    if config.spatial_tokens == 0:
        return None
    if config.backbone == "released":
        return ReleasedEncoder(config.spatial_tokens, width)
    return SpatialEncoder(config.spatial_tokens, width, config.backbone)
