"""Every record on disk names its format; one that this version cannot read is refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import RunError

__all__ = ["check_format", "refuse_newer"]


def refuse_newer(where: Path, record: Mapping[str, Any], reads: int) -> None:
    """Raises `RunError` where `record` says that it has a format later than `reads`; one that names none is let pass."""
    found = record.get("format")
    if isinstance(found, int) and found > reads:
        made = f"made by version {record['version']}" if record.get("version") else "made by a newer version"
        raise RunError(f"{where}: {made} (format {found}, this one reads {reads}); upgrade anomalydiffusion")


def check_format(where: Path, record: Mapping[str, Any], *, reads: int, oldest: int, anew: str) -> int:
    """The format that `record` names, from `oldest` to `reads`. Raises `RunError`; `anew` is what to do about one that is too old."""
    found = record.get("format")
    if not isinstance(found, int):
        raise RunError(f"{where}: names no format, so it is damaged or not ours; {anew}")
    if found < oldest:
        known = reads if oldest == reads else f"{oldest} to {reads}"
        raise RunError(f"{where}: made by an earlier version (format {found}, this one reads {known}); {anew}")
    refuse_newer(where, record, reads)
    return found
