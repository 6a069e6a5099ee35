"""What one process of `benchmarks/speed.py` measures: a dictionary of seconds, and the memory that it held at its highest."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from plain import Clock, Learned, Plain, draw, learn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import anomalydiffusion as ad
from anomalydiffusion.app.opened import chosen, run_settings, run_split
from anomalydiffusion.app.settings import PRESETS, Drawing, resolve
from anomalydiffusion.conditioning.adapter import Adapter, Origin
from anomalydiffusion.core.config import digest
from anomalydiffusion.core.devices import DTYPES
from anomalydiffusion.core.pixels import digest_file, encode_png, read_image
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask, Pair, Provenance, Verdict
from anomalydiffusion.data.demo import make_demo
from anomalydiffusion.data.regions import digest_of, regions_of
from anomalydiffusion.generation.pairs import Item, make_pairs
from anomalydiffusion.generation.shards import Task, fill, plan
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.save import save_prior
from anomalydiffusion.training.recipes import train_adapter

Options = dict[str, Any]
Found = dict[str, Any]
KEY = ("brick", "hole")
MATRIX = 2048  # side of the matrices whose product shows what the machine can do


def times(call: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    marks = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        call()
        marks.append(time.perf_counter() - began)
    return marks[1:]


def limit(dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product in this number format: the best of ten."""
    a = torch.randn(MATRIX, MATRIX).to(dtype)
    return 2 * MATRIX**3 / min(times(lambda: a @ a, 10)) / 1e9


def peak() -> float:
    """The most memory that this process has held so far, in GB.

    Not `getrusage`'s: that begins at what the process held that started this one.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def item(side: int, seed: int) -> Item:
    """A grey textured picture with a hole in its middle, a quarter of it wide."""
    image = np.repeat(np.clip(rng(seed, "speed").normal(128, 12, (side, side, 1)), 0, 255), 3, axis=2).astype(np.uint8)
    yy, xx = np.mgrid[:side, :side]
    pixels = np.hypot(yy - side / 2, xx - side / 2) < side / 8
    start = image.copy()
    start[pixels] //= 2
    return Item(key=KEY, normal_HWC=image, normal="", normal_sha256="", mask=Mask(pixels_HW=pixels, origin="speed"), seed=seed,
                start_HWC=start)  # fmt: skip


def ours(given: Options) -> LatentPrior:
    return load_prior(given["prior"], dtype=DTYPES[given["dtype"]])


def plain(given: Options) -> tuple[Plain, Learned]:
    prior = load_prior(given["prior"])
    learned = Learned(prior.token_width).eval()
    return Plain(prior, learned), learned


def _called(prior: LatentPrior | Plain, side: int, channels: int, width: int, given: Options, dtype: torch.dtype) -> Found:
    z, t, tokens = torch.randn(1, channels, side, side), torch.tensor([500]), torch.randn(1, given["tokens"], width)

    def call() -> None:
        if isinstance(prior, Plain):
            prior.answer(z, 500, tokens)
        else:
            prior.predict(z, t, Context(tokens_BND=tokens))

    with torch.no_grad():
        before = limit(dtype)
        seconds = times(call, given["repeat"])
        most, held = max(before, limit(dtype)), peak()
        with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # it does not know the CPU's fused attention
            call()
    return {"call": seconds, "limit": most, "gflop": counted.get_total_flops() / 1e9, "peak": held}


def call_plain(given: Options) -> Found:
    prior = load_prior(given["prior"])
    sizes = prior.working_size // prior.factor, prior.latent_channels, prior.token_width
    return _called(Plain(prior, Learned(prior.token_width)), *sizes, {**given, "tokens": prior.max_tokens}, torch.float32)


def call_ours(given: Options) -> Found:
    prior = ours(given)
    sizes = prior.working_size // prior.factor, prior.latent_channels, prior.token_width
    return _called(prior, *sizes, {**given, "tokens": prior.max_tokens}, DTYPES[given["dtype"]])


def pair_plain(given: Options) -> Found:
    """Seconds of one pair in three ways: text encoder once, at each step, and with re-weighting by decoded previews too.

    Only some steps of many are walked, unless `walked` is None: the rest are counted like the median of those. The way with
    re-weighting is always counted so.
    """
    model, _ = plain(given)
    what, steps = item(model.size, 0), given["steps"]
    clock, weighed = Clock(), Clock()
    draw(model, what.normal_HWC, what.mask.pixels_HW, steps=steps, walked=1)  # not counted, nor is our first
    for _ in range(given["repeat"]):
        draw(model, what.normal_HWC, what.mask.pixels_HW, steps=steps, walked=given["walked"], clock=clock)
    held = peak()
    draw(model, what.normal_HWC, what.mask.pixels_HW, steps=steps, walked=given["walked"] or 10, reweight=True, clock=weighed)
    part = {name: statistics.median(seconds) for name, seconds in clock.seconds.items()}
    around = part["encode"] + part["decode"]
    every = around + steps * part["step"] if given["walked"] else around + sum(clock.seconds["step"]) / given["repeat"]
    return {
        "once": [every - steps * part["embed"]], "each": [every], "peak": held,
        "weighed": [around + steps * statistics.median(weighed.seconds["step"])], "parts": part, "walked": given["walked"] or steps,
    }  # fmt: skip


def pair_ours(given: Options) -> Found:
    """Seconds of a pair with each preset, one at a time; and for each pair in full batches."""
    prior, found = ours(given), Found()
    adapter = Adapter(prior, [KEY], resolve().train.adapter, Origin(prior_digest=prior.digest)).eval()
    for preset in given["presets"]:
        if preset in PRESETS:
            config = replace(resolve(preset).generate, **({} if given["batched"] else {"batch_size": 1}))
            items = [item(prior.working_size, seed) for seed in range(config.batch_size)]
            seconds = times(lambda config=config, items=items: make_pairs(prior, adapter, items, config), given["repeat"])  # type: ignore[misc]
            found[preset] = [each / config.batch_size for each in seconds]
            found.setdefault("peak", peak())
    return found


def train_plain(given: Options) -> Found:
    """Seconds of a training step for each of its samples."""
    model, learned = plain(given)
    what = item(model.size, 0)
    seconds = learn(model, learned.train(), what.normal_HWC, what.mask.pixels_HW, steps=given["repeat"] + 1)[1:]
    return {"sample": [each / 4 for each in seconds], "peak": peak()}


def train_ours(given: Options) -> Found:
    """The same, with a sample's share of what is encoded beforehand."""
    prior, marks, pool = ours(given), list[float](), [time.perf_counter()]
    config = resolve().train
    batch = given["batch"] or config.batch_size
    share = config.pool.crops / (config.loop.steps * batch)  # crops that are encoded for each sample that is learned
    short = replace(config, batch_size=batch, pool=replace(config.pool, crops=2 * batch),
                    loop=replace(config.loop, steps=given["repeat"] + 1, log_every=1))  # fmt: skip
    what = item(prior.working_size, 0)
    with TemporaryDirectory() as folder:
        train_adapter(
            prior, {KEY: [(what.normal_HWC, what.mask)]}, short, Path(folder), seed=0, accelerator=Accelerator(cpu=True),
            progress=lambda step, means: marks.append(time.perf_counter()), pool_progress=lambda done: pool.append(time.perf_counter()),
        )  # fmt: skip
    crop = (pool[-1] - pool[0]) / (2 * batch)
    return {"sample": [(b - a) / batch + share * crop for a, b in pairwise(marks)], "crop": crop, "batch": batch, "peak": peak()}


def saved(given: Options) -> Found:
    """A prior with random weights as a folder in float32, as published ones come: what loading needs, counts."""
    prior = load_prior(given["prior"])
    parts = {role: getattr(prior, role) for role in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}
    save_prior(parts, emptied(given), torch.float32)
    return {"peak": peak()}


def emptied(given: Options) -> Path:
    """The folder that is to be made, of which nothing is there yet."""
    shutil.rmtree(given["folder"], ignore_errors=True)
    return Path(given["folder"])


def base(given: Options) -> Found:
    """A run on the demo data that has learned for a few steps, `folder`/run: its pairs cost as much as any, if they are not as good."""
    folder = emptied(given)
    folder.mkdir(parents=True)
    (folder / "short.toml").write_text("[train.pool]\ncrops = 32\n[train.loop]\nsteps = 4\n")
    ad.train(make_demo(folder / "demo"), folder / "run", product=[KEY[0]], defect=[KEY[1]], config=folder / "short.toml", report_to="none",
             quiet=True)  # fmt: skip
    return {"peak": peak()}


def book(given: Options) -> Found:
    """Fill a copy of the run `base` with `num` pairs through the product's own plan, writers and manifest, without a model.

    Seconds of each pair, median, of those up to each number in `nums`.
    """
    run = Run.open(shutil.copytree(given["base"], emptied(given)))
    split, settings = run_split(run), run_settings(run)
    drawing = Drawing.of(settings, None, None, "", digest_of(regions_of(split)))
    (key,) = chosen(split, None, None)
    normals = [(normal.path, digest_file(normal.path), read_image(normal.path)) for normal in split.normals]

    def make(tasks: Sequence[Task]) -> list[Pair]:
        return [drawn(task, *normals[task.seed % len(normals)]) for task in tasks]

    def drawn(task: Task, path: Path, sha256: str, normal: np.ndarray) -> Pair:
        y, x, radius = (int(each) for each in rng(task.seed, "book").integers((20, 20, 4), [side - 20 for side in normal.shape[:2]] + [16]))
        yy, xx = np.ogrid[: normal.shape[0], : normal.shape[1]]
        mask = Mask(pixels_HW=(yy - y) ** 2 + (xx - x) ** 2 < radius**2, origin="speed", seed=task.seed)
        image = normal.copy()
        image[mask.pixels_HW] //= 2
        provenance = Provenance(
            product=key[0], defect=key[1], seed=task.seed, attempt=task.attempt, normal=str(path), normal_sha256=sha256,
            mask_origin=mask.origin, touched_box=mask.box, prior_digest="", adapter_digest="", config_digest=digest(drawing),
            steps=settings.generate.steps, severity=1.0, version=ad.__version__,
        )  # fmt: skip
        return Pair(image_HWC=image, normal_HWC=normal, mask=mask, requested=mask, provenance=provenance)

    marks = [time.perf_counter()]
    measures = dict.fromkeys(("change", "variation", "likeness", "agreement", "similarity", "margin"), 0.1234)
    fill(run, plan([key], given["num"]), make, lambda pair: Verdict(keep=True, measures=measures), seed=settings.seed, batch_size=8,
         attempts=5, settings_digest=drawing.settings_digest, progress=lambda record: marks.append(time.perf_counter()))  # fmt: skip
    each = np.diff(marks)
    windows = pairwise([0, *(num for num in given["nums"] if num < given["num"]), given["num"]])
    return {"nums": {str(stop): float(np.median(each[start:stop])) for start, stop in windows}, "peak": peak()}


def images(given: Options) -> Found:
    """A data set of `num` distinct pictures in `folder`, a quarter of them with a defect and a mask."""
    root, side = emptied(given) / KEY[0], given["side"]
    rows = np.arange(side)[:, None]
    for index in range(given["num"]):
        random = rng(index, "images")
        wave = 40 * np.sin(rows / random.uniform(4, 30) + rows.T / random.uniform(4, 30))
        image = np.clip(128 + wave[..., None] + random.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)
        kind = "test/hole" if index % 4 == 0 else "test/good" if index % 8 == 1 else "train/good"
        places = {root / kind / f"{index:06d}.png": image}
        if kind == "test/hole":
            y, x = random.integers(20, side - 20, 2)
            mask = (rows - y) ** 2 + (rows.T - x) ** 2 < 100
            image[mask] //= 2
            places[root / "ground_truth" / "hole" / f"{index:06d}_mask.png"] = mask
        for path, array in places.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))
    return {"peak": peak()}


ARMS: dict[str, Callable[[Options], Found]] = {
    call.__name__: call for call in (call_plain, call_ours, pair_plain, pair_ours, train_plain, train_ours, saved, base, book, images)
}  # fmt: skip
