"""Speed and memory of a prior on this machine: what a call, a mask, a pair and a training step cost, beside the plain way and the limit."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from anomalydiffusion.app.measured import KEY, Found, gflop, item, limit, peak, plainly, times
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import Settings, prior_of, resolve
from anomalydiffusion.conditioning.adapter import Adapter, Origin
from anomalydiffusion.core.devices import DTYPES, find_device, find_dtype
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.masks.learned import draw_shape
from anomalydiffusion.masks.warped import propose
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.training.recipes import train_adapter

__all__ = ["WHAT", "bench"]

WHAT = ("load", "call", "masks", "generate", "train", "all")
PARTS = {"call": ("call",), "generate": ("call", "pair"), "train": ("call", "train"), "all": ("call", "pair", "train")}  # of the plain way
STEPS, WALKED = 200, 6  # of the plain way: all, and those that are walked; the others are counted like the median of these


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def _peak() -> float:
    """The most memory that this process has held so far, in MB (MB of 10^6 bytes)."""
    return 1000 * peak()


def _card(place: torch.device) -> dict[str, float]:
    """The most memory that was held on a graphics card."""
    return {"peak_card_mb": torch.cuda.max_memory_allocated(place) / 1e6} if place.type == "cuda" else {}


def _hardware(device: torch.device) -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {
        "processor": model, "threads": torch.get_num_threads(), "device": str(device), "system": platform.system(),
        "python": platform.python_version(), **{name: version(name) for name in ("torch", "diffusers")},
    }  # fmt: skip


def _call(prior: LatentPrior, repeat: int, compile: bool) -> dict[str, Any]:
    """The denoiser, the text encoder and the autoencoder, one picture each; with `compile` the denoiser is compiled from then on."""
    side = prior.working_size // prior.factor
    z = torch.randn(1, prior.latent_channels, side, side, device=prior.device)
    t, picture = torch.tensor([500], device=prior.device), torch.zeros(1, 3, prior.working_size, prior.working_size)
    learned = torch.zeros(1, 12, prior.token_width, device=prior.device)
    with torch.no_grad():
        tokens = prior.embed((prior.tokenize("a photo of"), []), learned).tokens_BND
        context = Context(tokens_BND=tokens)
        counted = gflop(lambda: prior.predict(z, t, context))
        began = time.perf_counter()
        if compile:
            prior.compile()
            prior.predict(z, t, context)
        warm = {"compile": time.perf_counter() - began} if compile else {}
        found = {
            "call": times(lambda: prior.predict(z, t, context), repeat),
            "embed": times(lambda: prior.embed((prior.tokenize("a photo of"), []), learned), repeat),
            "encode": times(lambda: prior.encode(picture), repeat),
            "decode": times(lambda: prior.decode(z), repeat),
        }
    return {**warm, **{name: _figures(seconds) for name, seconds in found.items()}, "call_gflop": counted}


def bench(
    prior: str = "tiny", *, what: str = "all", preset: str | None = None, config: Path | str | None = None, device: str | None = None,
    dtype: str | None = None, compile: bool | None = None, repeat: int = 3, plain: bool = True, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure one prior here. Seconds are wall time, each the median, least and most of `repeat`; memory is this process's peak.

    `what`: "load" alone, "call" the networks, "masks" a warped and a drawn one, "generate" a pair at a time and in full batches, "train" a
    training step, "all". `limit_gflops`: large matrix products in each number format; `share`: what of it the denoiser's call reaches.
    `plain`: the published way (`app.plain`: float32, one at a time, 200 steps, nothing kept) is measured too where ours is on the
    processor, in processes of its own, and `ratios` say how many times ours goes into it: `call`, `pair_default`, `pair_fast`,
    `train_step` for each sample, `memory` while a pair is drawn. Of its 200 steps 6 are walked, the others counted like their median.
    `compile`: ours with a compiled denoiser; `compile` in what is found are the seconds of its first call.
    """
    if what not in WHAT:
        raise ConfigError(f"--what {what}: known are {', '.join(WHAT)}")
    if repeat < 1:
        raise ConfigError(f"--repeat {repeat}: expected at least 1")
    settings = resolve(preset, config, prior=prior, device=device, dtype=dtype, compile=compile)
    place = find_device(settings.device)
    if find_dtype(settings.dtype, place) == torch.float16 and what in ("train", "all"):
        raise ConfigError(f"--dtype float16 --what {what}: it is not learned with; give --what call or generate")
    beside = plain and what in PARTS and place.type == "cpu"
    published: Found = {}
    if beside:  # first, while this process holds next to nothing: what ours takes it does not give back
        say("the published way, written plainly ...", quiet=quiet)
        published = {"plain": _plain(prior, PARTS[what], repeat)}
    memory = {"start": _peak()}
    limits = {name: limit(kind, place) for name, kind in DTYPES.items() if not (name == "float16" and place.type == "cpu")}
    began = time.perf_counter()
    loaded = prior_of(settings)
    ours: dict[str, Any] = {"load": time.perf_counter() - began}
    memory["load"] = _peak()
    say(f"{prior}: loaded in {ours['load']:.1f} s", quiet=quiet)
    if what != "load":
        ours |= _call(loaded, repeat, bool(settings.compile))
        ours["share"] = ours["call_gflop"] / ours["call"]["median"] / limits[settings.dtype]
        memory["call"] = _peak()
        say(f"one call of the denoiser: {ours['call']['median']:.3f} s", quiet=quiet)
    if what in ("masks", "all"):
        ours |= _masks(loaded, settings, repeat)
        say(f"one mask: warped {ours['mask_warped']['median']:.3f} s, drawn {ours['mask_learned']['median']:.2f} s", quiet=quiet)
    if what in ("generate", "all"):
        adapter = Adapter(loaded, [KEY], settings.train.adapter, Origin(prior_digest=loaded.digest)).eval()
        ours |= _pair(adapter, settings, repeat, presets=beside)
        memory["pair"] = _peak()
        ours["pairs_per_second"] = _batched(adapter, settings, repeat)
        memory["generate"] = _peak()
        batch = settings.generate.batch_size
        say(f"one pair: {ours['pair']['median']:.2f} s; in batches of {batch}: {ours['pairs_per_second']:.2f} pairs/s", quiet=quiet)
    if what in ("train", "all"):
        ours |= _training(loaded, settings, repeat)
        memory["train"] = _peak()
        say(f"one training step of {settings.train.batch_size}: {ours['train_step']['median']:.2f} s", quiet=quiet)
    found: dict[str, Any] = {
        "prior": prior, "dtype": settings.dtype, "working_size": loaded.working_size, "hardware": _hardware(place),
        "limit_gflops": limits, **published, "ours": {**ours, "peak_mb": memory, **_card(place)},
    }  # fmt: skip
    if beside:
        found["ratios"] = _ratios(found["plain"], found["ours"])
        say(", ".join(f"{name} {value:.1f}x" for name, value in found["ratios"].items()), quiet=quiet)
    return found


def _masks(prior: LatentPrior, settings: Settings, repeat: int) -> Found:
    """Seconds of a mask that is warped from a real one, the object found first, and of one that the prior draws."""
    adapter = Adapter(prior, [KEY], settings.masks.train.adapter, Origin(prior_digest=prior.digest), name="masks").eval()
    what, drawn = item(prior.working_size, 0), settings.masks.learned

    def warped() -> None:
        propose([what.mask], what.normal_HWC, seed=0, config=settings.masks.warped, foreground_HW=foreground(what.normal_HWC))

    learned = times(lambda: draw_shape(adapter, KEY, seed=0, steps=drawn.steps, guidance=drawn.guidance), repeat)
    return {"mask_warped": _figures(times(warped, repeat)), "mask_learned": _figures(learned)}


def _pair(adapter: Adapter, settings: Settings, repeat: int, *, presets: bool) -> Found:
    """Seconds of one pair; with `presets` also as `default` and `fast` draw it."""
    items = [item(adapter.prior.working_size, 0)]
    ways = {"pair": settings.generate, **({f"pair_{name}": resolve(name).generate for name in ("default", "fast")} if presets else {})}
    ways = {name: replace(way, batch_size=1) for name, way in ways.items()}
    found: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        if same := next((known for known in found if ways[known] == way), None):
            found[name] = found[same]
        else:
            found[name] = _figures(times(partial(make_pairs, adapter.prior, adapter, items, way), repeat))
    return found


def _batched(adapter: Adapter, settings: Settings, repeat: int) -> float:
    """Pairs a second in full batches."""
    count = settings.generate.batch_size
    items = [item(adapter.prior.working_size, seed) for seed in range(count)]
    return count / statistics.median(times(lambda: make_pairs(adapter.prior, adapter, items, settings.generate), max(1, repeat // 2)))


def _training(prior: LatentPrior, settings: Settings, repeat: int) -> Found:
    """Seconds of a step from a short training of its own, the first not counted; and of a sample with its share of the encoding."""
    marks, pool = list[float](), [time.perf_counter()]
    config, batch = settings.train, settings.train.batch_size
    share = config.pool.crops / (config.loop.steps * batch)  # crops that are encoded for each sample that is learned
    short = replace(config, pool=replace(config.pool, crops=batch), loop=replace(config.loop, steps=repeat + 1, log_every=1))
    what = item(prior.working_size, 0)
    with TemporaryDirectory() as folder:
        train_adapter(
            prior, {KEY: [(what.normal_HWC, what.mask)]}, short, Path(folder), seed=0, name="measured",
            progress=lambda step, means: marks.append(time.perf_counter()),
            pool_progress=lambda done: pool.append(time.perf_counter()),
        )  # fmt: skip
    steps, crop = [b - a for a, b in pairwise(marks)], (pool[-1] - pool[0]) / batch
    return {"train_step": _figures(steps), "train_sample": _figures([each / batch + share * crop for each in steps])}


def _plain(prior: str, arms: Sequence[str], repeat: int) -> Found:
    """What the published way costs, by the same names as ours."""
    out: Found = {"steps": STEPS, "walked": WALKED, "peak_mb": {}}
    for arm in arms:
        found = plainly(arm, {"prior": prior, "repeat": repeat if arm != "pair" else 1, "steps": STEPS, "walked": WALKED})
        names = {"call": {"call": "call"}, "pair": {"once": "pair", "each": "pair_embedding_each_step", "weighed": "pair_reweighted"},
                 "train": {"sample": "train_sample"}}[arm]  # fmt: skip
        out |= {name: _figures(found[key]) for key, name in names.items()}
        out["peak_mb"][arm] = 1000 * found["peak"]
    return out


def _ratios(plain: Found, ours: Found) -> dict[str, float]:
    """Plain over ours; a pair of the plain way is the cheapest reading of it: the text encoder once, no re-weighting."""
    pairs = {"call": ("call", "call"), "pair_default": ("pair", "pair_default"), "pair_fast": ("pair", "pair_fast"),
             "train_step": ("train_sample", "train_sample")}  # fmt: skip
    found = {name: plain[a]["median"] / ours[b]["median"] for name, (a, b) in pairs.items() if a in plain and b in ours}
    if "pair" in plain["peak_mb"]:
        found["memory"] = plain["peak_mb"]["pair"] / ours["peak_mb"]["pair"]
    return found
