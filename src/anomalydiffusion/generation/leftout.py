"""What could not be drawn, named with its error in the run's folder; the same command tries it again."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from anomalydiffusion.core.runs import Run, write_atomic

__all__ = ["LeftOut"]

FILE = "left_out.jsonl"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LeftOut:
    """The items of one command that it goes on without."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, key: tuple[str, str], index: int, attempt: int, error: BaseException, *, times: int = 1) -> None:
        """Take note of an item that failed so many times, and say so."""
        log.warning("%s, number %d: left out%s: %s", "/".join(key), index, f", it failed {times} times" if times > 1 else "", error)
        where = {"product": key[0], "defect": key[1], "index": index, "attempt": attempt}
        self.rows.append({**where, "error": str(error)})

    def write(self, run: Run, shard: str = "") -> None:
        """Name what was left out, a `shard` ("2-of-8") in a file of its own; no file where nothing was, nor those of shards before."""
        path = run.folder / (f"left_out-{shard}.jsonl" if shard else FILE)
        if not shard:
            for old in run.folder.glob("left_out-*-of-*.jsonl"):
                old.unlink(missing_ok=True)
        if self.rows:
            ordered = sorted(self.rows, key=lambda each: (each["product"], each["defect"], each["index"]))
            write_atomic(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in ordered).encode())
        else:
            path.unlink(missing_ok=True)
