"""The rows of `benchmarks/speed.py`: what is measured for each, what is wanted, and whether it is reached."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speed_lab import Found, Lab, Rounds, gathered, ratios, spread

from anomalydiffusion.core.manifest import Manifest

OPEN_GATE = "gate = {visible = 0.0, change = 0.0, copy = 1.0, strict = 0.0}\n"
BATCH = 5  # of growing runs: divides every number of pairs, so that no batch is filled up
FLAT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the page; `met` None = nothing was wanted, or nothing could be measured."""

    what: str
    wanted: str = ""
    ours: str = ""
    plain: str = ""
    ratio: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "yes", False: "**no**", None: ""}[self.met]
        return "| " + " | ".join((self.what, self.wanted, self.ours, self.plain, self.ratio, verdict)) + " |"


def against(what: str, rounds: Rounds, plain: str, ours: str, least: float | None, also: str = "", met: bool = True) -> Line:
    """A row of two times and their ratio, which should be `least` or more; `also` and `met` of what else is wanted."""
    found = ratios(rounds, plain, ours)
    return Line(
        what=what, wanted="; ".join(filter(None, ("" if least is None else f">= {least:g}x", also))),
        ours=spread(gathered(rounds, "ours", ours), " s"), plain=spread(gathered(rounds, "plain", plain), " s"),
        ratio=spread(found, "x"), met=None if least is None else statistics.median(found) >= least and met,
    )  # fmt: skip


def call_lines(lab: Lab) -> list[Line]:
    rounds = lab.rounds("call", {"prior": lab.prior(), "dtype": lab.given.dtype, "repeat": lab.given.repeat})

    def shares(way: str, what: str) -> list[float]:
        return [100 * one[way]["gflop"] / one[way]["limit"] / statistics.median(one[way][what]) for one in rounds]

    limits = {way: spread([found[way]["limit"] for found in rounds], " GFLOP/s") for way in ("ours", "plain")}
    share, compiled = shares("ours", "call"), shares("ours", "compiled")
    warmed = spread(gathered(rounds, "ours", "compiling"), " s")
    return [
        against("one call of the denoiser, batch 1", rounds, "call", "call", 2.2),
        Line(what=f"- its share of the machine's limit ({lab.given.dtype}; plain: float32)", wanted=">= 55 %", ours=spread(share, " %"),
             plain=spread(shares("plain", "call"), " %"), met=statistics.median(share) >= 55),
        against(f"- with `--compile` (its first call takes {warmed})", rounds, "call", "compiled", 2.2),
        Line(what="- the share with `--compile`", wanted=">= 55 %", ours=spread(compiled, " %"), met=statistics.median(compiled) >= 55),
        Line(what=f"- that limit, by products of large matrices; a call is {rounds[0]['ours']['gflop']:.0f} GFLOP", **limits),
    ]  # fmt: skip


def _options(lab: Lab) -> Found:
    return {
        "prior": lab.prior(), "dtype": lab.given.dtype, "repeat": 1, "steps": 200,
        "walked": None if lab.given.whole else lab.given.plain_steps, "presets": ["default", "fast"], "batched": False,
    }  # fmt: skip


def _pairs(lab: Lab) -> Rounds:
    return lab.rounds("pair", _options(lab))


def _preset(lab: Lab, preset: str, least: float) -> list[Line]:
    rounds, what = _pairs(lab), f"one pair, `{preset}` preset"
    if preset not in rounds[0]["ours"]:
        return [Line(what=what, wanted=f">= {least:g}x", ours="no such preset yet")]
    return [
        against(what, rounds, "once", preset, least),
        against("- plain: text encoder at each step", rounds, "each", preset, None),
        against("- plain: and re-weighting, by a decoded preview at each step", rounds, "weighed", preset, None),
    ]


def pair_lines(lab: Lab) -> list[Line]:
    return _preset(lab, "default", 25)


def fast_lines(lab: Lab) -> list[Line]:
    return _preset(lab, "fast", 50)


def memory_lines(lab: Lab) -> list[Line]:
    rounds = _pairs(lab)
    held = {way: [found[way]["peak"] for found in rounds] for way in ("ours", "plain")}
    mapped = [lab.arm("pair_ours", number, {**_options(lab), "prior": lab.converted()})["peak"] for number in range(lab.given.rounds)]

    def line(what: str, ours: list[float]) -> Line:
        found = [plain / own for plain, own in zip(held["plain"], ours, strict=True)]
        return Line(what=what, wanted="<= 4.5 GB", ours=spread(ours, " GB"), plain=spread(held["plain"], " GB"), ratio=spread(found, "x"),
                    met=statistics.median(ours) <= 4.5)  # fmt: skip

    return [
        line(f"most memory while a pair is drawn, `default` preset, from files in {lab.given.dtype} (`prior convert`)", mapped),
        line("- from float32 files: they are converted when they are loaded", held["ours"]),
    ]


def _tiny(lab: Lab) -> Found:
    return {
        "prior": "tiny", "dtype": lab.given.tiny_dtype, "repeat": lab.given.repeat, "steps": 200, "walked": None, "presets": ["default"],
        "batched": True,
    }  # fmt: skip


def tiny_lines(lab: Lab) -> list[Line]:
    rounds = lab.rounds("pair", _tiny(lab))
    rate = [1 / value for value in gathered(rounds, "ours", "default")]
    return [
        against("a pair with the tiny prior, in full batches", rounds, "once", "default", 5, ">= 3 /s", statistics.median(rate) >= 3),
        Line(what="- pairs a second", ours=spread(rate), plain=spread([1 / value for value in gathered(rounds, "plain", "once")])),
    ]


def _train(lab: Lab, what: str, options: Found) -> list[Line]:
    rounds = lab.rounds("train", {**options, "repeat": lab.given.repeat})
    held = {way: spread([found[way]["peak"] for found in rounds], " GB") for way in ("ours", "plain")}
    batch = rounds[0]["ours"]["batch"]
    return [
        against(f"{what}, for each sample (ours: in batches of {batch})", rounds, "sample", "sample", 3),
        Line(what="- its memory", **held),
    ]


def train_lines(lab: Lab) -> list[Line]:
    options = {"prior": lab.prior(), "dtype": lab.given.dtype, "batch": lab.given.train_batch}
    return _train(lab, "a training step of the adapter", options)


def train_tiny_lines(lab: Lab) -> list[Line]:
    return _train(lab, "the same with the tiny prior", {"prior": "tiny", "dtype": lab.given.tiny_dtype, "batch": 0})


def lever_lines(lab: Lab) -> list[Line]:
    """What each lever gives alone: ours beside ours without it."""
    given = lab.given
    large = {"prior": lab.prior(), "repeat": given.repeat, "ways": ["default"], "networks": False}
    one = lab.arm(
        "levers_ours", 0, {**large, "dtype": given.dtype, "ways": ["default", "from noise", "remembered", "decoded"], "networks": True}
    )
    single = lab.arm("levers_ours", 1, {**large, "dtype": "float32"})
    small = {"dtype": given.tiny_dtype, "repeat": given.repeat}
    alone = lab.arm("levers_ours", 0, {**large, **small, "prior": "tiny"})
    batched = lab.arm("pair_ours", 0, _tiny(lab))
    learned = [lab.arm(arm, 0, {"prior": "tiny", "batch": 0, **small}) for arm in ("train_ours", "train_ours_plain")]
    encoded = lab.arm("train_ours", 0, {"prior": large["prior"], "dtype": given.dtype, "batch": given.train_batch, "repeat": given.repeat})
    anew = [value + (1 - encoded["share"]) * encoded["crop"] for value in encoded["sample"]]

    def line(what: str, ours: list[float], without: list[float]) -> Line:
        ratio = spread([statistics.median(without) / statistics.median(ours)], "x")
        return Line(what=f"- {what}", ours=spread(ours, " s"), plain=spread(without, " s"), ratio=ratio)

    return [
        Line(what='**one lever alone** ("plain": ours without it)'),
        line("2 of 20 steps, from a real defect on; without: all 20, from noise", one["default"], one["from noise"]),
        line("all 20 steps, inner levels at every second; without: at each", one["remembered"], one["from noise"]),
        line("re-weighting by latents; without: by images that are decoded", one["default"], one["decoded"]),
        line(f"{given.dtype}; without: float32", one["default"], single["default"]),
        line("the autoencoder's pictures pixel by pixel; without: channel by channel", one["default"], one["contiguous"]),
        line(f"--compile, after {one['compiling'][0]:.0f} s for the first pair; without: not compiled", one["compiled"], one["default"]),
        line("tiny prior, batches of 8; without: one at a time", batched["default"], alone["default"]),
        line("tiny prior, learning under the allocator's settings; without: its own", learned[0]["sample"], learned[1]["sample"]),
        line("learning from crops that are encoded once; without: at each step", encoded["sample"], anew),
    ]


def _under(what: str, seconds: list[float], most: float) -> Line:
    return Line(what=what, wanted=f"< {most:g} s", ours=spread(seconds, " s"), met=statistics.median(seconds) < most)


def help_lines(lab: Lab) -> list[Line]:
    found = []
    for number in range(lab.given.rounds):
        plain = lab.timed("imports", number, ["-c", "import torch, diffusers, transformers"])
        found.append(
            {"plain": {"seconds": [plain]}, "ours": {"seconds": [lab.timed("help", number, ["-m", "anomalydiffusion", "--help"])]}}
        )
    line = _under("`--help` (plain: everything is imported first)", gathered(found, "ours", "seconds"), 0.5)
    both = against(line.what, found, "seconds", "seconds", None)
    return [Line(what=line.what, wanted=line.wanted, ours=both.ours, plain=both.plain, ratio=both.ratio, met=line.met)]


def check_lines(lab: Lab) -> list[Line]:
    num, data = lab.given.num_images, lab.work / "images"
    lab.built("images", 0, data, {"num": num, "side": 256})
    return [_under(f"`check` on {num:,} images of 256 pixels", lab.times("check", ["-m", "anomalydiffusion", "check", data]), 10)]


def _book(lab: Lab, num: int) -> tuple[Path, Found]:
    """A run of that many pairs that no model drew, and what each cost."""
    folder = lab.work / f"book-{num}"
    return folder, lab.built("book", num, folder, {"base": str(lab.base()), "num": num, "nums": [10, 100, 1000]})


def report_lines(lab: Lab) -> list[Line]:
    folder, _ = _book(lab, lab.given.num_pairs)
    seconds = lab.times("report", ["-m", "anomalydiffusion", "report", folder])
    return [_under(f"`report` on {lab.given.num_pairs:,} pairs", seconds, 60)]


def resume_lines(lab: Lab) -> list[Line]:
    num, few = lab.given.num_pairs, 10
    seconds = {}
    for count in (num, few):
        folder, _ = _book(lab, count)
        seconds[count] = lab.times(f"resume-{count}", ["-m", "anomalydiffusion", "generate", folder, "--num", str(count), "--quiet"])
    whole = _under(f"`generate` on a finished run of {num:,} pairs", seconds[num], 5)
    return [whole, Line(what=f"- and of {few} pairs: what it costs to begin", ours=spread(seconds[few], " s"))]


def drawn(lab: Lab, num: int, number: int) -> float:
    """Seconds of each attempt, from the end of the first batch to the last, when a new run is filled with `num` pairs."""

    def make() -> Found:
        folder = lab.work / f"grow-{num}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(lab.base(), folder)
        (lab.work / "open.toml").write_text(OPEN_GATE)
        typed = [
            "-m",
            "anomalydiffusion",
            "generate",
            folder,
            "--num",
            num,
            "--batch-size",
            BATCH,
            "--config",
            lab.work / "open.toml",
            "--quiet",
        ]
        subprocess.run([sys.executable, *map(str, typed)], env=lab.plain, stdout=subprocess.DEVNULL, check=True)
        ends = sorted((folder / record["image"]).stat().st_mtime for record in Manifest(folder / "manifest.jsonl").records())
        shutil.rmtree(folder)
        return {"seconds": (ends[-1] - ends[BATCH - 1]) / (len(ends) - BATCH)}

    return lab.kept(f"grow-{num}-{number}", {"num": num}, make)["seconds"]


def grow_lines(lab: Lab) -> list[Line]:
    nums = [*lab.given.nums, *([10_000] if lab.given.whole else [])]
    found: dict[int, list[float]] = {num: [] for num in nums}
    for number in range(lab.given.rounds):
        for num in nums:
            if number == 0 or num < 1000:  # the longer, the steadier
                found[num].append(drawn(lab, num, number))
    middles = [statistics.median(values) for values in found.values()]
    apart = max(middles) / min(middles) - 1
    counts = f"{min(nums):,} to {max(nums):,}"
    lines = [Line(what=f"a pair of a run with the tiny prior, {counts} pairs: most over least", wanted=f"within {100 * FLAT:.0f} %",
                  ours=f"{100 * apart:.1f} %", met=apart <= FLAT)]  # fmt: skip
    lines += [Line(what=f"- of {num:,} pairs, one", ours=spread(values, " s")) for num, values in found.items()]
    _, book = _book(lab, lab.given.num_pairs)
    start = 0
    for stop, seconds in book["nums"].items():
        lines.append(Line(what=f"- without a model: pair {start + 1:,} to {int(stop):,}, one, median", ours=f"{1000 * seconds:.3g} ms"))
        start = int(stop)
    return lines


LINES: dict[str, Callable[[Lab], list[Line]]] = {
    "call": call_lines, "pair": pair_lines, "fast": fast_lines, "memory": memory_lines, "tiny": tiny_lines, "train": train_lines,
    "train-tiny": train_tiny_lines, "help": help_lines, "check": check_lines, "report": report_lines, "grow": grow_lines,
    "resume": resume_lines, "levers": lever_lines,
}  # fmt: skip
