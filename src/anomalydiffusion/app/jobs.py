"""Long commands, of a run and of a device one at a time and the others in line, each in a process of its own that outlives the page."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from anomalydiffusion.core.errors import BusyError, RunError
from anomalydiffusion.core.runs import hold, write_atomic

__all__ = ["Job", "Jobs", "Line"]

log = logging.getLogger(__name__)

TAIL = 12  # lines of a command's output that are shown
PAST = 8  # commands that have ended and are still shown
BUSY = "a studio of another run has work under way on this machine's devices; wait for it or stop it"
EVERY = 1.0  # seconds between looks at whether the next one can begin
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
    def failed(self) -> bool:
        """Whether it came to another end than its own or that of an interrupt, however early."""
        return self.code not in (None, 0, 130, -signal.SIGINT)

    @property
    def says(self) -> str:
        """Its state in a few words."""
        if self.running:
            return f"running: {' '.join(self.words)}"
        ended = "failed" if self.failed else {None: "ended", 0: "done"}.get(self.code, "stopped; start it again to go on")
        ended += f" (exit {self.code})" if self.failed else ""
        return f"{ended}: {' '.join(self.words)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Commands that wait in their order, and what those before the present one came to; while it is `held`, none begins."""

    held: bool = False
    waiting: tuple[tuple[str, ...], ...] = ()
    past: tuple[str, ...] = ()


class Jobs:
    """The commands of one folder; what runs, what it prints and what waits is noted there, so that another page sees it too."""

    def __init__(self, folder: Path) -> None:
        self.note, self.log, self.file = folder / "job.json", folder / "job.log", folder / "line.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.one = threading.Lock()

    def start(self, words: Sequence[str]) -> Job:
        """Start `anomalydiffusion WORDS`. Raises `RunError` while another one runs: of this folder, or of another on the same devices."""
        with self.one:
            return self._start(words)

    def add(self, words: Sequence[str]) -> None:
        """Put `anomalydiffusion WORDS` at the end of the line, where it does not stand there yet, and let the line go on.

        Raises `RunError` where just this is running.
        """
        with self.one:
            if (now := self.state()) is not None and now.running and now.words == tuple(words):
                raise RunError(f"'{' '.join(words)}' is running already")
            line = self.line()
            new = () if tuple(words) in line.waiting else (tuple(words),)
            self._write(Line(waiting=(*line.waiting, *new), past=line.past))
            self._turn_if_free()

    def pause(self, patience: float = 20.0) -> None:
        """Interrupt the running command as `stop` does; it stays first in line, and none begins until `go_on` or `add`."""
        with self.one:
            now, line = self.state(), self.line()
            again = (now.words,) if now is not None and now.running else ()
            self._write(Line(held=True, waiting=(*again, *line.waiting), past=line.past))
        after = self.stop(patience)
        if again and after is not None and after.code == 0:  # it came to its end
            with self.one:
                line = self.line()
                self._write(Line(held=line.held, waiting=line.waiting[1:] if line.waiting[:1] == again else line.waiting, past=line.past))

    def go_on(self) -> None:
        """Let the line go on after `pause` or `stop`."""
        with self.one:
            line = self.line()
            self._write(Line(waiting=line.waiting, past=line.past))
            self._turn_if_free()

    def clear(self) -> None:
        """Take out of the line what waits; what runs goes on."""
        with self.one:
            self._write(Line(past=self.line().past))

    def line(self) -> Line:
        """What waits; an empty line where nothing was noted, or nothing readable."""
        try:
            noted = json.loads(self.file.read_text(encoding="utf-8"))
            waiting = tuple(tuple(map(str, words)) for words in noted["waiting"] if isinstance(words, list))
            return Line(held=bool(noted["held"]), waiting=waiting, past=tuple(map(str, noted["past"])))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return Line()

    def says(self) -> str:
        """What is being done, and how many wait, in a line."""
        with self.one:  # between two writes one command would be seen twice
            now, line = self.state(), self.line()
        more = f"; {len(line.waiting)} in line{', held until you press Go on' if line.held else ''}" if line.waiting else ""
        return f"{now.says if now else 'nothing runs'}{more}"

    def prints(self) -> str:
        """The last of what the command prints, or printed."""
        return "\n".join(now.lines) if (now := self.state()) else ""

    def rows(self) -> list[list[str]]:
        """(state, command) of what has ended, runs and waits, in this order."""
        with self.one:
            now, line = self.state(), self.line()
        word = "held" if line.held else "waits"
        states = [*line.past, *([now.says] if now else []), *(f"{word}: {' '.join(words)}" for words in line.waiting)]
        return [list(each.partition(": ")[::2]) for each in states]

    @contextmanager
    def tended(self) -> Iterator[None]:
        """While this lasts, the next in line begins when a command has ended, whether a page is open or not.

        What waits already is held until somebody says `go_on`: the folder may be another's, and its line too.
        """
        with self.one:
            if (line := self.line()).waiting:
                self._write(Line(held=True, waiting=line.waiting, past=line.past))
        over = threading.Event()

        def tend() -> None:
            said = ""
            while not over.wait(EVERY):
                try:
                    with self.one:
                        self._turn()
                    said = ""
                except (OSError, RunError) as error:
                    if str(error) != said:
                        log.warning("%s; the next in line waits", error)
                    said = str(error)

        thread = threading.Thread(target=tend, name="line of jobs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _turn(self, asked: bool = False) -> None:
        """Begin the first in line where nothing runs; unless somebody `asked` for it, what follows on a failure is held: it may need it."""
        line, now = self.line(), self.state()
        if line.held or not line.waiting or (now is not None and now.running):
            return
        if now is not None and now.failed and not asked:
            self._write(Line(held=True, waiting=line.waiting, past=line.past))
            return
        self._start(line.waiting[0])
        line = self.line()
        self._write(Line(waiting=line.waiting[1:], past=line.past))  # killed in between, it runs again and finds all done

    def _turn_if_free(self) -> None:
        """The same; where another run's studio has the devices, what waits goes on waiting."""
        with suppress(BusyError):
            self._turn(asked=True)

    def _write(self, line: Line) -> None:
        write_atomic(self.file, json.dumps(asdict(line)).encode())

    def refuse(self) -> None:
        """Raises `RunError` while a command runs."""
        if (now := self.state()) is not None and now.running:
            raise RunError(f"'{' '.join(now.words)}' is still running; wait for it or stop it")

    def refuse_busy(self) -> None:
        """Raises `RunError` while a command runs, of this folder or of another on the same devices."""
        self.refuse()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with hold(_devices(self.log.parent), BUSY):
            pass

    def _start(self, words: Sequence[str]) -> Job:
        self.refuse()
        if (before := self.state()) is not None:
            line, last = self.line(), before.lines[-1:] if before.failed else ()
            self._write(Line(held=line.held, waiting=line.waiting, past=(*line.past, ": ".join((before.says, *last)))[-PAST:]))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with hold(_devices(self.log.parent), BUSY) as lock, self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", BEGIN, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
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
        """Interrupt the running command, which then saves its state, and wait for its end; what waits is held until `go_on` or `add`.

        Raises `RunError` where it has not ended after `patience` seconds.
        """
        if (now := self.state()) is None or not now.running:
            return now
        with self.one:
            if (line := self.line()).waiting:
                self._write(Line(held=True, waiting=line.waiting, past=line.past))
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
    if not Path("/proc/self/stat").is_file():  # macOS
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.3f}"
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
