"""A copy of a run's pairs elsewhere, made while they are drawn: in a folder, or in a store that fsspec reaches, such as s3://bucket/tiles."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import Any

from anomalydiffusion.core.errors import ConfigError, GenerationError, RunError
from anomalydiffusion.core.manifest import IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, REQUESTED_MASK, Manifest
from anomalydiffusion.core.names import is_below
from anomalydiffusion.core.runs import Run

__all__ = ["Mirror"]

AT_ONCE, WAITING = 8, 64  # pairs on their way, and those that wait to be
TRIES = 3  # looks at a place, a second apart, that another shard may be just beginning
SAME = ("created", "split_digest", "prior_digest")  # what tells runs apart
BESIDE = ("config.toml", "split.json", "gate.json", "adapter/*.safetensors", "settings/*.toml")  # what pairs were drawn with
MANIFEST, RECORD, COPIED = "manifest.jsonl", "run.json", ".copied-"
Named = tuple[str, str, str, str, str]  # image and its SHA-256, mask and its SHA-256, requested mask


def _named(record: Mapping[str, Any]) -> Named:
    return record[IMAGE], record[IMAGE_SHA256], record[MASK], record[MASK_SHA256], record[REQUESTED_MASK]


def _files(pair: Named) -> set[str]:
    return {pair[0], pair[2], pair[4]}


class Mirror:
    """What a run's manifest names, and what it was drawn with, at `place` too; a pair is there when the manifest there names it.

    Pairs are copied beside the drawing. Those that are there are not copied again: the manifest there says so, and where a command or a
    shard ended before that was written, the list of what it had copied. Raises `ConfigError` on a place that cannot be used, `RunError`
    on one that holds anything but an earlier copy of this run, which a copy of the run's folder counts as too.
    """

    def __init__(self, run: Run, place: str) -> None:
        from fsspec.core import url_to_fs

        self.run, self.place = run, place
        try:
            self.store, root = url_to_fs(place)
        except Exception as error:  # whatever a store raises, the user needs the same advice
            raise ConfigError(f"--mirror {place}: cannot be used ({_said(error)}); give a folder, or a URL that fsspec knows") from error
        self.root = root.rstrip("/")
        self._refuse_itself()
        try:
            self.copied = set(self._begin())
        except RunError:
            raise
        except Exception as error:
            raise GenerationError(f"--mirror {place}: cannot be reached ({_said(error)}); nothing was drawn") from error
        self.before = set(self.copied)  # what was there
        self.holders = {name: pair for pair in self.before for name in _files(pair)}
        self.error: BaseException | None = None
        self.room, self.pool = BoundedSemaphore(WAITING), ThreadPoolExecutor(AT_ONCE, "mirror")

    def _refuse_itself(self) -> None:
        if "file" not in ([self.store.protocol] if isinstance(self.store.protocol, str) else self.store.protocol):
            return
        there, here = Path(self.root).resolve(), self.run.folder.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise ConfigError(f"--mirror {self.place}: lies in the run, or the run in it; give a folder of its own")

    def _begin(self) -> list[Named]:
        """The pairs that are there; a place where nothing is becomes this run's."""
        for _ in range(TRIES):
            self.store.invalidate_cache()
            if self.store.exists(self._at(RECORD)):
                if self._is_own(self.store.cat_file(self._at(RECORD))):
                    return self._known()
                break
            if not self.store.exists(self.root) or not self.store.ls(self.root, detail=False):
                self._replace(self.run.folder / RECORD, RECORD)
                return []
            time.sleep(1)
        raise RunError(f"--mirror {self.place}: holds something else than a copy of {self.run.folder}; give an empty place")

    def _is_own(self, text: bytes) -> bool:
        """Whether that is this run's record, however far it has come."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and all(record.get(name) == self.run.record.get(name) for name in SAME)

    def _known(self) -> list[Named]:
        """What the manifest there names, and the lists of what was copied since."""
        found = list[Named]()
        if self.store.exists(self._at(MANIFEST)):
            with TemporaryDirectory() as folder:
                self.store.get_file(self._at(MANIFEST), str(Path(folder) / MANIFEST))
                found += map(_named, Manifest(Path(folder) / MANIFEST).each_pair())
        for name in self._lists():
            with suppress(ValueError, RecursionError, FileNotFoundError):
                listed = json.loads(self.store.cat_file(self._at(name)))
                found += [tuple(each) for each in listed if len(each) == 5 and all(map(is_below, each))]
        return found

    def _lists(self) -> list[str]:
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self.store.ls(self.root, detail=False)]
        return [name for name in names if name.startswith(COPIED)]

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _send(self, source: Path, name: str) -> None:
        target = self._at(name)
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.store.put_file(str(source), target)

    def _replace(self, source: Path, name: str) -> None:
        """Copy a file that others read: it is never half there."""
        part = f".part-{secrets.token_hex(4)}"
        self._send(source, part)
        self.store.mv(self._at(part), self._at(name))

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self.store.rm_file(self._at(name))

    def put(self, record: Mapping[str, Any]) -> None:
        """Copy one pair, soon; waits where too many are on their way."""
        pair = _named(record)
        if pair in self.copied:
            return
        if any(self.holders.get(name, pair) != pair for name in _files(pair)):
            try:
                self._forget()
            except Exception as error:  # noqa: BLE001  # whatever it is; nothing may be written over then, which is said when all is drawn
                self.error = error
                return
        self.copied.add(pair)
        self.room.acquire()

        def copy() -> None:
            for name in sorted(_files(pair)):
                self._send(self.run.folder / name, name)

        def done(future: Future[None]) -> None:
            self.room.release()
            if future.cancelled() or future.exception() is not None:
                self.copied.discard(pair)
            if not future.cancelled() and future.exception() is not None:
                self.error = future.exception()

        self.pool.submit(copy).add_done_callback(done)

    def _forget(self) -> None:
        """Before a file is written over: nothing there may name what it was."""
        self._remove([MANIFEST, *self._lists()])
        self.copied -= self.before
        self.holders = {}

    def _drained(self) -> BaseException | None:
        """Wait until nothing is on its way; what went wrong since."""
        self.pool.shutdown()
        self.pool, error, self.error = ThreadPoolExecutor(AT_ONCE, "mirror"), self.error, None
        return error

    def stop(self) -> None:
        """Let what waits to be copied go."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> None:
        """Until what was put is there, and a list of it. Raises `GenerationError` where some of it could not be copied."""
        error = self._drained()
        try:
            if new := sorted(self.copied - (self.before if self.holders else set())):
                self.store.pipe_file(self._at(f"{COPIED}{secrets.token_hex(8)}.json"), json.dumps(new).encode())
        except Exception as other:  # noqa: BLE001  # whatever it is
            error = error or other
        if error is not None:
            raise self._lacks(error) from error

    def _lacks(self, error: BaseException) -> GenerationError:
        return GenerationError(
            f"--mirror {self.place}: not all could be copied ({_said(error)}); the pairs are in {self.run.folder}, "
            "and the same command copies what lacks"
        )

    def finish(self) -> None:
        """Copy what the manifest names now and lacks there, then the manifest; what it no longer names goes. Raises as `wait` does."""
        self._drained()  # what went wrong on the way is tried again
        if self.before and not self.run.manifest.is_file():
            raise GenerationError(f"--mirror {self.place}: holds pairs of this run, whose manifest is gone; restore {self.run.manifest}")
        with TemporaryDirectory() as folder:
            manifest = Path(folder) / MANIFEST  # as it is now: other shards may go on
            manifest.write_bytes(self.run.manifest.read_bytes() if self.run.manifest.is_file() else b"")
            named: set[Named] = set()
            for record in Manifest(manifest).each_pair():
                named.add(_named(record))
                self.put(record)
            if (error := self._drained()) is not None:
                self.error = error
                self.wait()
            try:
                for path in (path for pattern in BESIDE for path in sorted(self.run.folder.glob(pattern))):
                    self._send(path, path.relative_to(self.run.folder).as_posix())
                self._replace(self.run.folder / RECORD, RECORD)
                self._replace(manifest, MANIFEST)
                kept = {name for pair in named for name in _files(pair)}
                self._remove(sorted({name for pair in self.before - named for name in _files(pair)} - kept))
                self._remove(self._lists())
            except Exception as error:
                raise self._lacks(error) from error


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
