"""Data + loss + loop: learn an adapter from shots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from scipy import ndimage

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.conditioning.tokens import insert
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.errors import ConfigError, TrainingError
from anomalydiffusion.core.seeds import rng, torch_noise
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.training.loop import LoopConfig, Progress, accelerator_on, attention, precision, run_loop
from anomalydiffusion.training.loss import masked_loss
from anomalydiffusion.training.memory import fits, kept
from anomalydiffusion.training.shots import PoolConfig, kept_pool

__all__ = ["TrainConfig", "Watch", "check_learnable", "grain_ratio", "measures", "train_adapter"]

Shots = Mapping[tuple[str, str], Sequence[tuple[np.ndarray, Mask]]]
Watch = Callable[[int, Adapter], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How an adapter is learned."""

    batch_size: int = 16
    masked: bool = True  # restrict the loss to the mask; off: plain textual inversion, every cell counts alike
    outside: float = 0.3  # weight of the loss outside the mask
    normalise: bool = True  # divide the masked loss by the mask's area
    condition_noise: float = 0.02  # deviation of the noise on learned tokens, as a share of theirs
    # compute the denoiser's inner results again on the way back: less memory, a third slower, the same result; else where they do not fit
    gradient_checkpointing: bool = False
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3, warmup=20, checkpointing_steps=100, mixed_precision="auto")
    )

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("outside", 0), ("condition_noise", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least {least}")


def grain_ratio(image_HWC: np.ndarray, mask: Mask) -> float | None:
    """Amplitude of the grain inside a real defect over that around it; None where too few pixels tell.

    `sqrt(median_inside(h^2) / median_around(h^2))`, h the grey image less its blur by one pixel: an amplitude ratio, not
    one of energies, since it multiplies an amplitude. 1 = as grainy, 0 = smooth, above 1 = rougher.
    """
    x0, y0, x1, y1 = mask.box
    pad = 24
    view = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    grey, inside = image_HWC[view].astype(np.float64).mean(2), mask.pixels_HW[view]
    fine = (grey - ndimage.gaussian_filter(grey, 1.0)) ** 2
    core = ndimage.binary_erosion(inside, iterations=2)
    around = ~ndimage.binary_dilation(inside, iterations=3)
    if core.sum() < 20 or around.sum() < 50:
        return None
    return float(np.sqrt(np.median(fine[core]) / max(np.median(fine[around]), 1e-6)))


def measures(shots: Shots) -> dict[str, dict[str, float]]:
    """What generation needs to know of each defect's shots: `grain`, the median ratio cut to 0..1; 1 where none tells."""
    out = {}
    for key, items in shots.items():
        ratios = [ratio for image, mask in items if (ratio := grain_ratio(image, mask)) is not None]
        out["/".join(key)] = {"grain": float(np.clip(np.median(ratios), 0.0, 1.0)) if ratios else 1.0}
    return out


def check_learnable(prior: LatentPrior, config: TrainConfig) -> None:
    """Raises `ConfigError` where a prior's number format, or the settings, cannot be learned with."""
    if prior.dtype == torch.float16:
        raise ConfigError("dtype 'float16': gradients vanish in it; learn in float32 or bfloat16, and generate in float16")
    if config.adapter.backbone == "released":
        raise ConfigError("backbone 'released' is read from its authors' files, not learned; give small or resnet50")


@contextmanager
def _at_rest(adapter: Adapter) -> Iterator[None]:
    """Nothing is learned while this lasts, and no random number is taken from those that come after it."""
    device = adapter.prior.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        adapter.eval()
        try:
            yield
        finally:
            adapter.train()


def _roomy(adapter: Adapter, config: TrainConfig) -> bool:
    """Whether the inner results of a batch can all be kept for the way back."""
    prior = adapter.prior
    learned = adapter.config.anomaly_tokens + adapter.config.spatial_tokens
    side = prior.working_size // prior.factor

    def answer(count: int) -> torch.Tensor:
        z = torch.zeros(count, prior.latent_channels, side, side, device=prior.device)
        tokens = torch.zeros(count, learned, prior.token_width, device=prior.device, requires_grad=True)
        context = insert(prior, adapter.config.prompt, tokens)
        return adapter.predict(z, torch.zeros(count, dtype=torch.long, device=prior.device), context)

    def bytes_of(count: int) -> int:
        return kept(lambda: answer(count), prior.unet, prior.text_encoder)

    with attention(prior.device), precision(prior.device, config.loop):
        return fits(bytes_of, config.batch_size, prior.device)


def train_adapter(
    prior: LatentPrior, shots: Shots, config: TrainConfig, folder: Path, *, seed: int, split_digest: str = "",
    resume: bool = True, progress: Progress | None = None, pool_progress: Callable[[int], None] | None = None,
    accelerator: Accelerator | None = None, name: str = "default", from_nothing: bool = False,
    start: Adapter | None = None, watch: Watch | None = None,
) -> Adapter:  # fmt: skip
    """Learn anomaly vectors, spatial encoder and LoRA on `shots` with the masked loss; checkpoints go to `folder`,
    and while it lasts the encoded crops.

    The adapter takes the name `name` in the prior, beside those of other names. `from_nothing`: an inpainting prior is not
    told what surrounds the masks, as it will not be when it draws with no picture around. `start`: an adapter of this prior
    that is extended by the defects in `shots`; of it nothing is changed but what is added, and its own settings say what is
    learned of each. `watch(step, adapter)` may look at the adapter, and draw with it, after each `progress`; it changes nothing of what
    is learned, and sees the weights as they are where an average of them is kept. Raises `TrainingError` when there is nothing to learn
    from.
    """
    check_learnable(prior, config)
    if not shots or not all(shots.values()):
        raise TrainingError("there are no shots to learn from; 'anomalydiffusion check' tells what the data set holds")
    encoded = folder / "pool.safetensors"
    pool = kept_pool(encoded, prior, {key: list(items) for key, items in shots.items()}, config.pool, seed=seed, progress=pool_progress)
    origin = Origin(prior_digest=prior.digest, config_digest=digest(config), split_digest=split_digest, steps=config.loop.steps,
                    measures=measures(shots))  # fmt: skip
    if start is None:
        adapter = Adapter(prior, sorted(shots), config.adapter, origin, seed, name)
    else:
        adapter = start
        adapter.extend(sorted(shots), origin, seed)
    by_key = {key: [row for row, owner in enumerate(pool.keys) if owner == key] for key in sorted(shots)}
    names = sorted(by_key)
    tokens = adapter.config.anomaly_tokens + adapter.config.spatial_tokens
    train_steps = len(prior.alphas)

    def objective(step: int, micro: int) -> dict[str, torch.Tensor]:
        generator = rng(seed, "train", step, micro)
        owners = [names[int(i)] for i in generator.integers(0, len(names), config.batch_size)]
        rows = [by_key[key][int(generator.integers(len(by_key[key])))] for key in owners]
        t = torch.from_numpy(generator.integers(0, train_steps, config.batch_size)).to(prior.device)
        clean = pool.latents[rows].to(prior.device)
        noise = torch_noise(tuple(clean.shape), seed, "train-noise", step, micro).to(prior.device)
        spread = config.condition_noise * adapter.tokens.spread(owners)
        jitter = torch_noise((len(rows), tokens, prior.token_width), seed, "condition", step, micro).to(prior.device) * spread
        around = None if pool.surroundings is None or from_nothing else pool.surroundings[rows].to(prior.device)
        context = adapter.context(owners, pool.masks[rows].float().to(prior.device), jitter, around)
        answer = adapter.predict(prior.noised(clean, noise, t), t, context)
        latent_mask, target = pool.latent_masks[rows].to(prior.device), prior.target(clean, noise, t)
        counted = latent_mask if config.masked else torch.ones_like(latent_mask)
        loss = masked_loss(answer, target, counted, weight=prior.weight(t), outside=config.outside, normalise=config.normalise)
        return {"loss": loss}

    def report(step: int, means: dict[str, float]) -> None:
        if progress is not None:
            progress(step, means)
        if watch is not None:
            with _at_rest(adapter):
                watch(step, adapter)

    sparing = config.gradient_checkpointing or not _roomy(adapter, config)
    if sparing:
        prior.unet.enable_gradient_checkpointing()
    adapter.train()
    parts = adapter.trainable()
    with nullcontext() if adapter.config.lora_rank else adapter.unheard():
        learned = run_loop(parts, objective, config.loop, folder, resume=resume, progress=report,
                           accelerator=accelerator or accelerator_on(prior.device))  # fmt: skip
    encoded.unlink(missing_ok=True)
    parts.load_state_dict(learned.state_dict())  # the average, where one is kept
    if sparing:
        prior.unet.disable_gradient_checkpointing()
    return adapter.eval()
