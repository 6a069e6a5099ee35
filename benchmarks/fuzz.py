"""Give every reader hostile files, and count what is refused in words, what crashes, what hangs, and what is written elsewhere.

    python benchmarks/fuzz.py --minutes 60 [--reader NAME]

Each reader runs in a process of its own, for its share of the minutes. Its files are valid ones, changed (`fuzz_mutations.py`); where
atheris is installed (`pip install atheris`), it chooses what to change by the lines that are reached, without it chance does. A crash is
any exception but the package's own. Writing outside of the case's folder, starting a program, a connection, or a class that a pickle
names are seen by an audit hook, whoever does it. Writes benchmarks/results/<date>-fuzz.md; cases that crash are kept in --work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GUIDED = find_spec("atheris") is not None
LONGEST = 30  # seconds for one case, beyond which it hangs
MOST = 6 * 2**30  # bytes of address space beyond what a reader has when it starts: a bomb dies in its own process
KEPT = 5  # crashes of a reader that are shown
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind")
CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
INERT = ("torch", "collections", "numpy", "anomalydiffusion", "pytorch_lightning", "lightning")


class _Hang(BaseException):
    """A case takes too long; of no kind that a reader would catch."""


class _Watch:
    """What a case does to the machine, from the interpreter's own events; on only while a reader reads."""

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.on, self.seen = f"{allowed.resolve()}{os.sep}", False, list[str]()
        sys.addaudithook(self._event)

    def _event(self, name: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if name in PROGRAMS:
            self.seen.append(f"{name} {str(given[0])[:80]}")
        elif name == "pickle.find_class" and str(given[0]).split(".")[0] not in INERT:
            self.seen.append(f"{name} {given[0]}.{given[1]}")
        elif name in CHANGES or (name == "open" and _writes(given)):
            places = given[:2] if name == "os.rename" else given[1:2] if name in ("os.link", "os.symlink") else given[:1]
            base = given[-1] if name.startswith("os.") and isinstance(given[-1], int) and given[-1] >= 0 and len(given) > 1 else None
            for place in places:
                self._check(name, place, base)

    def _check(self, name: str, place: object, base: int | None) -> None:
        if isinstance(place, str | bytes | os.PathLike):
            above = "" if base is None or name in ("os.chmod", "os.truncate") else f"/proc/self/fd/{base}"
            path = os.path.join(os.path.realpath(above), os.fsdecode(place)) if above else os.fsdecode(place)  # noqa: PTH118
            path = os.path.abspath(path)  # noqa: PTH100  # in a hook nothing that raises events of its own
            if not f"{path}{os.sep}".startswith(self.allowed) and not path.startswith(("/dev/", "/proc/")):
                self.seen.append(f"{name} {path[:200]}")


def _writes(given: tuple[Any, ...]) -> bool:
    mode, flags = given[1], given[2]
    return any(sign in mode for sign in "wax+") if isinstance(mode, str) else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


def _place(error: BaseException) -> str:
    """An exception's kind and the line of the package that it passed last, which tells crashes apart."""
    passed = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in passed if "anomalydiffusion" in frame.filename or "fuzz_" in frame.filename]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} in {where}"


class Session:
    """One reader's cases, one after another, and what came of them."""

    def __init__(self, name: str, seconds: float, work: Path) -> None:
        from fuzz_readers import READERS

        self.mutation, seeds, self.read = READERS[name]
        self.work, self.cases = work, work / "cases"
        self.cases.mkdir(parents=True)
        self.seeds = seeds(self.cases)
        self.watch = _Watch(self.cases)
        self.until, self.count, self.refused, self.accepted = 0.0, 0, 0, 0
        self.slowest, self.largest, self.crashes, self.seconds = 0.0, 0, dict[str, list[Any]](), seconds
        for seed in self.seeds:
            self.case(seed)  # what is loaded once is no case's memory
        self.valid, self.refused, self.accepted, self.slowest, self.largest, self.count = self.accepted, 0, 0, 0.0, 0, 0

    def case(self, data: bytes) -> None:
        """Read one file; whatever comes of it is noted."""
        from anomalydiffusion.core.errors import AnomalyDiffusionError

        folder = self.cases / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        before, began, fault = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), ""
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        self.watch.seen.clear()
        self.watch.on = True
        try:
            self.read(folder, data)
            self.accepted += 1
        except AnomalyDiffusionError as error:
            self.refused += 1
            if "; " not in str(error) and ": " not in str(error):
                fault = f"a refusal without a file or a remedy: {str(error)[:100]}"
        except (Exception, _Hang) as error:  # noqa: BLE001  # this is what is looked for
            fault = _place(error)
        finally:
            self.watch.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        fault = fault or (f"did {self.watch.seen[0]}" if self.watch.seen else "")
        self.count += 1
        if (took := time.perf_counter() - began) > self.slowest:
            self.slowest = took
            (self.work / "slowest.case").write_bytes(data)
        self.largest = max(self.largest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if fault:
            found = self.crashes.setdefault(fault, [0, ""])
            found[0] += 1
            if found[0] == 1:
                found[1] = f"{hashlib.sha256(data).hexdigest()[:12]}.case"
                (self.work / found[1]).write_bytes(data)

    def summary(self) -> dict[str, Any]:
        return {
            "executions": self.count, "refused": self.refused, "accepted": self.accepted, "valid": self.valid, "slowest": self.slowest,
            "megabytes": self.largest / 1024, "crashes": self.crashes,
        }  # fmt: skip

    def run(self, seed: int) -> None:
        """Case after case until the time is up; then the process ends."""
        from fuzz_mutations import MUTATIONS

        def mutate(data: bytes, chance: random.Random) -> bytes:
            try:
                return MUTATIONS[self.mutation](data, chance)
            except RecursionError:  # it came in nested too deep to be taken apart
                return MUTATIONS["bytes"](data, chance)

        self.until = time.monotonic() + self.seconds
        if not GUIDED:
            chance = random.Random(seed)
            while time.monotonic() < self.until:
                data = mutate(chance.choice(self.seeds), chance)
                self.case(mutate(data, chance) if chance.random() < 0.3 else data)
            return
        import atheris

        corpus = self.work / "corpus"
        corpus.mkdir()
        for number, data in enumerate(self.seeds):
            (corpus / f"{number}").write_bytes(data)

        def once(data: bytes) -> None:
            self.case(data)
            if time.monotonic() > self.until:
                (self.work / "found.json").write_text(json.dumps(self.summary()))
                os._exit(0)  # libFuzzer never comes back

        def change(data: bytes, most: int, number: int) -> bytes:
            chance = random.Random(number)  # half of the cases are one step from a valid file, or damage would heap up on damage
            return mutate(data if chance.random() < 0.5 else chance.choice(self.seeds), chance)[:most]

        options = {"seed": seed, "max_len": 200_000, "rss_limit_mb": 0, "timeout": 0, "verbosity": 0}
        atheris.Setup(["fuzz", *(f"-{name}={value}" for name, value in options.items()), str(corpus)], once, custom_mutator=change)
        atheris.Fuzz()


def load() -> None:
    """Import what is tried, once for all readers; where atheris guides, it notes which lines of it are reached."""
    if not GUIDED:
        import fuzz_readers

        return
    import atheris

    floors = ("core", "data", "report", "app", "generation", "conditioning.adapter", "priors.original")
    ours = [f"anomalydiffusion.{floor}" for floor in floors]
    with atheris.instrument_imports(include=[*ours, "json", "yaml", "tomllib", "csv"]):
        import fuzz_readers  # noqa: F401


def one(name: str, seconds: float, place: Path, seed: int) -> None:
    """A reader's process."""
    with (place / "log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hangs)
    session = Session(name, seconds, place)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST, resource.RLIM_INFINITY))
    session.run(seed)
    (place / "found.json").write_text(json.dumps(session.summary()))


def _hangs(number: int, frame: object) -> None:
    raise _Hang


def measured(name: str, seconds: float, work: Path, seed: int) -> dict[str, Any]:
    """What came of a reader's cases, now or when they were run in this folder before; that its process died or hung is a crash too."""
    place = work / name.replace(" ", "-").replace("'", "")
    found = place / "found.json"
    if found.exists():
        return json.loads(found.read_text())
    shutil.rmtree(place, ignore_errors=True)  # of a process that died
    place.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=one, args=(name, seconds, place, seed))
    process.start()
    process.join(seconds + 300)
    code: int | str | None = process.exitcode
    if code is None:
        code = "no end"
        process.kill()
    if found.exists():
        return json.loads(found.read_text())
    words = f"its process ended with {code}"
    return {"executions": 0, "refused": 0, "accepted": 0, "slowest": 0, "megabytes": 0, "crashes": {words: [1, str(place / "log")]}}


def rows(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, own in found.items():
        crashes = sum(count for count, _ in own["crashes"].values())
        cells = (own["executions"], own["refused"], own["accepted"], crashes)
        yield f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + f" | {own['slowest']:.2f} | {own['megabytes']:.0f} |"


def page(found: dict[str, dict[str, Any]], typed: str) -> str:
    from pages import hardware

    how = "atheris chose the changes by the lines of the package that were reached" if GUIDED else "chance chose the changes"
    worst = {name: list(own["crashes"].items())[:KEPT] for name, own in found.items()}
    crashed = [f"- {name}: {words} ({count} times)" for name, own in worst.items() for words, (count, _) in own]
    total = sum(own["executions"] for own in found.values())
    lines = [
        "# Hostile files", "", f"    {typed}", "",
        "Each reader of the package got valid files that were changed: bytes, words, parts of other kinds, and damage under right lengths "
        "and check sums. Refused: one line that names file and remedy. Read: what was changed is no harm, or not seen. Crash: any other "
        f"exception, {LONGEST} seconds without an end, writing outside of the case's folder, starting a program, a connection, or a "
        "class built from a pickle. Memory is by how much the process's highest grew in one case.", "",
        "| reader | executions | refused | read | crashes | slowest, s | memory, MB |", "|---" * 7 + "|", *rows(found), "",
        f"{total:,} executions.", "", "## Crashes", "", *(crashed or ["none"]), "", "## Settings", "",
        f"- {how}; one process at a time", f"- {hardware()}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--reader", help="only this one; its figures are printed, the page stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where cases are made and crashing ones kept (default: a new temporary folder); "
                        "readers that were done there are not run again")  # fmt: skip
    given = parser.parse_args()
    load()
    from fuzz_readers import READERS
    from pages import save

    from anomalydiffusion.priors.load import load_prior

    load_prior("tiny")  # what the libraries do when they are imported is no case's doing
    if given.reader not in (None, *READERS):
        parser.error(f"--reader {given.reader}: known are {', '.join(READERS)}")
    names = [given.reader] if given.reader else list(READERS)
    work = (given.work or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    work.mkdir(exist_ok=True)
    typed, asked = work / "given.json", json.dumps({"seconds": 60 * given.minutes / len(names), "seed": given.seed, "guided": GUIDED})
    if typed.exists() and typed.read_text() != asked:
        parser.error(f"--work {work}: holds cases of {typed.read_text()}, not of {asked}; give a new folder")
    typed.write_text(asked)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = measured(name, 60 * given.minutes / len(names), work, given.seed)
        sys.stderr.write(f"{next(rows({name: found[name]}))}\n")
        for words, (count, case) in found[name]["crashes"].items():
            sys.stderr.write(f"    {count} x {words} ({case})\n")
    if given.reader is None:
        save("fuzz", page(found, f"python benchmarks/fuzz.py --minutes {given.minutes:g}"))
    sys.stderr.write(f"cases: {work}\n")
    return 1 if any(own["crashes"] for own in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
