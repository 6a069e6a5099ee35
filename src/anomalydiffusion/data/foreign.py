"""Tell the layouts of other tools apart by their files."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.plainyaml import read_yaml_text

__all__ = ["LAYOUTS", "TABLES", "advice", "read_json", "read_rows", "read_table", "read_yaml", "recognise"]

LAYOUTS = {"visa": "VisA's layout", "coco": "a COCO file", "yolo": "YOLO's layout", "labelstudio": "a Label Studio export"}
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
TABLES = ".csv", ".json", ".yaml", ".yml"


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `DataError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); export it again") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of plain kinds only. Raises `DataError`."""
    try:
        return read_yaml_text(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({error}); write it again") from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by column; a cell that is not there is empty. Raises `DataError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = csv.DictReader(handle, skipinitialspace=True)
            columns = rows.fieldnames or ()
            if lacking := [name for name in VISA_COLUMNS if name not in columns]:
                raise DataError(f"{path}: no column {', '.join(lacking)}; the first line must read {','.join(VISA_COLUMNS)}")
            return [{name: (row[name] or "").strip() for name in VISA_COLUMNS} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); save it as CSV in UTF-8") from error


def read_table(path: Path) -> Any:
    """What a file of labels holds, by its suffix. Raises `DataError`."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_rows(path)
    return read_json(path) if suffix == ".json" else read_yaml(path)


def _layout(path: Path) -> str | None:
    """Which layout a file describes, if any."""
    suffix = path.suffix.lower()
    try:
        whole = read_table(path)
    except DataError:
        return None
    if suffix == ".csv":
        return "visa"
    if suffix != ".json":
        return "yolo" if isinstance(whole, dict) and "names" in whole else None
    if isinstance(whole, dict) and all(isinstance(whole.get(name), list) for name in ("images", "annotations", "categories")):
        return "coco"
    tasks = isinstance(whole, list) and whole and isinstance(whole[0], dict)
    return "labelstudio" if tasks and isinstance(whole[0].get("data"), dict) and "annotations" in whole[0] else None


def recognise(source: Path, layout: str | None = None) -> list[tuple[str, Path]]:
    """Each layout, or only `layout`, that a file, or the files of a folder, describe, with the file that does; none if unknown.

    In a folder the files beside its pictures are looked at, and those in `annotations` and `split_csv`. Of several tables
    `split_csv/1cls.csv` is taken, of several YAML files `data.yaml`.
    """
    if source.is_file():
        files = [source] if source.suffix.lower() in TABLES else []
    else:
        places = [place for place in (source, source / "annotations", source / "split_csv") if place.is_dir()]
        files = sorted(path for place in places for path in place.iterdir() if path.suffix.lower() in TABLES and path.is_file())
        for usual in (source / "split_csv" / "1cls.csv", source / "data.yaml"):
            if usual in files:
                files = [usual, *(path for path in files if path.suffix.lower() != usual.suffix)]
    found = [(known, path) for path in files if (known := _layout(path)) is not None]
    return [(known, path) for known, path in found if layout in (None, known)]


def advice(source: Path) -> str | None:
    """What to type where `source` is another tool's data set; None where it is none that is known."""
    found = recognise(source)
    if not found:
        return None
    given = source if len(found) == 1 else found[0][1]
    command = shlex.join(["anomalydiffusion", "import", str(given), "--output", "DATA"])
    return f"{source}: {LAYOUTS[found[0][0]]}, not MVTec AD's; type: {command}"
