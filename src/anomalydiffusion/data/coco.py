"""Read a COCO file of instances."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import shown
from anomalydiffusion.data.foreign import read_json
from anomalydiffusion.data.incoming import Picture, Shape, beside, locate
from anomalydiffusion.data.polygons import Outline, Runs

__all__ = ["read_coco"]

Row = dict[str, Any]


def _rows(whole: Any, name: str, file: Path) -> list[Row]:
    rows = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: no list of {name}; export it as COCO instances")
    return rows


def _key(row: Row, name: str, where: str) -> int | str:
    value = row.get(name)
    if not isinstance(value, int | str):
        raise DataError(f"{where}: {name} is {shown(value)}, expected a number; export it again")
    return value


def _by_id(whole: Any, name: str, file: Path) -> dict[int | str, Row]:
    found: dict[int | str, Row] = {}
    for row in _rows(whole, name, file):
        key = _key(row, "id", f"{file}: an entry of {name}")
        if key in found:
            raise DataError(f"{file}: two {name} have the id {shown(key)}; give each one of its own")
        found[key] = row
    return found


def _size(height: Any, width: Any, where: str) -> tuple[int, int]:
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(f"{where}: {shown(width)} x {shown(height)} is no size in pixels; export it again")
    return height, width


def _shapes(annotation: Row, where: str) -> Iterator[Shape]:
    marks = annotation.get("segmentation")
    if isinstance(marks, dict):
        size, counts = marks.get("size"), marks.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
            raise DataError(f"{where}: a segmentation without size and counts; export it again")
        yield Runs(counts=counts, size=_size(size[0], size[1], where), where=where)
    elif isinstance(marks, list) and marks:
        for flat in marks if isinstance(marks[0], list) else [marks]:
            yield Outline.of(flat, where)
    else:
        raise DataError(f"{where}: only a box, no segmentation; draw outlines or masks, boxes mark more than the defect")


def read_coco(file: Path, images: Path | None) -> list[Picture]:
    """The pictures of a COCO file with the outlines and run lengths of each; a category is a label, a crowd is marked like one.

    The polygons of one annotation are taken together. Pictures lie in `images`, else beside the file, in `images` there, or in
    the same of the folder above. Raises `DataError`.
    """
    whole = read_json(file)
    rows, categories = _by_id(whole, "images", file), _by_id(whole, "categories", file)
    shapes: dict[int | str, list[tuple[str, Shape]]] = {key: [] for key in rows}
    for index, annotation in enumerate(_rows(whole, "annotations", file)):
        where = f"{file}: annotation {shown(annotation.get('id', index))}"
        image, category = _key(annotation, "image_id", where), _key(annotation, "category_id", where)
        if image not in rows:
            raise DataError(f"{where}: no image has the id {shown(image)}; remove it or add the image")
        if category not in categories:
            raise DataError(f"{where}: no category has the id {shown(category)}; remove it or add the category")
        label = categories[category].get("name")
        if not isinstance(label, str):
            raise DataError(f"{file}: category {shown(category)} has no name; name it")
        shapes[image] += [(label, shape) for shape in _shapes(annotation, where)]
    pictures: list[Picture] = []
    for key, row in rows.items():
        where = f"{file}: image {shown(key)}"
        path, name = locate(beside(file, images), row.get("file_name"), where, "add it, or say where pictures are with --images")
        told = _size(row.get("height"), row.get("width"), where)[::-1] if "height" in row or "width" in row else None
        pictures.append(Picture(path=path, name=name, where=where, shapes=shapes[key], size=told))
    return pictures
