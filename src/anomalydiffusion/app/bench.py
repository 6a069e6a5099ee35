"""Speed and memory of a prior on this machine: what a call, a pair and a training step cost, beside the machine's own limit."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import Settings, prior_of, resolve
from anomalydiffusion.conditioning.adapter import Adapter, Origin
from anomalydiffusion.core.devices import DTYPES, find_device, find_dtype
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.training.recipes import train_adapter

__all__ = ["WHAT", "bench"]

WHAT = ("call", "generate", "train", "all")
KEY = ("bench", "hole")
PRODUCT = 2048  # side of the matrices whose product shows what the machine can do


def _times(call: Callable[[], Any], repeat: int) -> list[float]:
    """Seconds of each of `repeat` calls, after one that is not counted; on a graphics card until it is done."""
    out = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        out.append(time.perf_counter() - began)
    return out[1:]


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def _peak() -> float:
    """The most memory that this process has held so far, in MB (MB of 10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _card(place: torch.device) -> dict[str, float]:
    """The most memory that was held on a graphics card."""
    return {"peak_card_mb": torch.cuda.max_memory_allocated(place) / 1e6} if place.type == "cuda" else {}


def _limit(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a large matrix product: what no network here can exceed."""
    a = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    return 2 * PRODUCT**3 / min(_times(lambda: (a @ a).sum().item(), 5)) / 1e9


def _hardware(device: torch.device) -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {
        "processor": model, "threads": torch.get_num_threads(), "device": str(device), "system": platform.system(),
        "python": platform.python_version(), **{name: version(name) for name in ("torch", "diffusers")},
    }  # fmt: skip


def _item(side: int, seed: int) -> Item:
    """A grey textured picture of twice the working size, with a hole in its middle."""
    random = rng(seed, "bench")
    image = np.repeat(np.clip(random.normal(128, 12, (2 * side, 2 * side, 1)), 0, 255), 3, axis=2).astype(np.uint8)
    pixels = np.zeros(image.shape[:2], bool)
    pixels[side - side // 6 : side + side // 6, side - side // 5 : side + side // 5] = True
    start = image.copy()
    start[pixels] //= 2
    return Item(key=KEY, normal_HWC=image, normal="bench.png", normal_sha256="", mask=Mask(pixels_HW=pixels, origin="bench"), seed=seed,
                start_HWC=start)  # fmt: skip


def _call(prior: LatentPrior, repeat: int) -> dict[str, Any]:
    """The denoiser, the text encoder and the autoencoder, one picture each."""
    side = prior.working_size // prior.factor
    z = torch.randn(1, prior.latent_channels, side, side, device=prior.device)
    t, picture = torch.tensor([500], device=prior.device), torch.zeros(1, 3, prior.working_size, prior.working_size)
    learned = torch.zeros(1, 12, prior.token_width, device=prior.device)
    with torch.no_grad():
        tokens = prior.embed((prior.tokenize("a photo of"), []), learned).tokens_BND
        context = Context(tokens_BND=tokens)
        with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # it does not know the CPU's fused attention
            prior.predict(z, t, context)
        found = {
            "call": _times(lambda: prior.predict(z, t, context), repeat),
            "embed": _times(lambda: prior.embed((prior.tokenize("a photo of"), []), learned), repeat),
            "encode": _times(lambda: prior.encode(picture), repeat),
            "decode": _times(lambda: prior.decode(z), repeat),
        }
    return {**{name: _figures(seconds) for name, seconds in found.items()}, "call_gflop": counted.get_total_flops() / 1e9}


def bench(
    prior: str = "tiny", *, what: str = "all", preset: str | None = None, config: Path | str | None = None, device: str | None = None,
    dtype: str | None = None, repeat: int = 3, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure one prior here. Seconds are wall time, each the median, least and most of `repeat`; memory is this process's peak.

    `what`: "call" the networks alone, "generate" also a pair at a time and in full batches, "train" also a training step, "all".
    `limit_gflops`: large matrix products in each number format; `share`: what of it the denoiser's call reaches.
    """
    if what not in WHAT:
        raise ConfigError(f"--what {what}: known are {', '.join(WHAT)}")
    if repeat < 1:
        raise ConfigError(f"--repeat {repeat}: expected at least 1")
    settings = resolve(preset, config, prior=prior, device=device, dtype=dtype)
    place = find_device(settings.device)
    if find_dtype(settings.dtype, place) == torch.float16 and what in ("train", "all"):
        raise ConfigError(f"--dtype float16 --what {what}: it is not learned with; give --what call or generate")
    memory = {"start": _peak()}
    limits = {name: _limit(kind, place) for name, kind in DTYPES.items() if not (name == "float16" and place.type == "cpu")}
    began = time.perf_counter()
    loaded = prior_of(settings)
    ours: dict[str, Any] = {"load": time.perf_counter() - began}
    memory["load"] = _peak()
    say(f"{prior}: loaded in {ours['load']:.1f} s", quiet=quiet)
    ours |= _call(loaded, repeat)
    memory["call"] = _peak()
    say(f"one call of the denoiser: {ours['call']['median']:.3f} s", quiet=quiet)
    if what in ("generate", "all"):
        ours |= _pairs(loaded, settings, repeat)
        memory["generate"] = _peak()
        batch = settings.generate.batch_size
        say(f"one pair: {ours['pair']['median']:.2f} s; in batches of {batch}: {ours['pairs_per_second']:.2f} pairs/s", quiet=quiet)
    if what in ("train", "all"):
        ours |= _training(loaded, settings, repeat)
        memory["train"] = _peak()
        say(f"one training step of {settings.train.batch_size}: {ours['train_step']['median']:.2f} s", quiet=quiet)
    share = ours["call_gflop"] / ours["call"]["median"] / limits[settings.dtype]
    return {
        "prior": prior, "dtype": settings.dtype, "working_size": loaded.working_size, "hardware": _hardware(place),
        "limit_gflops": limits, "ours": {**ours, "share": share, "peak_mb": memory, **_card(place)},
    }  # fmt: skip


def _pairs(prior: LatentPrior, settings: Settings, repeat: int) -> dict[str, Any]:
    adapter = Adapter(prior, [KEY], settings.train.adapter, Origin(prior_digest=prior.digest)).eval()
    one, many = replace(settings.generate, batch_size=1), settings.generate
    items = [_item(prior.working_size, seed) for seed in range(many.batch_size)]
    single = _times(lambda: make_pairs(prior, adapter, items[:1], one), repeat)
    batch = _times(lambda: make_pairs(prior, adapter, items, many), max(1, repeat // 2)) if many.batch_size > 1 else single
    return {"pair": _figures(single), "pairs_per_second": many.batch_size / statistics.median(batch)}


def _training(prior: LatentPrior, settings: Settings, repeat: int) -> dict[str, Any]:
    """Seconds of a step from a short training of its own; the first step is not counted."""
    marks: list[float] = []
    config = replace(settings.train, pool=replace(settings.train.pool, crops=settings.train.batch_size))
    config = replace(config, loop=replace(config.loop, steps=repeat + 1, log_every=1))
    item = _item(prior.working_size, 0)
    with TemporaryDirectory() as folder:
        train_adapter(
            prior, {KEY: [(item.normal_HWC, item.mask)]}, config, Path(folder), seed=0, name="measured",
            accelerator=Accelerator(cpu=settings.device == "cpu"), progress=lambda step, means: marks.append(time.perf_counter()),
        )  # fmt: skip
    return {"train_step": _figures([b - a for a, b in pairwise(marks)])}
