"""Processes that measure, one after the other and each under its own settings; what they found is kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anomalydiffusion
from anomalydiffusion.app.main import ALLOCATOR
from downstream import kept

Found = dict[str, Any]
Rounds = list[dict[str, Found]]  # of each round what "plain" and "ours" measured
HERE = Path(__file__).parent


def code() -> str:
    """A digest of everything that is measured."""
    files = [*sorted(Path(anomalydiffusion.__file__).parent.rglob("*.py")), HERE / "speed_arms.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Lab:
    """Processes that measure, and what they found."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.work = given, given.work.resolve()
        self.measured = self.work / "measured"
        versions = {name: version(name) for name in ("torch", "diffusers")}
        self.same = {"code": code(), "threads": os.environ.get("OMP_NUM_THREADS", ""), **versions}
        self.plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
        self.loads: list[float] = []

    def kept(self, name: str, options: Found, make: Callable[[], Found]) -> Found:
        def loaded() -> Found:
            before = os.getloadavg()[0]
            found = {"load": before, **make()}
            sys.stderr.write(f"{name}: {json.dumps({key: value for key, value in found.items() if key != 'parts'})}\n")
            return found

        found = kept(self.measured / f"{name}.json", {**self.same, **options}, loaded)
        self.loads.append(found["load"])
        return found

    def _file(self, name: str, number: int, options: Found) -> Path:
        prior = Path(options.get("prior", "").replace(":", "-")).name
        return self.measured / f"{name}-{prior}-{number}.json"

    def arm(self, name: str, number: int, options: Found) -> Found:
        """What a process found; ours have the allocator's settings, as the command line gives itself."""
        typed = [sys.executable, HERE / "speed.py", "--work", str(self.work), "--arm", name, "--options", json.dumps(options)]
        environment = self.plain if name.endswith("_plain") else {**self.plain, **ALLOCATOR}

        def make() -> Found:
            done = subprocess.run([*map(str, typed)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        return self.kept(self._file(name, number, options).stem, options, make)

    def rounds(self, kind: str, options: Found) -> Rounds:
        """The plain way and ours, in turn."""
        return [{way: self.arm(f"{kind}_{way}", number, options) for way in ("plain", "ours")} for number in range(self.given.rounds)]

    def timed(self, name: str, number: int, words: Sequence[str | Path]) -> float:
        """Seconds of a whole process, as a user types it; the first is not counted."""

        def once() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *map(str, words)], env=self.plain, stdout=subprocess.DEVNULL, check=True)
            return time.perf_counter() - began

        def make() -> Found:
            if number == 0:
                once()
            return {"seconds": once()}

        return self.kept(f"{name}-{number}", {"words": list(map(str, words))}, make)["seconds"]

    def times(self, name: str, words: Sequence[str | Path]) -> list[float]:
        return [self.timed(name, number, words) for number in range(self.given.rounds)]

    def built(self, name: str, number: int, folder: Path, options: Found) -> Found:
        """What a process found that made a folder; it is made again where it is gone."""
        options = {"folder": str(folder), **options}
        if not folder.is_dir():
            self._file(name, number, options).unlink(missing_ok=True)
        return self.arm(name, number, options)

    def prior(self) -> str:
        """The prior of the paper's size: one with random weights is first saved, to be loaded like another."""
        if not self.given.prior.startswith("random:"):
            return self.given.prior
        folder = self.work / "prior"
        self.built("saved", 0, folder, {"prior": self.given.prior})
        return str(folder)

    def converted(self) -> str:
        """The same prior as a user converts it to the precision that it is used in: its files are mapped, and nothing is copied."""
        folder = self.work / f"prior-{self.given.dtype}"
        if not folder.is_dir():
            typed = ["-m", "anomalydiffusion", "prior", "convert", self.prior(), "--output", folder, "--dtype", self.given.dtype]
            subprocess.run([sys.executable, *map(str, typed)], env=self.plain, stdout=subprocess.DEVNULL, check=True)
        return str(folder)

    def base(self) -> Path:
        """A run that has learned for a few steps, to be copied."""
        folder = self.work / "base"
        self.built("base", 0, folder, {})
        return folder / "run"


def spread(values: Sequence[float], unit: str = "", digits: int = 3) -> str:
    """Median, least and most."""
    figures = [f"{value:.{digits}g}" for value in (statistics.median(values), min(values), max(values))]
    return f"{figures[0]}{unit} [{figures[1]}, {figures[2]}]" if len(values) > 1 else f"{figures[0]}{unit}"


def gathered(rounds: Rounds, way: str, name: str) -> list[float]:
    """Every figure of that name, of all rounds."""
    return [value for found in rounds for value in found[way][name]]


def ratios(rounds: Rounds, plain: str, ours: str) -> list[float]:
    """How many times longer the plain way took, in each round."""
    return [statistics.median(found["plain"][plain]) / statistics.median(found["ours"][ours]) for found in rounds]
