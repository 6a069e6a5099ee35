"""One long command at a time, of a run and of a device, in a process of its own, which outlives the page that started it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.runs import hold, write_atomic

__all__ = ["Job", "Jobs"]

TAIL = 12  # lines of a command's output that are shown
# In a script's background an interrupt is ignored, and children inherit that: a command must hear it, to save its state.
BEGIN = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, '-P', '-m', 'anomalydiffusion', *sys.argv[1:]])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command that was started; `code` is None while it runs, and where nobody saw it end."""

    words: tuple[str, ...]
    running: bool
    code: int | None
    lines: tuple[str, ...]  # the last of what it printed

    @property
    def says(self) -> str:
        """Its state in a few words."""
        if self.running:
            return f"running: {' '.join(self.words)}"
        ended = {None: "ended", 0: "done", 130: "stopped; start it again to go on"}.get(self.code, f"failed (exit {self.code})")
        return f"{ended}: {' '.join(self.words)}"


class Jobs:
    """The commands of one folder; what runs and what it prints is noted there, so that another page sees it too."""

    def __init__(self, folder: Path) -> None:
        self.note, self.log = folder / "job.json", folder / "job.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.one = threading.Lock()

    def start(self, words: Sequence[str]) -> Job:
        """Start `anomalydiffusion WORDS`. Raises `RunError` while another one runs: of this folder, or of another on the same devices."""
        with self.one:
            return self._start(words)

    def refuse(self) -> None:
        """Raises `RunError` while a command runs."""
        if (now := self.state()) is not None and now.running:
            raise RunError(f"'{' '.join(now.words)}' is still running; wait for it or stop it")

    def _start(self, words: Sequence[str]) -> Job:
        self.refuse()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        busy = "a studio of another run has work under way on this machine's devices; wait for it or stop it"
        with hold(_devices(self.log.parent), busy) as lock, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", BEGIN, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(lock,) if os.name == "posix" else (),  # it holds the lock on, until it ends
            )  # fmt: skip
        write_atomic(self.note, json.dumps({"pid": self.process.pid, "words": list(words), "began": _began(self.process.pid)}).encode())
        return self.state() or Job(words=tuple(words), running=False, code=None, lines=())

    def state(self) -> Job | None:
        """The last command, whoever started it; None where there was none."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            pid, words, began = int(noted["pid"]), tuple(map(str, noted["words"])), noted["began"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None
        code = self.process.poll() if self.process is not None and self.process.pid == pid else None
        own = self.process is not None and self.process.pid == pid
        running = code is None if own else began is not None and _began(pid) == began
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:] if self.log.is_file() else []
        return Job(words=words, running=running, code=code, lines=tuple(lines))

    def stop(self, patience: float = 20.0) -> Job | None:
        """Interrupt the running command, which then saves its state, and wait for its end.

        Raises `RunError` where it has not ended after `patience` seconds.
        """
        if (now := self.state()) is None or not now.running:
            return now
        pid = int(json.loads(self.note.read_text(encoding="utf-8"))["pid"])
        os.kill(pid, signal.SIGINT)
        until = time.monotonic() + patience
        while time.monotonic() < until and (now := self.state()) is not None and now.running:
            time.sleep(0.1)
        if now is not None and now.running:
            raise RunError(f"'{' '.join(now.words)}' has not stopped yet; it ends when its step is done")
        return self.state()


def _devices(own: Path) -> Path:
    """The lock file of the devices that this user's commands see; in the folder `own` where there is no place for the user's files."""
    seen = hashlib.sha256(os.environ.get("CUDA_VISIBLE_DEVICES", "all").encode()).hexdigest()[:8]
    with suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anomalydiffusion"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder / f"devices-{seen}.lock"
    return own / "devices.lock"


def _began(pid: int) -> str | None:
    """When a living process began, in the kernel's count, which tells it from a later one of the same number; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
