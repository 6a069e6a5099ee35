"""A copy of a run's pairs elsewhere, made while they are drawn: in a folder, or in any store that fsspec reaches, such as s3://bucket/tiles."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import Any

from anomalydiffusion.core.errors import ConfigError, GenerationError, RunError
from anomalydiffusion.core.manifest import IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, REQUESTED_MASK, Manifest
from anomalydiffusion.core.runs import Run

__all__ = ["Mirror"]

AT_ONCE, WAITING = 8, 64  # pairs on their way, and those that wait to be
TRIES = 3  # looks at a place, a second apart, that another shard may be just beginning
SAME = ("created", "split_digest", "prior_digest")  # what tells runs apart
BESIDE = ("config.toml", "split.json", "gate.json", "adapter/*.safetensors", "settings/*.toml")  # what pairs were drawn with
Named = tuple[str, str, str, str, str]


def _pair(record: Mapping[str, Any]) -> Named:
    return record[IMAGE], record[IMAGE_SHA256], record[MASK], record[MASK_SHA256], record[REQUESTED_MASK]


def _files(pair: Named) -> set[str]:
    return {pair[0], pair[2], pair[4]}


class Mirror:
    """What a run's manifest names, and what it was drawn with, at `place` too; a pair is there when the manifest there names it.

    Pairs are copied beside the drawing; those that the manifest there names are not copied again. Raises `ConfigError` on a place
    that cannot be used, `RunError` on one that holds anything but an earlier copy of this run.
    """

    def __init__(self, run: Run, place: str) -> None:
        from fsspec.core import url_to_fs

        self.run, self.place = run, place
        try:
            self.store, root = url_to_fs(place)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"--mirror {place}: cannot be used ({error}); give a folder, or a URL that fsspec knows") from error
        self.root = root.rstrip("/")
        self._refuse_itself()
        try:
            self.there = self._begin()
        except (RunError, ConfigError):
            raise
        except Exception as error:  # whatever a store raises, the user needs the same advice
            raise GenerationError(f"--mirror {place}: cannot be reached ({_said(error)}); nothing was drawn") from error
        self.copied = set(self.there)
        self.error: BaseException | None = None
        self.room, self.pool = BoundedSemaphore(WAITING), ThreadPoolExecutor(AT_ONCE, "mirror")

    def _refuse_itself(self) -> None:
        if "file" not in ([self.store.protocol] if isinstance(self.store.protocol, str) else self.store.protocol):
            return
        there, here = Path(self.root).resolve(), self.run.folder.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise ConfigError(f"--mirror {self.place}: lies in the run, or the run in it; give a folder of its own")

    def _begin(self) -> set[Named]:
        """The pairs that are there; a place where nothing is becomes this run's."""
        for _ in range(TRIES):
            if self.store.exists(self._at("run.json")):
                if self._is_own(self.store.cat_file(self._at("run.json"))):
                    return set(self._pairs_there())
                break
            if not self.store.exists(self.root) or not self.store.ls(self.root, detail=False):
                self._replace("run.json")
                return set()
            time.sleep(1)
        raise RunError(f"--mirror {self.place}: holds something else than a copy of {self.run.folder}; give an empty place")

    def _is_own(self, text: bytes) -> bool:
        """Whether that is this run's record, however far it has come."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and all(record.get(name) == self.run.record.get(name) for name in SAME)

    def _pairs_there(self) -> Iterator[Named]:
        if self.store.exists(self._at("manifest.jsonl")):
            with TemporaryDirectory() as folder:
                path = Path(folder) / "manifest.jsonl"
                self.store.get_file(self._at("manifest.jsonl"), str(path))
                yield from map(_pair, Manifest(path).each_pair())

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _send(self, name: str, to: str = "") -> None:
        target = self._at(to or name)
        self.store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.store.put_file(str(self.run.folder / name), target)

    def _replace(self, name: str) -> None:
        """Copy a file that others read: it is never half there."""
        part = f".part-{secrets.token_hex(4)}"
        self._send(name, part)
        self.store.mv(self._at(part), self._at(name))

    def put(self, record: Mapping[str, Any]) -> None:
        """Copy one pair, soon; waits where too many are on their way."""
        pair = _pair(record)
        if pair in self.copied:
            return
        self.copied.add(pair)
        self.room.acquire()

        def copy() -> None:
            for name in sorted(_files(pair)):
                self._send(name)

        def done(future: Future[None]) -> None:
            self.room.release()
            if error := future.exception():
                self.copied.discard(pair)
                self.error = error

        self.pool.submit(copy).add_done_callback(done)

    def wait(self) -> None:
        """Until what was put is there. Raises `GenerationError` where some of it could not be copied."""
        self.pool.shutdown()
        self.pool, error, self.error = ThreadPoolExecutor(AT_ONCE, "mirror"), self.error, None
        if error is not None:
            raise self._lacks(error) from error

    def _lacks(self, error: BaseException) -> GenerationError:
        return GenerationError(
            f"--mirror {self.place}: not all could be copied ({_said(error)}); the pairs are in {self.run.folder}, "
            "and the same command copies what lacks"
        )

    def finish(self) -> None:
        """Copy what the manifest names and lacks there, then the manifest; what it no longer names goes. Raises as `wait` does."""
        named: set[Named] = set()
        for record in Manifest(self.run.manifest).each_pair():
            named.add(_pair(record))
            self.put(record)
        self.wait()
        try:
            for path in (path for pattern in BESIDE for path in sorted(self.run.folder.glob(pattern))):
                self._send(path.relative_to(self.run.folder).as_posix())
            self._replace("run.json")
            self._replace("manifest.jsonl")
            kept = {name for pair in named for name in _files(pair)}
            for name in sorted({name for pair in self.there - named for name in _files(pair)} - kept):
                with suppress(FileNotFoundError):
                    self.store.rm_file(self._at(name))
        except Exception as error:
            raise self._lacks(error) from error
        self.there = named


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
