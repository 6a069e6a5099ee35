"""What a file says a name is, before anyone looks it up or writes there."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import DataError

__all__ = ["at_home", "brief", "illegible", "is_below", "is_file", "is_folder", "placed_at", "shown", "strays"]

DRIVE = re.compile(r"[A-Za-z]:")
LONGEST = 200  # characters of a value in a message
LONGEST_NAME, LONGEST_PATH = 255, 3000  # bytes; what file systems take
BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = LONGEST


def strays(name: str) -> bool:
    """Whether a file's name may lead out of the folder that it is looked up in."""
    plain = name.replace("\\", "/")  # not pathlib, which takes ten times as long: a manifest names ten thousands
    return plain.startswith("/") or ".." in plain.split("/") or bool(DRIVE.match(name)) or "\0" in name


def is_below(name: Any) -> bool:
    """Whether a value can name a file below the folder that it is looked up in."""
    if not isinstance(name, str) or not name or strays(name):
        return False
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    if len(raw) <= LONGEST_NAME:
        return True
    return len(raw) <= LONGEST_PATH and all(len(part) <= LONGEST_NAME for part in raw.split(b"/"))


def illegible(path: Path) -> str | None:
    """How a path may be shown that cannot be written down in UTF-8, as names of old archives cannot; None where it can."""
    shown = str(path).encode("utf-8", "replace").decode()
    return None if shown == str(path) else shown


def at_home(path: Path | str) -> Path:
    """A path that was typed, with what ~ stands for. Raises `DataError` where that is nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: no such place ({error}); give the path in full") from error


def placed_at(path: Path | str) -> Path:
    """Where that lies, whole and without links. Raises `DataError` where nothing can be there, as behind a link to itself."""
    try:
        return at_home(path).resolve()
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path}: no such place ({error}); give the path in full") from error


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; what no file can be called is none."""
    try:
        return path.is_file()
    except OSError:  # longer than names can be
        return False


def is_folder(name: Any) -> bool:
    """Whether a value can be the name of one folder, in the place where it is to be: a product, a defect type."""
    return is_below(name) and name != "." and "/" not in name and "\\" not in name


def shown(value: Any) -> str:
    """A value from a file, for a message: what is long or nested is cut short."""
    return BRIEF.repr(value)


def brief(name: str) -> str:
    """A name from a file, for a message: as it is, but cut short where it is long."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
