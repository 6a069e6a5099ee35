"""The pages of results: where they lie, how each is written, and what it says of the machine and of what was typed."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

from anomalydiffusion.core.runs import write_atomic

__all__ = ["RESULTS", "as_typed", "hardware", "save"]

RESULTS = Path(__file__).parent / "results"
TODAY = datetime.date.today().isoformat()  # of a benchmark that runs past midnight, the day on which it began


def hardware() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def as_typed(**places: Path | None) -> str:
    """This command as it was typed, with names in place of paths: `DATA=given.data`."""
    names = {str(path): name for name, path in places.items() if path is not None}

    def named(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return option + equals + names.get(str(Path(value)), value)

    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *map(named, sys.argv[1:])])


def save(name: str, text: str, folder: Path = RESULTS, *, partly: bool = False) -> None:
    """Write today's page of this name, whole or not at all, and say where; one that is to be written again soon, `partly`, in silence."""
    target = folder / f"{TODAY}-{name}.md"
    write_atomic(target, text.encode())
    if not partly:
        sys.stdout.write(f"{target}\n")
