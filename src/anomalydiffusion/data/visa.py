"""Read VisA's layout, and plain folders of pictures and masks."""

from __future__ import annotations

import logging
from pathlib import Path

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import read_mask
from anomalydiffusion.data.folders import images_in, mask_of, masks_in
from anomalydiffusion.data.foreign import read_rows
from anomalydiffusion.data.incoming import MaskFile, Picture, locate

__all__ = ["read_plain", "read_visa"]

NORMAL = "normal"
MASK = "_mask"
log = logging.getLogger(__name__)


def read_visa(table: Path) -> list[Picture]:
    """The pictures in a CSV of columns object, split, label, image and mask; a label other than `normal` is a defect type.

    Paths are relative to the CSV's folder or to the one above. Raises `DataError`.
    """
    pictures: list[Picture] = []
    for line, row in enumerate(read_rows(table), start=2):
        where = f"{table}: line {line}"
        for column in ("object", "split", "label"):
            if not row[column]:
                raise DataError(f"{where}: no {column}; fill it in or remove the line")
        folders = [table.parent.parent, table.parent]
        path, name = locate(folders, row["image"], where, "add it or remove the line")
        shapes: list[tuple[str, MaskFile]] = []
        if row["label"].lower() != NORMAL:
            if not row["mask"]:
                raise DataError(f"{where}: {name} is of '{row['label']}' but has no mask; name one or remove the line")
            shapes.append((row["label"], MaskFile(path=locate(folders, row["mask"], where, "add it or remove the line")[0])))
        part = "train" if row["split"].lower() == "train" else "test"
        pictures.append(Picture(path=path, name=name, where=where, product=row["object"], shapes=shapes, part=part))
    return pictures


def _folder(path: Path, option: str) -> list[Path]:
    found = images_in(path)
    if not found:
        raise DataError(f"{path}: {'no picture in it' if path.is_dir() else 'no such folder'}; name another with {option}")
    return found


def read_plain(images: Path, masks: Path, normals: Path | None, product: str, defect: str) -> list[Picture]:
    """Each picture in `images` with its mask of the same name, or with `_mask` behind it, in `masks`; and normal ones.

    An empty mask says that its picture is normal. Where both folders are one, a mask is what ends in `_mask`. Raises `DataError`
    on a picture without a mask.
    """
    found, known = _folder(images, "--images"), masks_in(masks)
    _folder(masks, "--masks")
    if images.resolve() == masks.resolve():
        known = {stem: path for stem, path in known.items() if stem.endswith(MASK)}
        found = [path for path in found if not path.stem.endswith(MASK)]
    pictures: list[Picture] = []
    empty: list[Path] = []
    used: set[Path] = set()
    for path in found:
        mask = mask_of(path, known)
        if mask is None:
            raise DataError(f"{path}: no mask of its name in {masks}; draw {path.stem}{MASK}.png, an empty one if it shows no defect")
        if mask in used:
            raise DataError(f"{path}: another picture has the same mask, {mask.name}; give each a name and a mask of its own")
        used.add(mask)
        marks = read_mask(mask)
        if not marks.any():
            empty.append(path)
        shape = [(defect, MaskFile(path=mask))] if marks.any() else []
        pictures.append(Picture(path=path, name=path.name, where=str(mask), product=product, shapes=shape, size=marks.shape[::-1]))
    if empty:
        log.warning("%s: %d masks mark nothing: taken for normal, first %s", masks, len(empty), empty[0].name)
    if smeared := [path for path in used if path.suffix.lower() in (".jpg", ".jpeg")]:
        log.warning("%s: %d masks are JPEG, which is lossy: their edges are smeared; save masks as PNG", masks, len(smeared))
    if lone := [path for path in known.values() if path not in used]:
        log.warning("%s: %d masks without a picture in %s, first %s", masks, len(lone), images, lone[0].name)
    for path in _folder(normals, "--normals") if normals else ():
        pictures.append(Picture(path=path, name=path.name, where=str(path), product=product))
    return pictures
