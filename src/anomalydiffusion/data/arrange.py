"""Write pictures, and what is marked on them, in MVTec AD layout."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from natsort import natsorted

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import shown
from anomalydiffusion.core.pixels import encode_png, is_turned, read_size
from anomalydiffusion.data.folders import GOOD, SUFFIXES
from anomalydiffusion.data.incoming import Picture

__all__ = ["Placed", "check_pictures", "clean", "place", "write"]

LINEAGE = "imported.csv"
HELD_BACK = 5  # one normal image in so many is for testing
LONGEST = 200  # bytes of a name; file systems take 255, and a mask's name is longer
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins so is worked out, not shown
SHOWN = 5  # names in a warning
log = logging.getLogger(__name__)

Key = tuple[str, str]  # product and defect type as folders are called


def clean(name: str) -> str:
    """A name that any file system takes: no separators, no control characters, no dots around it, not too long; "" if none is left."""
    plain = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    return UNSAFE.sub("_", plain).strip(" .").encode()[:LONGEST].decode(errors="ignore").strip(" .")


@dataclass(slots=True)
class _Names:
    """The folders' names, each for one name in the source."""

    taken: dict[tuple[str, ...], str] = field(default_factory=dict)

    def folder(self, name: str, where: str, *above: str) -> str:
        """What the folder for `name` is called. Raises `DataError` where there is no such name, or another has it."""
        found = clean(name)
        if not found or (above and found.casefold() == GOOD):
            what = "is no name for a folder" if not found else "is what the folder of normal images is called"
            raise DataError(f"{where}: {shown(name)} {what}; rename it")
        first = self.taken.setdefault((*above, found.casefold()), name)
        if first != name:
            raise DataError(f"{where}: {shown(first)} and {shown(name)} would both be the folder {found}; rename one")
        return found


def _parted(label: str, picture: Picture, product: str | None) -> tuple[str, str]:
    """Product and defect type: `product/type` is both, if the product is not given otherwise; it is "" where unknown."""
    parts = [part.strip() for part in label.split("/")]
    if product is None and not picture.product and len(parts) == 2 and all(clean(part) for part in parts):
        return parts[0], parts[1]
    return product or picture.product, label


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A picture and its place: a defect type and the mask, or normal."""

    picture: Picture
    product: str
    shapes: dict[Key, list[int]]  # which of the picture's shapes show which type


def place(pictures: Sequence[Picture], product: str | None, fallback: str) -> list[Placed]:
    """Say of each picture which product and which types it shows; `fallback` is a product that has no name in the source.

    Raises `DataError` on names that cannot be folders, or not two folders.
    """
    names, placed = _Names(), list[Placed]()
    labels = [[_parted(label, picture, product) for label, _ in picture.shapes] for picture in pictures]
    known = {name or fallback for found in labels for name, _ in found}
    for picture, found in zip(pictures, labels, strict=True):
        shapes: dict[Key, list[int]] = {}
        for index, (name, kind) in enumerate(found):
            folder = names.folder(name or fallback, picture.where)
            shapes.setdefault((folder, names.folder(kind, picture.where, folder)), []).append(index)
        own = product or picture.product
        if not found and not own:
            first = picture.name.split("/")[0]
            own = first if first in known else next(iter(known)) if len(known) == 1 else fallback if not known else ""
            if not own:
                raise DataError(f"{picture.where}: {picture.name} is normal, but of which product? name one for all with --product")
        folder = names.folder(own, picture.where) if not found else ""
        placed.append(Placed(picture=picture, product=folder, shapes=shapes))
    return placed


def check_pictures(pictures: Sequence[Picture], source: Path) -> None:
    """Refuse what could not be read later, before anything is written; pixels are not read."""
    if not pictures:
        raise DataError(f"{source}: names no picture; nothing to import")
    seen: dict[Path, str] = {}
    for picture in pictures:
        path = picture.path
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: not a kind of picture that is read; save it as one of {' '.join(SUFFIXES)}")
        if (file := path.resolve()) in seen:
            raise DataError(f"{picture.where}: {picture.name} stands there twice, first in {seen[file]}; keep one")
        seen[file] = picture.where
        if picture.shapes and is_turned(path):
            remedy = "save it upright and label it again"
            raise DataError(f"{path}: its EXIF data ask to turn it, so what was drawn on it lies elsewhere in its pixels; {remedy}")
        size = read_size(path)
        if picture.size is not None and picture.size != size:
            (w, h), (width, height) = picture.size, size
            remedy = "it may have been turned: save it upright and label it again" if (h, w) == size else "label the picture as it is"
            raise DataError(f"{picture.where}: says {w} x {h} pixels, but {path} is {width} x {height}; {remedy}")


def _draw(placed: Placed) -> tuple[Key, np.ndarray]:
    """The type that marks most of a picture, and all that is marked on it."""
    width, height = read_size(placed.picture.path)
    whole, areas = np.zeros((height, width), dtype=bool), dict[Key, int]()
    for key, indices in placed.shapes.items():
        own = np.zeros_like(whole)
        for index in indices:
            placed.picture.shapes[index][1].draw(own)
        areas[key] = int(own.sum())
        whole |= own
    if not whole.any():
        marks = "what is drawn on it marks no pixel; draw it larger and within the picture, or remove both"
        raise DataError(f"{placed.picture.where}: {placed.picture.name}: {marks}")
    return max(areas, key=areas.__getitem__), whole


def _divide(normals: Iterable[Placed]) -> dict[Placed, str]:
    """train or test for each normal picture of one product: as the source says, else the last fifth is for testing.

    The last, not every fifth: photographs taken in a row, which may show one part, stay together.
    """
    ordered = natsorted(normals, key=lambda one: one.picture.name)
    loose = [one for one in ordered if one.picture.part is None]
    held = max(1, len(loose) // HELD_BACK) if len(loose) > 1 else 0
    return {one: one.picture.part or "train" for one in ordered} | dict.fromkeys(loose[len(loose) - held :], "test")


def _stems(picture: Picture) -> Iterator[str]:
    """What a picture may be called: as in the source, with its folders before it, with a number behind it."""
    stem = clean(picture.path.stem) or "picture"
    yield stem
    yield clean(picture.name.rpartition(".")[0].replace("/", "_")) or stem
    yield from (f"{stem}_{number}" for number in count(2))


def _link(source: Path, target: Path) -> None:
    """The same file under another name where that can be, else a copy; never a symbolic link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _unmoved(name: str) -> str:
    """The same place in words that no spreadsheet takes for a formula."""
    return f"./{name}" if name.startswith(FORMULA) else name


class _Writer:
    """The new data set as it grows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.taken: set[tuple[str, str]] = set()
        self.counts: dict[str, Counter[str]] = {}
        self.lines: list[tuple[str, str]] = [("file", "source")]

    def put(self, picture: Picture, product: str, place: str) -> str:
        """Put a picture into `<product>/<place>`; return the stem that is its own there."""
        folder = f"{product}/{place}"
        stem = next(stem for stem in _stems(picture) if (folder, stem.casefold()) not in self.taken)
        self.taken.add((folder, stem.casefold()))
        name = f"{folder}/{stem}{picture.path.suffix}"
        _link(picture.path, self.root / name)
        self.lines.append((_unmoved(name), _unmoved(picture.name)))
        self.counts.setdefault(product, Counter())[place] += 1
        return stem

    def put_mask(self, pixels_HW: np.ndarray, key: Key, stem: str) -> None:
        """Write the mask of the picture that `put` gave this stem."""
        path = self.root / key[0] / "ground_truth" / key[1] / f"{stem}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(pixels_HW))

    def finish(self) -> dict[str, dict[str, int]]:
        """Write where each file is from; return the counts."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.lines)
        (self.root / LINEAGE).write_text(text.getvalue(), encoding="utf-8", errors="replace")
        normal = (f"train/{GOOD}", f"test/{GOOD}")  # these first
        return {
            name: {place: counts[place] for place in (*normal, *natsorted(set(counts) - set(normal))) if place in counts}
            for name, counts in natsorted(self.counts.items(), key=lambda item: item[0])
        }


def write(root: Path, placed: Sequence[Placed]) -> dict[str, dict[str, int]]:
    """Write all pictures and masks into the empty folder `root`; return the number of images by product and folder.

    Files are hard links where that can be, else copies; `imported.csv` says where each is from. Raises `DataError` on a picture
    of which nothing is marked although something was drawn.
    """
    writer, several = _Writer(root), list[str]()
    normals: dict[str, list[Placed]] = {}
    for one in natsorted(placed, key=lambda one: one.picture.name):
        if not one.shapes:
            normals.setdefault(one.product, []).append(one)
            continue
        key, pixels_HW = _draw(one)
        if len(one.shapes) > 1:
            several.append(f"{one.picture.name} ({', '.join(kind for _, kind in one.shapes)}: {key[1]})")
        writer.put_mask(pixels_HW, key, writer.put(one.picture, key[0], f"test/{key[1]}"))
    for product, ones in normals.items():
        parts = _divide(ones)
        for one in ones:
            writer.put(one.picture, product, f"{parts[one]}/{GOOD}")
    if several:
        more = f" and {len(several) - SHOWN} more" if len(several) > SHOWN else ""
        log.warning(
            "%d of the images show several types, and go to the one that marks most: %s%s", len(several), "; ".join(several[:SHOWN]), more
        )
    return writer.finish()
