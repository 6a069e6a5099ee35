"""Say how far long work is and how long it still takes: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "bar", "say"]

_console = Console(stderr=True, highlight=False, markup=False, emoji=False)
LINE_EVERY = 15.0  # seconds between plain lines


class Bar:
    """One piece of work of a known size."""

    def __init__(self, what: str, total: int, progress: Progress | None, quiet: bool) -> None:
        self.what, self.total, self.progress, self.quiet = what, total, progress, quiet
        self.task = progress.add_task(what, total=total, note="") if progress else None
        self.began = self.last = time.monotonic()
        self.first: int | None = None

    def at(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        rate = (done - self.first) / max(now - self.began, 1e-9)
        text = f"{rate:.1f}/s {note}" if rate > 0 else note
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, note=text)
        elif not self.quiet and (now - self.last > LINE_EVERY or done == self.total):
            self.last = now
            left = (self.total - done) / rate if rate > 0 else 0.0
            text = f"{text}, {timedelta(seconds=round(left))} left" if left > LINE_EVERY else text
            _console.print(f"{self.what}: {done}/{self.total} {text}".rstrip(), soft_wrap=True)


@contextmanager
def bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Bar]:
    """Show a bar for the time of the block."""
    if quiet or not _console.is_terminal:
        yield Bar(what, total, None, quiet)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=_console) as progress:
        yield Bar(what, total, progress, quiet)


def say(text: str, *, quiet: bool = False) -> None:
    """One line on stderr, unless quiet."""
    if not quiet:
        _console.print(text, soft_wrap=True)
