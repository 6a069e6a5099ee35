"""Read a data set from disk in MVTec AD layout."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from natsort import natsorted

from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.core.names import brief, placed_at
from anomalydiffusion.core.pixels import read_image, read_mask
from anomalydiffusion.core.types import DefectSet, Mask, Normal, Product, Shot
from anomalydiffusion.data.foreign import advice

__all__ = [
    "GOOD", "SUFFIXES", "folders_in", "group_named", "images_in", "load", "load_normal", "mask_of", "masks_in",
    "named", "named_in_vain", "plain", "product_folders", "read_folder", "read_groups",
]  # fmt: skip

GOOD = "good"  # the folder of images without a defect
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")  # lossless first: of two masks with one name, it wins


def _natural(paths: Iterable[Path]) -> list[Path]:
    """Natural order by name, "2" before "10"; "01" and "1" are told apart by the plain order, never by the file system's."""
    return natsorted(sorted(paths), key=lambda path: path.name)


def plain(text: str) -> str:
    """A name as it is compared: file systems and spreadsheets write an accent in different ways."""
    return unicodedata.normalize("NFC", text)


def folders_in(folder: Path) -> list[Path]:
    """The visible sub-folders of `folder` in natural order; none if it does not exist."""
    return _natural(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []


def named(folder: Path, name: str) -> Path:
    """The sub-folder of that name, however its accents are written."""
    own = folder / name
    return own if own.is_dir() else next((path for path in folders_in(folder) if plain(path.name) == plain(name)), own)


def images_in(folder: Path) -> list[Path]:
    """The pictures that lie in `folder` in natural order, dead links too; none if it does not exist."""
    if not folder.is_dir():
        return []
    return _natural(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir())


def masks_in(folder: Path) -> dict[str, Path]:
    """The masks in a folder of ground truth by their stem."""
    found: dict[str, Path] = {}
    for path in sorted(images_in(folder), key=lambda path: SUFFIXES.index(path.suffix.lower())):
        found.setdefault(plain(path.stem), path)
    return found


def mask_of(image: Path, masks: dict[str, Path]) -> Path | None:
    """The mask of `image` among `masks` (from `masks_in`): `<stem>_mask`, else `<stem>`, of any suffix."""
    stem = plain(image.stem)
    return masks.get(f"{stem}_mask", masks.get(stem))


def product_folders(root: Path) -> dict[str, Path]:
    """Name and folder of each product under `root`: each sub-folder with a `train` or `test` folder, else `root` itself.

    Raises `DataError` if there is none; it says what to type where `root` is another tool's data set that can be imported.
    """
    root = placed_at(root)
    found = [p for p in [*folders_in(root), root] if (p / "train").is_dir() or (p / "test").is_dir()]
    found = [p for p in found if p != root] or found
    ours = any((p / inner).is_dir() for p in found for inner in (f"train/{GOOD}", f"test/{GOOD}", "ground_truth"))
    if not ours and (command := advice(root)) is not None:
        raise DataError(command)
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; give the folder that holds the products")
    if not found:
        raise DataError(f"{root}: no product here; make <product>/train/good, test/<defect>, ground_truth/<defect>")
    return {p.name: p for p in found}


def read_groups(folder: Path) -> dict[str, str]:
    """Read a product's `groups.csv`: file (relative to the product) -> group. Empty without one; the first word on a file counts.

    Raises `DataError` if the file cannot be read as such.
    """
    path = folder / "groups.csv"
    if not path.exists():
        return {}
    if not path.is_file():  # a folder, or a pipe, from which reading would never end
        raise DataError(f"{path}: is no file; give a CSV in UTF-8, columns file,group")
    groups: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = csv.DictReader(handle, skipinitialspace=True)
            if lacking := {"file", "group"} - set(rows.fieldnames or ()):
                raise DataError(f"{path}: no column {' and '.join(sorted(lacking))}; the first line must read file,group")
            for row in rows:
                file, group = (row["file"] or "").strip().replace("\\", "/"), (row["group"] or "").strip()
                if file and not group:
                    raise DataError(f"{path}: {brief(file)} has no group; name one or remove the line")
                if file and (first := groups.setdefault(plain(str(PurePosixPath(file))), group)) != group:
                    raise DataError(f"{path}: {brief(file)} stands in two groups ({brief(first)}, {brief(group)}); keep one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); save it as CSV in UTF-8, columns file,group") from error
    return groups


def group_named(path: Path, folder: Path, groups: dict[str, str]) -> str | None:
    """The group that a product's `groups.csv` (from `read_groups`) gives a file below its `folder`; None where it names none."""
    return groups.get(plain(path.relative_to(folder).as_posix())) if path.is_relative_to(folder) else None


def named_in_vain(groups: dict[str, str], folder: Path, items: Sequence[Path]) -> list[str]:
    """The files that a product's `groups.csv` names and that are not below its `folder`, whose known pictures are `items`."""
    there = {plain(item.relative_to(folder).as_posix()) for item in items if item.is_relative_to(folder)}
    return [file for file in groups if file not in there and not (folder / file).exists()]


def _read_product(name: str, folder: Path) -> Product:
    try:
        groups = read_groups(folder)
    except DataError:  # reading only lists; `check` names this problem, `few_shot_split` refuses it
        groups = {}

    def group_of(path: Path) -> str:
        return group_named(path, folder, groups) or path.relative_to(folder).as_posix()

    normals = tuple(
        Normal(product=name, path=path, group=group_of(path), part=part)
        for part in ("train", "test")
        for path in images_in(folder / part / GOOD)
    )
    defects: dict[str, tuple[Shot, ...]] = {}
    for place in folders_in(folder / "test"):
        masks = masks_in(named(folder / "ground_truth", place.name))
        shots = tuple(
            Shot(product=name, defect=place.name, path=path, mask_path=mask, group=group_of(path))
            for path in images_in(place)
            if (mask := mask_of(path, masks)) is not None
        )
        if shots and place.name != GOOD:
            defects[place.name] = shots
    return Product(name=name, normals=normals, defects=defects)


def read_folder(root: Path) -> DefectSet:
    """List the products under `root`, their normal images, and each defect image that has a mask, in natural order.

    `DATA/<product>/{train/good, test/good, test/<defect>, ground_truth/<defect>/<stem>_mask.png}`; `root` may be one product.
    A file's group comes from `groups.csv`; a file that is not in it is its own group. No picture is opened: `data.check` does.
    Raises `DataError` if there is no product.
    """
    products = {name: _read_product(name, folder) for name, folder in product_folders(root).items()}
    return DefectSet(root=placed_at(root), products=products)


def load(shot: Shot) -> tuple[np.ndarray, Mask]:
    """Read a shot's image (uint8 RGB H x W x 3) and mask. Raises `MaskError` on an empty mask or one of another size."""
    image_HWC, pixels_HW = read_image(shot.path), read_mask(shot.mask_path)
    if image_HWC.shape[:2] != pixels_HW.shape:
        (h, w), (mask_h, mask_w) = image_HWC.shape[:2], pixels_HW.shape
        raise MaskError(f"{shot.mask_path}: {mask_w} x {mask_h}, but {shot.path} is {w} x {h}; draw the mask at the image's size")
    if not pixels_HW.any():
        raise MaskError(f"{shot.mask_path}: marks no pixel; draw the defect or remove {shot.path}")
    return image_HWC, Mask(pixels_HW=pixels_HW, origin="real")


def load_normal(normal: Normal) -> np.ndarray:
    """Read a normal image as uint8 RGB H x W x 3."""
    return read_image(normal.path)
