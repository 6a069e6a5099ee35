"""Names of everything on disk; writes that are whole or absent."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import BusyError, RunError
from anomalydiffusion.core.formats import check_format, refuse_newer
from anomalydiffusion.core.version import __version__

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Run", "hold", "make_folder", "replace_folder", "sync_folder", "write_atomic"]


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: what was made or renamed there outlasts a power cut. Nothing where that cannot be."""
    with suppress(OSError):  # Windows has no handles on folders, some network file systems cannot sync them
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that lack, each one's name on the disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, whole or piece by piece, to `path` through a temporary file beside it, synced and renamed.

    It is never half there, and there when this returns.
    """
    make_folder(path.parent)
    name = path.parent / f".part-{secrets.token_hex(4)}{path.suffix}"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)  # less what the user's umask takes
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        name.replace(path)
        sync_folder(path.parent)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Hand out an empty folder that takes the place of `path` when the block ends well, and vanishes when it does not.

    What was put into it is on the disk before it takes that place. Two renames swap new and old, so that even a killed
    process leaves a whole folder: at `path`, or for the moment between the renames beside it, whence the next call for
    `path` puts it back. That call also sweeps what a killed one left half built or half deleted, but not what a living one
    is still building. Where `path` is a link, the folder that it points to is replaced.
    """
    path = path.resolve()
    if path.is_dir() and (path.is_mount() or _holds_us(path)):
        raise RunError(f"{path}: something is mounted there, or it is where you are, so it cannot be replaced; name a new folder inside it")
    make_folder(path.parent)
    _recover(path)
    part = path.parent / f".part-{path.name}-{secrets.token_hex(4)}"
    part.mkdir()
    aside = part.with_name(".old" + part.name.removeprefix(".part"))
    try:
        with _alive(part):
            yield part
            _sync(part)
            if path.is_dir():
                path.rename(aside)
            part.rename(path)
            sync_folder(path.parent)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _holds_us(folder: Path) -> bool:
    """Whether this process works in a folder or below it: the shell that began it would lose its place."""
    with suppress(OSError):  # it is gone already
        return Path.cwd().is_relative_to(folder)
    return False


def _sync(folder: Path) -> None:
    """Bring all that lies in a folder to the disk. Raises `OSError` where a file does not get there."""
    for above, _, names in os.walk(folder):
        for path in (Path(above) / name for name in names):
            if not path.is_symlink():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(Path(above))


def _left(path: Path, kind: str) -> list[Path]:
    """The folders that calls for `path` made beside it, and no neighbour's; the one renamed last comes last."""
    name = re.compile(re.escape(f".{kind}-{path.name}-") + "[a-z0-9_]{8}")  # of earlier versions too
    found = [each for each in path.parent.iterdir() if name.fullmatch(each.name) and each.is_dir()]
    return sorted(found, key=lambda each: each.stat().st_ctime_ns)


def _recover(path: Path) -> None:
    """Put back the last whole folder where a killed call left none at `path`, then sweep what killed calls left."""
    aside = _left(path, "old")
    if aside and not path.exists():
        aside.pop().rename(path)
    for folder in [*aside, *(part for part in _left(path, "part") if _is_dead(part))]:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that falls with its process; nothing happens where there are no such locks."""
    handle = -1
    with suppress(OSError):
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _is_dead(folder: Path) -> bool:
    """Whether surely no process holds the folder; where that cannot be told, it may be alive."""
    with suppress(OSError):
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(handle)
            return True
    return False


class Run:
    """One run folder: what lies where, and `run.json`. Build it with `create` or `open`."""

    FORMAT = 2  # 1: masks had no sources
    OLDEST = 2  # what is still opened; tests/fixtures keeps one run of each format from here on

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record
        self.config = folder / "config.toml"
        self.split = folder / "split.json"
        self.adapter = folder / "adapter" / "adapter.safetensors"
        self.mask_adapter = folder / "adapter" / "masks.safetensors"
        self.checkpoints = folder / "checkpoints"
        self.mask_checkpoints = folder / "checkpoints" / "masks"
        self.manifest = folder / "manifest.jsonl"
        self.train_log = folder / "train_log.jsonl"
        self.mask_log = folder / "mask_log.jsonl"
        self.previews = folder / "previews"  # what was drawn while it learned
        self.scores = folder / "scores.json"
        self.evaluation = folder / "evaluation"
        self.masks = folder / "masks"
        self.limits = folder / "gate.json"
        self.prior = folder / "prior"  # where the run's own normal images were learned first
        self.prior_sheet = folder / "prior.png"

    @classmethod
    def create(cls, folder: Path, **facts: Any) -> Run:
        """Begin a run, or go on with the one that is there. Raises `RunError` when the folder cannot be written."""
        if (folder / "run.json").exists():
            run = cls.open(folder)
        else:
            if folder.exists() and not folder.is_dir():
                raise RunError(f"{folder}: a file of this name is in the way; give another --output")
            run = cls(folder, {"format": cls.FORMAT, "version": __version__, "commands": [], "created": _now()})
            for mine in (run.adapter.parent, run.checkpoints, run.split, run.config, run.manifest):
                if mine.exists():
                    raise RunError(f"{folder}: is no run (run.json is missing) but holds {mine.name}; give another --output")
        try:
            run.update(**facts)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror}); give another --output or make room") from error
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open the run in `folder`. Raises `RunError` when there is none, or a newer or much earlier version made it."""
        try:
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"{folder}: no run here (run.json is missing); 'anomalydiffusion train DATA --output {folder}' makes one"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{folder / 'run.json'}: cannot be read ({error}); restore it, or train again into another folder") from error
        if not isinstance(record, dict) or not isinstance(record.get("format"), int):
            raise RunError(f"{folder / 'run.json'}: not a run's record; restore it, or train again into another folder")
        check_format(folder, record, reads=cls.FORMAT, oldest=cls.OLDEST, anew="train again into another folder")
        if not isinstance(lines := record.get("commands", []), list) or not all(isinstance(line, str) for line in lines):
            raise RunError(f"{folder / 'run.json'}: its commands are no list of lines; restore it, or train again into another folder")
        return cls(folder, record)

    @classmethod
    def refuse_newer(cls, folder: Path) -> None:
        """Raises `RunError` where a later version made the run; a folder without a readable run.json is let pass.

        For what reads pairs alone, and so pairs of any earlier format and those of other tools.
        """
        with suppress(OSError, ValueError):
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if isinstance(record, dict):
                refuse_newer(folder, record, cls.FORMAT)

    def update(self, *, command: str | None = None, **facts: Any) -> None:
        """Note facts in run.json, and a command line if it is a new one."""
        commands = list(self.record.get("commands", []))
        if command and command not in commands:
            commands.append(command)
        self.record = {**self.record, **facts, "commands": commands, "updated": _now()}
        write_atomic(self.folder / "run.json", (json.dumps(self.record, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the run for one command; the lock falls with its process. Raises `RunError` when another holds it.

        `shared`: with others that share it, but with none that wants it for itself.
        """
        with hold(self.folder / ".lock", f"{self.folder}: another command is working on this run; wait for it or stop it", shared=shared):
            yield


@contextmanager
def hold(path: Path, held: str, *, shared: bool = False) -> Iterator[int]:
    """Hold the lock file `path` for the time of the block; it falls with its process. Raises `BusyError`, `held`, when another holds it.

    `shared` ones hold it together, but not beside one that is not. Yields the file's number: a process that is begun with it holds the
    lock too, until it ends.
    """
    with path.open("w") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(held) from error
        yield handle.fileno()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
