"""The manifest: one JSON line an attempt, written last; a pair without its line does not exist."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from itertools import pairwise, zip_longest
from pathlib import Path, PurePath
from sys import intern
from typing import IO, Any, TypeVar

import numpy as np

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.names import is_below, is_folder, shown
from anomalydiffusion.core.runs import make_folder, sync_folder, write_atomic

try:
    import fcntl
except ImportError:  # Windows: one writer at a time is then up to the caller
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "ACCEPTED", "ADAPTER_DIGEST", "ATTEMPT", "CONFIG_DIGEST", "DEFECT", "FIELDS", "IMAGE", "IMAGE_SHA256", "MASK",
    "MASK_ORIGIN", "MASK_SHA256", "MEASURES", "NORMAL", "NORMAL_SHA256", "PARKED", "PRIOR_DIGEST", "PRODUCT", "REASONS",
    "REFERENCE", "REQUESTED_MASK", "SECONDS", "SEED", "SEVERITY", "STEPS", "TOUCHED_BOX", "VERSION", "Manifest", "accepted", "digest_of",
    "fault", "judged",
]  # fmt: skip

log = logging.getLogger(__name__)

Row = TypeVar("Row", bound=Mapping[str, Any])

PRODUCT, DEFECT, SEED, ATTEMPT = "product", "defect", "seed", "attempt"
IMAGE, MASK, IMAGE_SHA256, MASK_SHA256 = "image", "mask", "image_sha256", "mask_sha256"
NORMAL, NORMAL_SHA256 = "normal", "normal_sha256"
REQUESTED_MASK, MASK_ORIGIN, TOUCHED_BOX = "requested_mask", "mask_origin", "touched_box"
PRIOR_DIGEST, ADAPTER_DIGEST, CONFIG_DIGEST = "prior_digest", "adapter_digest", "config_digest"
STEPS, SEVERITY, ACCEPTED, REASONS, MEASURES = "steps", "severity", "accepted", "reasons", "measures"
SECONDS, VERSION, REFERENCE = "seconds", "version", "reference"
PARKED = "is being judged anew"  # the reason of a record whose files are on their way
FIELDS = (
    PRODUCT, DEFECT, SEED, ATTEMPT, IMAGE, MASK, IMAGE_SHA256, MASK_SHA256, NORMAL, NORMAL_SHA256, REQUESTED_MASK,
    MASK_ORIGIN, TOUCHED_BOX, PRIOR_DIGEST, ADAPTER_DIGEST, CONFIG_DIGEST, STEPS, SEVERITY, ACCEPTED, REASONS, MEASURES,
    SECONDS, VERSION, REFERENCE,
)  # fmt: skip


DEEPEST = 100  # lists and tables in each other, of a record
KINDS: dict[str, type] = {
    PRODUCT: str, DEFECT: str, SEED: int, ATTEMPT: int, IMAGE: str, MASK: str, IMAGE_SHA256: str, MASK_SHA256: str, REQUESTED_MASK: str,
    NORMAL: str, NORMAL_SHA256: str, MASK_ORIGIN: str, TOUCHED_BOX: list, CONFIG_DIGEST: str, ACCEPTED: bool, REASONS: list,
}  # fmt: skip
SHARED = frozenset({
    PRODUCT, DEFECT, NORMAL, NORMAL_SHA256, MASK_ORIGIN, PRIOR_DIGEST, ADAPTER_DIGEST, CONFIG_DIGEST, VERSION, REFERENCE,
})  # fmt: skip
NUMBERED = re.compile(r"[^/]+(/[^/]+)*/\d{1,9}(-\d{1,9})?\.\w+")  # what the image of a pair is called


_is_folder = lru_cache(maxsize=4096)(is_folder)  # the same few words in every line


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def fault(record: Mapping[str, Any]) -> str:
    """What no command could do its work with, in the record of a run's pair; "" where it is whole.

    Paths stay in the run's folder, product and defect type can be folders: commands write and delete what records name.
    """
    for name, kind in KINDS.items():
        value = record.get(name)
        if not isinstance(value, kind) or (kind is int and not _counts(value)):
            return f"{name} is {shown(value)}"
    for name in (IMAGE, MASK, REQUESTED_MASK):
        if not is_below(record[name]):
            return f"{name} {shown(record[name])} may lie outside of the run"
    for name in (PRODUCT, DEFECT, CONFIG_DIGEST):
        if not _is_folder(record[name]) and (name != CONFIG_DIGEST or record[name]):
            return f"{name} is {shown(record[name])}"
    if not NUMBERED.fullmatch(record[IMAGE]):
        return f"image {shown(record[IMAGE])} has no number"
    if len(record[TOUCHED_BOX]) != 4 or not all(isinstance(side, int) for side in record[TOUCHED_BOX]):
        return f"{TOUCHED_BOX} is {shown(record[TOUCHED_BOX])}"
    return "" if all(isinstance(reason, str) for reason in record[REASONS]) else f"{REASONS} is {shown(record[REASONS])}"


def judged(records: Iterable[dict[str, Any]], run: Path) -> list[dict[str, Any]]:
    """The records of a run none of which is being judged anew. Raises `RunError` where a `curate` was cut short."""
    kept = list(records)
    if any(isinstance(own := record.get(REASONS), list) and PARKED in own for record in kept):
        raise RunError(f"{run}: its pairs were being judged when that was cut short; run 'anomalydiffusion curate {run}' first")
    return kept


def accepted(records: Iterable[Row]) -> list[Row]:
    """Keep the records that the gate accepted, in their order."""
    return [record for record in records if record.get(ACCEPTED) is True]


def digest_of(records: Iterable[Mapping[str, Any]]) -> str:
    """What tells the accepted pairs from others, in whichever order."""
    pairs = sorted(str([record.get(name) for name in (PRODUCT, DEFECT, IMAGE_SHA256, MASK_SHA256)]) for record in accepted(records))
    return hashlib.sha256("\n".join(pairs).encode("utf-8", "replace")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """`value` in JSON's own kinds; numpy numbers become Python's, a number that is not finite becomes null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return value.as_posix()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(_plain(record), allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(value) > DEEPEST:
        return None  # it could be read, but not written again
    return {intern(name): _shared(name, each) for name, each in value.items()} if isinstance(value, dict) else None


def _shared(name: str, value: Any) -> Any:
    """What many records of a run say stays once in memory, which halves what a record takes."""
    return intern(value) if name in SHARED and isinstance(value, str) else value


def _depth(value: Any) -> int:
    """How deep lists and tables lie in each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth, level = depth + 1, [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _copied(file: IO[bytes], start: int, stop: int) -> bytes:
    """A line of an open file, which ends with a newline also where it is the last one."""
    file.seek(start)
    return file.read(stop - start).rstrip(b"\n") + b"\n"


def _tail(file: FileIO, size: int) -> bytes:
    """The bytes after the last newline."""
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return b""
    tail, end = b"", size
    while end and b"\n" not in tail:
        begin = max(0, end - 65536)
        file.seek(begin)
        tail, end = file.read(end - begin) + tail, begin
    return tail.rpartition(b"\n")[2]


class Manifest:
    """The lines in the file `path`, which need not exist yet; processes may append at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _locked(self) -> Iterator[FileIO]:
        """The file, open for appending and locked: the one that `path` names now, not one that `rewrite` has just replaced."""
        make_folder(self.path.parent)
        if not self.path.exists():
            self.path.touch()
            sync_folder(self.path.parent)
        while True:
            with self.path.open("a+b", buffering=0) as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    yield file
                    return

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line; when this returns, it is on the disk.

        A last line that a kill cut short is first moved to `manifest.rejected.jsonl` beside the manifest, with a warning.
        Numbers that are not finite are written as null. Raises `RunError` where the line cannot be written whole.
        """
        line = _line(record)
        try:
            with self._locked() as file:
                size = self._repair(file)
                if file.write(line) != len(line):
                    file.truncate(size)
                    raise RunError(f"{self.path}: the disk is full; free some space and go on with the same command")
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); check free space and permissions") from error

    def _repair(self, file: FileIO) -> int:
        """End the file with a newline; returns its size. A whole record that only lacks the newline stays."""
        size = file.seek(0, os.SEEK_END)
        if not (tail := _tail(file, size)):
            return size
        if _parse(tail) is not None:
            file.write(b"\n")
            return size + 1
        size -= len(tail)
        aside = self._put_aside([{"offset": size, "text": tail.decode("utf-8", "backslashreplace")}])
        file.truncate(size)
        log.warning("%s: the last line was cut short; moved to %s, its pair will be made again", self.path, aside.name)
        return size

    def _put_aside(self, lines: Iterable[Mapping[str, Any]]) -> Path:
        """Keep what is no record beside the manifest; returns the file."""
        aside = self.path.with_suffix(".rejected.jsonl")
        with aside.open("ab") as rejected:
            rejected.write(b"".join(_line(line) for line in lines))
            rejected.flush()
            os.fsync(rejected.fileno())
        return aside

    def pairs(self) -> list[dict[str, Any]]:
        """Read every record that is one of a run's pair, in order; any other line is skipped with a warning, as `records` does."""
        return list(self.each_pair())

    def each_pair(self) -> Iterator[dict[str, Any]]:
        """The same one by one, for what need not hold a million of them."""
        return (record for _, record in self._read(pairs=True))

    def records(self) -> list[dict[str, Any]]:
        """Read every record in order; none when the file does not exist. A damaged line is skipped with a warning."""
        return [record for _, record in self._read(pairs=False)]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line and where in the file it begins."""
        begin = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    yield begin, line
                    begin += len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror}); check its permissions") from error

    def _read(self, *, pairs: bool, damaged: list[dict[str, Any]] | None = None) -> Iterator[tuple[slice, dict[str, Any]]]:
        """Records, and which bytes of the file each is; lines that are none are named in a warning, or collected in `damaged`."""
        for number, (begin, line) in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            record = _parse(line)
            wrong = "not a JSON record" if record is None else fault(record) if pairs else ""
            if record is not None and not wrong:
                yield slice(begin, begin + len(line)), record
            elif damaged is None:
                log.warning("%s, line %d: %s; skipped", self.path, number, wrong)
            else:
                damaged.append({"line": number, "wrong": wrong, "text": line.decode("utf-8", "backslashreplace").rstrip("\n")})

    def rewrite(self, records: Iterable[Mapping[str, Any]], *, pairs: bool = False) -> None:
        """Put `records` in the place of all lines, whole or not at all. What others append between `records` and this is lost.

        Lines that `records`, or with `pairs` that method, skips are first moved to `manifest.rejected.jsonl`, with a warning.
        """
        lines = [_line(record) for record in records]
        damaged: list[dict[str, Any]] = []
        try:
            with self._locked():
                deque(self._read(pairs=pairs, damaged=damaged), maxlen=0)
                self._replace(lines, damaged)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); check free space and permissions") from error

    def arrange(self, order: Callable[[dict[str, Any]], Any]) -> None:
        """Put the lines of pairs in the order of what `order` says of each; of those that it says the same of, the last one stays.

        Whole or not at all; other lines are moved aside as by `rewrite`, but nothing is written where all is in order. Lines are copied as
        they are, and what is held in memory of each is its place in the file and in the order.
        """
        if not self.path.exists():
            return
        damaged: list[dict[str, Any]] = []
        try:
            with self._locked(), self.path.open("rb") as file:
                found = [(order(record), place.start, place.stop) for place, record in self._read(pairs=True, damaged=damaged)]
                if all(before[0] < after[0] for before, after in pairwise(found)):
                    return
                found.sort()  # those of the same order by their places
                last = (each for each, after in zip_longest(found, found[1:]) if after is None or after[0] != each[0])
                self._replace((_copied(file, start, stop) for _, start, stop in last), damaged)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); check free space and permissions") from error

    def _replace(self, lines: Iterable[bytes], damaged: list[dict[str, Any]]) -> None:
        """Put lines in the place of all lines, after what is damaged was moved aside; to be called with the lock."""
        if damaged:
            aside = self._put_aside(damaged)
            log.warning("%s: %d damaged lines are moved to %s", self.path, len(damaged), aside.name)
        write_atomic(self.path, lines)
