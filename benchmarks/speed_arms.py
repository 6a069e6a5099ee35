"""What one process of `benchmarks/speed.py` measures: a dictionary of seconds, and the memory that it held at its highest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import anomalydiffusion as ad
from anomalydiffusion.app.fits import settled
from anomalydiffusion.app.measured import ARMS as PLAIN
from anomalydiffusion.app.measured import KEY, Found, Options, called, item, peak, times
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
from anomalydiffusion.generation.pairs import make_pairs
from anomalydiffusion.generation.shards import Task, fill, plan
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.save import save_prior
from anomalydiffusion.training.recipes import train_adapter


def ours(given: Options) -> LatentPrior:
    return load_prior(given["prior"], dtype=DTYPES[given["dtype"]])


def call_ours(given: Options) -> Found:
    prior = ours(given)
    sizes = prior.working_size // prior.factor, prior.latent_channels, prior.token_width
    found = called(prior, *sizes, {**given, "tokens": prior.max_tokens}, DTYPES[given["dtype"]])
    z, t, context = torch.randn(1, sizes[1], sizes[0], sizes[0]), torch.tensor([500]), torch.randn(1, prior.max_tokens, prior.token_width)
    with torch.no_grad():
        prior.compile()
        began = time.perf_counter()
        prior.predict(z, t, Context(tokens_BND=context))
        compiling = time.perf_counter() - began
        compiled = times(lambda: prior.predict(z, t, Context(tokens_BND=context)), given["repeat"])
    return {**found, "compiled": compiled, "compiling": [compiling]}


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


WAYS: dict[str, dict[str, Any]] = {
    "default": {}, "from noise": {"strength": 1.0}, "remembered": {"strength": 1.0, "reuse": 2}, "decoded": {"reweight": "paper"},
}  # fmt: skip


def levers_ours(given: Options) -> Found:
    """Seconds of a pair, one at a time, in each of the named ways, which are the default but for one thing.

    `networks`: also with networks that are not the default's: the autoencoder's pictures in another order, the denoiser compiled.
    """
    prior, found = ours(given), Found()
    adapter = Adapter(prior, [KEY], resolve().train.adapter, Origin(prior_digest=prior.digest)).eval()
    config, items = replace(resolve().generate, batch_size=1), [item(prior.working_size, 0)]
    for name in given["ways"]:
        way = replace(config, **WAYS[name])
        found[name] = times(lambda way=way: make_pairs(prior, adapter, items, way), given["repeat"])  # type: ignore[misc]
    if given["networks"]:

        def pair() -> object:
            return make_pairs(prior, adapter, items, config)

        prior.vae.to(memory_format=torch.contiguous_format)
        found["contiguous"] = times(pair, given["repeat"])
        prior.vae.to(memory_format=torch.channels_last)
        prior.compile()
        began = time.perf_counter()
        pair()
        found["compiling"] = [time.perf_counter() - began]
        found["compiled"] = times(pair, given["repeat"])
    return {**found, "peak": peak()}


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
            prior, {KEY: [(what.normal_HWC, what.mask)]}, short, Path(folder), seed=0,
            progress=lambda step, means: marks.append(time.perf_counter()), pool_progress=lambda done: pool.append(time.perf_counter()),
        )  # fmt: skip
    crop = (pool[-1] - pool[0]) / (2 * batch)
    samples = [(b - a) / batch + share * crop for a, b in pairwise(marks)]
    return {"sample": samples, "crop": crop, "share": share, "batch": batch, "peak": peak()}


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
    split = run_split(run)
    settings = settled(run, run_settings(run), split, quiet=True)
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
    **{f"{name}_plain": arm for name, arm in PLAIN.items()},
    **{arm.__name__: arm for arm in (call_ours, pair_ours, levers_ours, train_ours, saved, base, book, images)},
    "train_ours_plain": train_ours,  # under the default allocator
}  # fmt: skip
