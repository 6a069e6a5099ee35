"""Whether a long generation stays as it began: memory, open files and speed of many pairs, under kills of workers and of the command.

    python benchmarks/soak.py --work WORK

A small run is trained on drawn plates; then `anomalydiffusion generate --workers 2` fills it, while at random numbers of pairs a worker or
the command itself gets SIGKILL; a command that was killed is typed again. Every few seconds it is noted what the command and its workers
hold. In the end each pair must be there once, and nothing else. What was noted is kept in WORK, so that a stopped bench goes on;
benchmarks/results/<date>-soak.md is the page.

Judged is what comes after a warm-up of some pairs since the last kill or beginning, by a line through the median of all slopes
(Theil-Sen). Over all: from the first pair to the last, through all commands; in one command: slopes between samples of the same command
alone, drawn out over as many pairs. Memory is what is resident, of all processes together; what they share counts in each. Memory and
handles are flat where they grow by 5 % at most; speed is flat where it falls by that at most, or by less than can be told from chance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from faults import SHORT
from pages import hardware, save
from scipy import stats

from anomalydiffusion.core.manifest import IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, REQUESTED_MASK, fault
from anomalydiffusion.core.pixels import digest_file, encode_png
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.generation.shards import plan, slot_of

KEYS = [("plate", "hole"), ("plate", "stain")]
MOST = 0.05  # growth that still is flat
POINTS = 800  # that a line is laid through
ASKED = ("num", "size", "kills", "workers", "seed", "prior")  # what may not change when a stopped bench goes on
MEASURES = {
    "memory of all, MB": "memory",
    "memory of the command, MB": "own",
    "handles of all": "handles",
    "handles of the command": "own_handles",
}


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A line through a series: where it begins, and what it gains from its first to its last point, as shares of that."""

    first: float
    growth: float
    low: float  # of growth, with 95 % confidence
    high: float
    noise: float  # median distance from the line

    @property
    def flat(self) -> bool:
        return self.growth <= MOST

    @property
    def lasting(self) -> bool:
        """As `flat`, of what must not fall; a fall that may be chance is none."""
        return -self.growth <= MOST or self.high >= 0


def trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    """The line through a series; None where there are too few points for one."""
    if len(x) < 3 or x[-1] <= x[0]:
        return None
    every = -(-len(x) // POINTS)
    xs, ys = np.asarray(x[::every], float), np.asarray(y[::every], float)
    slope, start, low, high = stats.theilslopes(ys, xs)
    first, span = float(start + slope * xs[0]), float(xs[-1] - xs[0])
    away = float(np.median(np.abs(ys - start - slope * xs)))
    return Trend(first=first, growth=slope * span / first, low=low * span / first, high=high * span / first, noise=away / first)


def inner_growth(x: Sequence[float], y: Sequence[float], command: Sequence[int]) -> float | None:
    """The growth that slopes within each command alone amount to over all; None where no command has two points."""
    slopes = []
    for own in sorted(set(command)):
        chosen = [row for row, each in enumerate(command) if each == own]
        chosen = chosen[:: -(-len(chosen) // 200)]
        xs, ys = np.asarray(x, float)[chosen], np.asarray(y, float)[chosen]
        a, b = np.triu_indices(len(xs), 1)
        apart = xs[b] > xs[a]
        slopes.append((ys[b] - ys[a])[apart] / (xs[b] - xs[a])[apart])
    found = np.concatenate(slopes) if slopes else np.zeros(0)
    return float(np.median(found) * (x[-1] - x[0]) / np.median(y)) if found.size else None


def settled(noted: Sequence[dict[str, Any]], warm_up: int, workers: int) -> list[dict[str, Any]]:
    """The samples that are judged: of full crews, `warm_up` pairs after the last beginning or kill; each with the stretch it is of."""
    out, stretch, since = list[dict[str, Any]](), 0, 0
    for each in noted:
        if each["event"] != "sample":
            stretch, since = stretch + 1, each["pairs"]
        elif each["workers"] == workers and each["pairs"] >= since + warm_up:
            out.append({**each, "stretch": stretch})
    return out


def rates(samples: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The middle of each stretch, in pairs, and its pairs a second."""
    x, y = list[float](), list[float]()
    for own in sorted({each["stretch"] for each in samples}):
        one = [each for each in samples if each["stretch"] == own]
        made, seconds = one[-1]["pairs"] - one[0]["pairs"], one[-1]["time"] - one[0]["time"]
        if made > 0 and seconds > 0:
            x.append((one[0]["pairs"] + one[-1]["pairs"]) / 2)
            y.append(made / seconds)
    return x, y


def missing(run: Path, each: int) -> list[str]:
    """What is wrong with a run that should be full: `each` pairs of each type, once, their files and no others."""
    problems, records = list[str](), list[dict[str, Any]]()
    for number, line in enumerate((run / "manifest.jsonl").read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            problems.append(f"line {number} of the manifest is damaged")
            continue
        if wrong := fault(record):
            problems.append(f"line {number} of the manifest: {wrong}")
        else:
            records.append(record)
    attempts = Counter((slot_of(record), record["attempt"]) for record in records)
    problems += [f"attempt {attempt} at {slot} is there {count} times" for (slot, attempt), count in attempts.items() if count > 1]
    kept = Counter(slot_of(record) for record in records if record["accepted"])
    wanted = plan(KEYS, each)
    problems += [f"{slot} is there {kept[slot]} times" for slot in wanted if kept[slot] != 1]
    problems += [f"{slot} was not asked for" for slot in set(kept) - set(wanted)]
    for record in records:
        for name, sha in ((IMAGE, IMAGE_SHA256), (MASK, MASK_SHA256)):
            path = run / record[name]
            if not path.is_file() or digest_file(path) != record[sha]:
                problems.append(f"{record[name]} is missing or not what the manifest says")
    named = {record[name] for record in records for name in (IMAGE, MASK, REQUESTED_MASK)}
    there = {path.relative_to(run).as_posix() for path in (run / "generated").rglob("*") if path.is_file()}
    return problems + [f"{name} has no line, or is half written" for name in sorted(there - named)]


def write_data(folder: Path, side: int) -> Path:
    """Grey plates with sensor noise; dark holes and bright stains."""
    draw, (yy, xx) = np.random.default_rng(0), np.mgrid[:side, :side]
    for part, count in (("train/good", 8), ("test/good", 2), ("test/hole", 6), ("test/stain", 6)):
        for number in range(count):
            grey = 120 + draw.normal(0, 8, (side, side))
            if not part.endswith("good"):
                mask = np.hypot(yy - draw.uniform(0.3, 0.7) * side, xx - draw.uniform(0.3, 0.7) * side) < draw.uniform(0.06, 0.12) * side
                grey[mask] *= 0.4 if part.endswith("hole") else 1.5
                write_atomic(folder / "plate" / "ground_truth" / part.split("/")[1] / f"{number}_mask.png", encode_png(mask))
            image = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
            write_atomic(folder / "plate" / part / f"{number}.png", encode_png(image))
    return folder


def trained(work: Path, given: argparse.Namespace) -> Path:
    """A run that has learned for two steps."""
    run = work / "run"
    if not (run / "adapter" / "adapter.safetensors").exists():
        shutil.rmtree(run, ignore_errors=True)
        (work / "config.toml").write_text(SHORT)
        data = write_data(work / "data", given.size)
        typed = [sys.executable, "-m", "anomalydiffusion", "train", data, "--output", run, "--prior", given.prior, "--config",
                 work / "config.toml", "--max-train-steps", "2", "--seed", given.seed, "--quiet"]  # fmt: skip
        subprocess.run([str(word) for word in typed], check=True)
    return run


class Log:
    """What was noted, line by line in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, list[dict[str, Any]]()
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):
                self.lines.append(json.loads(line))

    def note(self, event: str, **said: Any) -> None:
        self.lines.append({"event": event, "time": time.time(), **said})
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")

    def count(self, event: str) -> int:
        return sum(each["event"] == event for each in self.lines)


class Lines:
    """Counts a growing file's lines, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.count = path, 0, 0

    def __call__(self) -> int:
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < self.size:  # written anew
            self.size = self.count = 0
        if there > self.size:
            with self.path.open("rb") as file:
                file.seek(self.size)
                read = file.read(there - self.size)
            self.size, self.count = self.size + len(read), self.count + read.count(b"\n")
        return self.count


def crew(command: int) -> list[psutil.Process]:
    """A command's worker processes."""
    found = []
    for process in psutil.Process(command).children(recursive=True):
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
    return found


def held(command: int) -> dict[str, Any]:
    """What a command and its workers hold now: resident megabytes, open handles, and how many workers there are."""
    own = psutil.Process(command)
    tree = [own, *own.children(recursive=True)]
    memory, handles = [each.memory_info().rss / 2**20 for each in tree], [each.num_fds() for each in tree]
    return {"memory": sum(memory), "own": memory[0], "handles": sum(handles), "own_handles": handles[0], "workers": len(crew(command))}


def schedule(given: argparse.Namespace) -> list[tuple[int, str]]:
    """At how many pairs what is killed: by turns, at random, a worker and the command."""
    draw = random.Random(given.seed)
    return [(at, ("worker", "command")[number % 2]) for number, at in enumerate(sorted(draw.sample(range(1, given.num), given.kills)))]


def fill(run: Path, given: argparse.Namespace, log: Log) -> None:
    """Type the command until it ends by itself, disturbing it."""
    kills, draw, lines = schedule(given), random.Random(f"{given.seed} workers"), Lines(run / "manifest.jsonl")
    typed = [
        sys.executable,
        "-m",
        "anomalydiffusion",
        "generate",
        run,
        "--num",
        given.num // len(KEYS),
        "--workers",
        given.workers,
        "--quiet",
    ]
    while True:
        log.note("begin", pairs=lines(), command=log.count("begin") + 1)
        with (given.work / "said.txt").open("wb") as said:
            process = subprocess.Popen([str(word) for word in typed], stdout=said, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(given.every)
                with suppress(psutil.Error, OSError):
                    log.note("sample", pairs=lines(), command=log.count("begin"), **held(process.pid))
                if log.count("kill") < len(kills) and lines() >= kills[log.count("kill")][0]:
                    strike(process.pid, kills[log.count("kill")][1], draw, log, lines())
                sys.stderr.write(
                    f"\r{lines()} of {given.num} pairs, {log.count('kill')} of {len(kills)} kills, {log.count('begin')} commands "
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode == 0:
            log.note("end", pairs=lines())
            return
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the command ended with {process.returncode}: {(given.work / 'said.txt').read_text()[-500:]}")


def strike(command: int, what: str, draw: random.Random, log: Log, pairs: int) -> None:
    """Kill the command, or one of its workers if it has any by now."""
    with suppress(psutil.Error, ProcessLookupError):
        found = [command] if what == "command" else [each.pid for each in crew(command)]
        if found:
            os.kill(draw.choice(found), signal.SIGKILL)
            log.note("kill", pairs=pairs, what=what)


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def page(log: Log, given: argparse.Namespace, problems: Sequence[str], typed: str) -> tuple[str, bool]:
    """The page, and whether all is flat."""
    samples = settled(log.lines, given.warm_up, given.workers)
    x, command = [each["pairs"] for each in samples], [each["command"] for each in samples]
    rows, fine = list[str](), True
    found: list[tuple[str, Trend | None, float | None, bool]] = []
    for name, key in MEASURES.items():
        y = [each[key] for each in samples]
        line = trend(x, y)
        found.append((name, line, inner_growth(x, y, command) if y else None, line is not None and line.flat))
    speed = trend(*rates(samples))
    found.append(("pairs a second", speed, None, speed is not None and speed.lasting))
    for name, line, inner, flat in found:
        fine = fine and flat
        figures = ["-", "-", share(inner), "-"]
        if line is not None:
            over = f"{share(line.growth)} [{share(line.low)}, {share(line.high)}]"
            figures = [f"{line.first:.4g}", over, share(inner), share(line.noise)[1:]]
        rows.append("| " + " | ".join([name, *figures, "too few points" if line is None else "yes" if flat else "**no**"]) + " |")
    killed = Counter(each["what"] for each in log.lines if each["event"] == "kill")
    # what passed while the bench itself was stopped is no work
    spans = [after["time"] - before["time"] for before, after in pairwise(log.lines) if after["event"] != "begin"]
    lines = [
        "# Soak", "", f"    {typed}", "",
        f"{given.num:,} pairs of {given.size} x {given.size} pixels with the prior {given.prior}, by {given.workers} workers, in "
        f"{sum(spans) / 3600:.1f} hours; {killed['worker']} workers and {killed['command']} commands were killed, {log.count('begin')} "
        f"commands typed. {len(samples)} of {log.count('sample')} samples are judged: {given.warm_up} pairs after the last kill or "
        "beginning, with all workers.",
        "", "| what | at first | growth over all [95 %] | growth in one command | noise | flat |", "|---|---|---|---|---|---|", *rows, "",
        f"Missing, double, damaged or left over: {len(problems)}.", *(f"- {each}" for each in problems[:20]),
        "", "## Settings", "", f"- {hardware()}",
        f"- what the machine had to do in the last quarter of an hour, this included: load {os.getloadavg()[2]:.1f}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n", fine


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num", type=int, default=20_000, help="pairs, half of each of two defect types")
    parser.add_argument("--size", type=int, default=64, help="pixels: side of the images")
    parser.add_argument("--kills", type=int, default=40, help="half of workers, half of the command")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--warm-up", type=int, default=100, help="pairs after a kill or a beginning that are not judged")
    parser.add_argument("--no-page", dest="page", action="store_false", help="only try: print it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the command does not outlive the bench
    if given.num % len(KEYS) or not 0 <= given.kills < given.num:
        parser.error(f"--num: a multiple of {len(KEYS)}; --kills: fewer than pairs")
    given.work.mkdir(parents=True, exist_ok=True)
    asked, kept = {name: getattr(given, name) for name in ASKED}, given.work / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != asked:
        parser.error(f"{given.work}: a soak with other settings is there; give another --work")
    write_atomic(kept, json.dumps(asked).encode())
    run, log = trained(given.work, given), Log(given.work / "soak.jsonl")
    if not log.count("end"):
        fill(run, given, log)
        sys.stderr.write("\n")
    problems = missing(run, given.num // len(KEYS))
    typed = " ".join(
        [
            "python benchmarks/soak.py --work WORK",
            *(f"--{name} {value}" for name, value in asked.items() if value != parser.get_default(name)),
        ]
    )
    text, fine = page(log, given, problems, typed)
    if given.page:
        save("soak", text)
    sys.stdout.write(text)
    return int(bool(problems) or not fine)


if __name__ == "__main__":
    raise SystemExit(main())
