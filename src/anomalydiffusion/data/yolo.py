"""Read YOLO's layout for segmentation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from natsort import natsorted

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import is_below, shown
from anomalydiffusion.data.folders import SUFFIXES
from anomalydiffusion.data.foreign import read_yaml
from anomalydiffusion.data.incoming import Picture
from anomalydiffusion.data.polygons import Outline

__all__ = ["read_yolo"]

log = logging.getLogger(__name__)
SIDES = ("train", "val", "test")
IMAGES, LABELS = "images", "labels"
NO_LABELS = ("classes.txt", "notes.txt")  # other tools' lists, beside the labels
BOX = 4  # numbers


def _names(whole: Any, file: Path) -> dict[int, str]:
    names = whole.get("names") if isinstance(whole, dict) else None
    known = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(known, dict) or not all(isinstance(key, int) and isinstance(name, str | int) for key, name in known.items()):
        raise DataError(f"{file}: no names of the classes; add names: [..]")
    return {key: str(name) for key, name in known.items()}


def _below(folder: Path, *parts: str) -> Path | None:
    """A folder in `folder`, which `parts` must not lead out of; `../` at the beginning is what some exports write for `./`."""
    inner = [part.removeprefix("../").removeprefix("./") for part in parts]
    path = folder.joinpath(*inner)
    return path if all(is_below(part) for part in inner if part) and path.is_dir() else None


def _places(whole: dict[str, Any], file: Path) -> Iterator[tuple[str, Path]]:
    """Each side and the folders of its pictures, as the YAML names them, else `images/<side>`, else `images` for train."""
    root = file.parent
    given = {side: value for side in SIDES if (value := whole.get(side))}
    if not given:
        found = [(side, place) for side in SIDES if (place := _below(root, IMAGES, side))]
        yield from found or [("train", root / IMAGES)]
        return
    base = path if isinstance(path := whole.get("path"), str) else "."
    for side, value in given.items():
        for entry in value if isinstance(value, list) else [value]:
            named = entry if isinstance(entry, str) else "no name"  # nor is anything else written out: it may be nested without end
            place = _below(root, base, named) or _below(root, named)
            if place is None:
                raise DataError(f"{file}: {side} is {shown(named)}, which is no folder in {root}; name the folder of its pictures")
            yield side, place


def _labels(root: Path, place: Path) -> Path:
    """The folder of labels that goes with a folder of pictures: `labels` for the last `images` in its path."""
    parts = list(place.relative_to(root).parts)
    if IMAGES not in parts:
        raise DataError(f"{place}: no folder '{IMAGES}' in its path, for which there would be '{LABELS}'; move pictures to {IMAGES}/")
    parts[len(parts) - 1 - parts[::-1].index(IMAGES)] = LABELS
    return root.joinpath(*parts)


DIGITS = 9  # of a class number


def _shapes(file: Path, names: dict[int, str]) -> Iterator[tuple[str, Outline]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); export it again") from error
    for number, line in enumerate(lines, start=1):
        where, (kind, *rest) = f"{file}: line {number}", line.split() or [""]
        if not kind:
            continue
        if not kind.isdecimal() or len(kind) > DIGITS or int(kind) not in names:
            raise DataError(f"{where}: class {kind[:20]!r} is not among the names; add it to the YAML or remove the line")
        if len(rest) == BOX:
            raise DataError(f"{where}: a box, no outline; export for segmentation, boxes mark more than the defect")
        yield names[int(kind)], Outline.of(rest, where, shares=True)


def read_yolo(file: Path) -> list[Picture]:
    """The pictures in the folders that a YAML file names, with the polygons of each one's label file; without one it is normal.

    Folders are looked for below the YAML's. The source divides normal images if it names more than one side: `train`, and the
    others for testing. Raises `DataError`.
    """
    whole = read_yaml(file)
    names = _names(whole, file)
    places: dict[Path, tuple[str, Path]] = {}  # by where they are: what is trained on may be named for validation too
    for side, place in _places(whole, file):
        places.setdefault(place.resolve(), (side, place))
    divided = len({side for side, _ in places.values()}) > 1
    pictures: list[Picture] = []
    bare = 0  # pictures without a label file
    for side, place in places.values():
        labels, expected = _labels(file.parent, place), set[Path]()
        found = (path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        for path in natsorted((path for path in found if path.is_file()), key=str):
            name = path.relative_to(place).as_posix()
            label = labels / PurePosixPath(name).with_suffix(".txt")
            if label in expected:
                raise DataError(f"{path}: another picture has the same labels, {label}; rename one")
            expected.add(label)
            part = ("train" if side == "train" else "test") if divided else None
            pictures.append(Picture(path=path, name=name, where=str(label), shapes=list(_shapes(label, names)), part=part))
            bare += not label.is_file()
        if expected and not any(label.is_file() for label in expected):
            _refuse_lost(file.parent, place, labels, {label.stem for label in expected})
        for label in sorted(labels.rglob("*.txt")):
            if label not in expected and label.name not in NO_LABELS:
                raise DataError(f"{label}: no picture of its name in {place}; add the picture or remove the labels")
    if pictures and not any(picture.shapes for picture in pictures):
        raise DataError(
            f"{file}: nothing is marked on any of its {len(pictures)} pictures; labels lie in {LABELS}/, as pictures in {IMAGES}/"
        )
    if bare:
        log.warning("%d of %d pictures have no label file: taken for normal", bare, len(pictures))
    return pictures


def _refuse_lost(root: Path, place: Path, labels: Path, stems: set[str]) -> None:
    """Raises `DataError` where no picture of a folder has its labels, and labels of their names lie elsewhere."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() == ".txt" and path.stem in stems and path.parent != labels:
            raise DataError(f"{path}: labels of a picture in {place} are looked for in {labels}; move them there")
