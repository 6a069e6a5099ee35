"""Read an export of Label Studio."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import shown, strays
from anomalydiffusion.core.pixels import MAX_PIXELS, read_size
from anomalydiffusion.data.folders import SUFFIXES
from anomalydiffusion.data.foreign import read_json
from anomalydiffusion.data.incoming import Picture, beside, locate
from anomalydiffusion.data.polygons import Outline, numbers

__all__ = ["read_labelstudio"]

PER_CENT = 100.0
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that was uploaded
log = logging.getLogger(__name__)


def _address(data: dict[str, Any], where: str) -> str:
    """Where the picture of a task is, in `image` or in whatever names one."""
    texts = [data.get("image"), *data.values()]
    for text in texts:
        if isinstance(text, str) and Path(_path(text)).suffix.lower() in SUFFIXES:
            return text
    raise DataError(f"{where}: names no picture; export tasks of pictures, saved as one of {' '.join(SUFFIXES)}")


def _path(address: str) -> str:
    """The path in an address: of the web, of a store, or of a local file behind `?d=`."""
    try:
        url = urlsplit(address)
    except ValueError:
        return address
    return parse_qs(url.query).get("d", [unquote(url.path)])[0]


def _candidates(address: str) -> Iterator[str]:
    """The names that a picture may have below its folder: as much of its path as is there, at last without what uploads add."""
    parts = [part for part in _path(address).replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." not in parts:
        yield from ("/".join(parts[first:]) for first in range(len(parts)))
    yield UPLOADED.sub("", parts[-1], count=1)


def _picture(folders: list[Path], address: str, where: str) -> tuple[Path, str]:
    remedy = "add it, or say where pictures are with --images"
    *tried, last = _candidates(address)
    for name in tried:
        if not strays(name):
            with suppress(DataError):  # the next name may be there
                return locate(folders, name, where, remedy)
    return locate(folders, last, where, remedy)


def _corners(value: dict[str, Any], size: tuple[int, int], where: str) -> list[float]:
    """A rectangle's corners in per cent; it is turned clockwise about its first corner, in pixels."""
    x, y, width, height, turn = numbers([value.get(k, 0) for k in ("x", "y", "width", "height", "rotation")], where).tolist()
    box = np.array([[0, 0], [width, 0], [width, height], [0, height]]) * size
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return ((box @ np.array([[cos, sin], [-sin, cos]])) / size + (x, y)).ravel().tolist()


def _shapes(results: list[Any], size: tuple[int, int], where: str) -> Iterator[tuple[str, Outline]]:
    for result in results:
        kind, value = result.get("type"), result.get("value")
        kind = kind if isinstance(kind, str) else ""
        if not isinstance(value, dict):
            continue
        if "rle" in value or "brush" in kind:
            raise DataError(f"{where}: brush labels; export them as PNG, then: anomalydiffusion import --format folders --masks FOLDER")
        if kind not in ("polygonlabels", "rectanglelabels"):
            if {"x", "points", "vertices"} & set(value):
                raise DataError(f"{where}: {shown(kind)} cannot be read; draw polygons or rectangles with labels")
            continue  # words about the whole picture
        if result.get("image_rotation"):
            raise DataError(f"{where}: labelled on a turned picture; save the picture upright and label it again")
        labels = value.get(kind)
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{where}: a region without a label; label it or remove it")
        points = value.get("points")
        if kind == "rectanglelabels":
            flat: Any = _corners(value, size, where)
        else:
            flat = [number for point in points if isinstance(point, list) for number in point] if isinstance(points, list) else None
        for label in labels:
            yield label, Outline.of(flat, where, shares=True, whole=PER_CENT)


def _size(results: list[Any], where: str) -> tuple[int, int] | None:
    sizes = [(result.get("original_width"), result.get("original_height")) for result in results if "original_width" in result]
    whole = all(isinstance(side, int) and 0 < side <= MAX_PIXELS for size in sizes for side in size)
    if not whole or any(size != sizes[0] for size in sizes):
        raise DataError(f"{where}: original_width and original_height are not one size in pixels; export it again")
    return sizes[0] if sizes else None


def _results(task: dict[str, Any], where: str) -> tuple[list[Any] | None, bool]:
    """What was marked, None if nobody looked; and whether there were several answers: the chosen one, else the last, counts."""
    given = task.get("annotations")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError(f"{where}: no annotations; export as JSON, not as JSON-MIN")
    answers = [one for one in given if not one.get("was_cancelled")]
    if not answers:
        return None, False
    chosen = next((one for one in answers if one.get("ground_truth")), answers[-1])
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DataError(f"{where}: an annotation without a list of results; export it again")
    return results, len(answers) > 1 and not chosen.get("ground_truth")


def read_labelstudio(file: Path, images: Path | None) -> list[Picture]:
    """The pictures of a JSON export with their polygons and rectangles; one that was looked at and not marked is normal.

    Pictures are looked for by their names in `images`, else beside the file. Tasks that nobody answered are left out. Raises
    `DataError`, on brush labels too.
    """
    whole = read_json(file)
    if not isinstance(whole, list):
        raise DataError(f"{file}: no list of tasks; export as JSON")
    pictures: list[Picture] = []
    unanswered: list[str] = []
    doubtful: list[str] = []
    for index, task in enumerate(whole):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise DataError(f"{file}: entry {index} is no task; export as JSON, not as JSON-MIN")
        where = f"{file}: task {shown(task.get('id', index))}"
        address = _address(task["data"], where)
        results, several = _results(task, where)
        if results is None:
            unanswered.append(address)
            continue
        path, name = _picture(beside(file, images), address, where)
        if several:
            doubtful.append(name)
        size = _size(results, where) or read_size(path)
        pictures.append(Picture(path=path, name=name, where=where, shapes=list(_shapes(results, size, where)), size=size))
    if unanswered:
        log.warning("%s: %d tasks without an answer are left out, first %s", file, len(unanswered), unanswered[0])
    if doubtful:
        log.warning("%s: %d pictures have several answers, of which the last is taken, first %s", file, len(doubtful), doubtful[0])
    return pictures
