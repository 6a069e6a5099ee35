"""What another tool's data set says of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import shown, strays
from anomalydiffusion.core.pixels import read_mask

__all__ = ["MaskFile", "Picture", "Shape", "beside", "locate"]


class Shape(Protocol):
    """What can be drawn on a canvas of its picture's size."""

    def draw(self, canvas_HW: np.ndarray) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """A picture of a mask: anything but black is defect."""

    path: Path

    def draw(self, canvas_HW: np.ndarray) -> None:
        """Mark what it marks. Raises `DataError` when it is of another size."""
        pixels_HW = read_mask(self.path)
        if pixels_HW.shape != canvas_HW.shape:
            (h, w), (height, width) = pixels_HW.shape, canvas_HW.shape
            raise DataError(f"{self.path}: {w} x {h} pixels, but its picture is {width} x {height}; draw the mask at the picture's size")
        canvas_HW |= pixels_HW


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One picture and what is marked on it: a label and a shape each; none, and it is normal."""

    path: Path
    name: str  # below the folder of pictures, with forward slashes
    where: str  # file and entry that name it, for messages
    product: str = ""  # where the source says it
    shapes: Sequence[tuple[str, Shape]] = ()
    part: str | None = None  # "train" or "test" where the source says it
    size: tuple[int, int] | None = None  # width and height where the source says them


def beside(file: Path, images: Path | None) -> list[Path]:
    """The folders in which the pictures that `file` names may lie: `images`, else around the file."""
    return [images] if images else [file.parent, file.parent / "images", file.parent.parent / "images"]


def locate(folders: Sequence[Path], name: Any, where: str, remedy: str) -> tuple[Path, str]:
    """Path and name of a picture in the first of `folders` that has it. Raises `DataError` if none has, or if it would lie outside."""
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: names no file; name it or remove the entry")
    if strays(name):
        raise DataError(f"{where}: {shown(name)} may lie outside of {folders[0]}; name files below their folder")
    plain = PurePosixPath(name.replace("\\", "/"))
    for folder in folders:
        try:
            if (folder / plain).is_file():
                return folder / plain, plain.as_posix()
        except (OSError, ValueError):  # a name that no file can have
            break
    raise DataError(f"{where}: {shown(name)} is not in {folders[0]}; {remedy}")
