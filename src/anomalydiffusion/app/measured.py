"""How speed is measured: seconds of calls, a process's memory, and what the plain way costs in processes of its own.

python -m anomalydiffusion.app.measured pair '{"prior": "tiny", "repeat": 3, "steps": 200, "walked": 6}'
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anomalydiffusion.app.main import ALLOCATOR
from anomalydiffusion.app.plain import Clock, Learned, Plain, draw, learn
from anomalydiffusion.core.errors import AnomalyDiffusionError
from anomalydiffusion.core.seeds import rng
from anomalydiffusion.core.types import Mask
from anomalydiffusion.generation.pairs import Item
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import load_prior

__all__ = ["ARMS", "KEY", "called", "gflop", "item", "limit", "peak", "plainly", "times"]

Options = dict[str, Any]
Found = dict[str, Any]
KEY = ("brick", "hole")
REFUSED = 3  # what a process ends with that could not use what it was given
MATRIX = 2048  # side of the matrices whose product shows what the machine can do


def times(call: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each call, after one that is not counted; on a graphics card until it is done."""
    marks = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        marks.append(time.perf_counter() - began)
    return marks[1:]


def gflop(call: Callable[[], object]) -> float:
    """The 10^9 floating point operations of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # it does not know the CPU's fused attention
        call()
    return counted.get_total_flops() / 1e9


def limit(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """GFLOP/s of a large matrix product in this number format, which no network here can exceed: the best of ten."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    return 2 * MATRIX**3 / min(times(lambda: a @ a, 10)) / 1e9


def peak() -> float:
    """The most memory that this process has held so far, in GB.

    Where the system tells it, not `getrusage`'s: that begins at what the process held that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
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


def _plain(given: Options) -> tuple[Plain, Learned]:
    prior = load_prior(given["prior"])
    learned = Learned(prior.token_width).eval()
    return Plain(prior, learned), learned


def called(prior: LatentPrior | Plain, side: int, channels: int, width: int, given: Options, dtype: torch.dtype) -> Found:
    """Seconds of the denoiser's calls, the machine's limit beside them, and what a call computes."""
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
        return {"call": seconds, "limit": most, "gflop": gflop(call), "peak": held}


def call(given: Options) -> Found:
    """Seconds of the denoiser's calls, in float32."""
    prior = load_prior(given["prior"])
    sizes = prior.working_size // prior.factor, prior.latent_channels, prior.token_width
    return called(Plain(prior, Learned(prior.token_width)), *sizes, {**given, "tokens": prior.max_tokens}, torch.float32)


def pair(given: Options) -> Found:
    """Seconds of one pair in three ways: text encoder once, at each step, and with re-weighting by decoded previews too.

    Only some steps of many are walked, unless `walked` is None: the rest are counted like the median of those. The way with
    re-weighting is always counted so.
    """
    model, _ = _plain(given)
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


def train(given: Options) -> Found:
    """Seconds of a training step for each of its samples."""
    model, learned = _plain(given)
    what = item(model.size, 0)
    seconds = learn(model, learned.train(), what.normal_HWC, what.mask.pixels_HW, steps=given["repeat"] + 1)[1:]
    return {"sample": [each / 4 for each in seconds], "peak": peak()}


ARMS: dict[str, Callable[[Options], Found]] = {each.__name__: each for each in (call, pair, train)}


def plainly(arm: str, given: Options) -> Found:
    """What an arm of the plain way measures, in a process of its own with the system's own allocator.

    Raises `AnomalyDiffusionError` with what that process says of its input, and where it ends without a result, as for want of memory.
    """
    words = [sys.executable, "-P", "-m", "anomalydiffusion.app.measured", arm, json.dumps(given)]
    without = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run(words, env=without, capture_output=True, text=True, check=False)
    if done.returncode == REFUSED:
        raise AnomalyDiffusionError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        killed = f"it was ended by signal {-done.returncode}, as the system does where memory runs out"
        said = killed if done.returncode < 0 else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise AnomalyDiffusionError(f"the plain way, {arm}: {said}; --no-plain measures ours alone")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(ARMS[sys.argv[1]](json.loads(sys.argv[2]))) + "\n")
    except AnomalyDiffusionError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(REFUSED)
