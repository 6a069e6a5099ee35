"""Turn other tools' labelled data into a data set in MVTec AD layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natsort import natsorted

from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.names import at_home
from anomalydiffusion.core.runs import replace_folder
from anomalydiffusion.data.arrange import check_pictures, place, write
from anomalydiffusion.data.coco import read_coco
from anomalydiffusion.data.folders import product_folders
from anomalydiffusion.data.foreign import LAYOUTS, TABLES, read_table, recognise
from anomalydiffusion.data.incoming import Picture
from anomalydiffusion.data.labelstudio import read_labelstudio
from anomalydiffusion.data.visa import read_plain, read_visa
from anomalydiffusion.data.yolo import read_yolo

__all__ = ["ImportSummary", "import_data"]

FOLDERS = "folders"
OPTIONS = {  # what each format can be told
    "visa": {"product"}, "coco": {"images", "product"}, "yolo": {"product"}, "labelstudio": {"images", "product"},
    FOLDERS: {"images", "masks", "normals", "product", "defect"},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What was written: of each product the number of images by folder."""

    format: str
    output: Path
    counts: dict[str, dict[str, int]]


def _find(source: Path, format: str | None) -> tuple[str, Path]:
    """The format of `source` and the file that describes it."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give the one that holds the labels")
    if format is not None and source.is_file():
        return format, source  # its reader says best what is wrong with it
    found = recognise(source, format)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{source}: holds {', '.join(f'{path.name} ({known})' for known, path in found)}; name one of these files")
    if format is not None:
        raise DataError(f"{source}: not {LAYOUTS[format]}; give its file, or another --format")
    if source.is_file() and source.suffix.lower() in TABLES:
        read_table(source)  # says what is wrong with it, if it is damaged
    try:
        product_folders(source)
    except DataError:
        formats = f"{', '.join(LAYOUTS.values())} or, with --masks, pictures"
        raise ConfigError(f"{source}: not recognised as {formats}; give the file of the labels, or --format") from None
    raise ConfigError(f"{source}: is in MVTec AD layout already; type: anomalydiffusion check {source}")


def _format(source: Path | None, format: str | None, places: dict[str, Path], names: dict[str, str]) -> tuple[str, Path | None]:
    """The format, and the file of the labels, which folders have not; refuses options that say nothing about it."""
    if format is not None and format not in OPTIONS:
        raise ConfigError(f"format '{format}' is not known; known: {', '.join(OPTIONS)}")
    file = None
    if format is None and "masks" in places:
        format = FOLDERS
    elif format != FOLDERS:
        if source is None:
            raise ConfigError("nothing to import; give the file or folder of the labels, or --images and --masks")
        format, file = _find(source, format)
    if wrong := sorted({*places, *names} - OPTIONS[format]):
        raise ConfigError(f"--{wrong[0]} says nothing about {LAYOUTS.get(format, 'folders')}; leave it out or give another --format")
    return format, file


def _plain(source: Path | None, places: dict[str, Path], names: dict[str, str]) -> list[Picture]:
    """Plain folders, of which `source` may be the one of pictures."""
    if source is not None and "images" in places:
        raise ConfigError(f"{source} and --images {places['images']} both name the pictures; give one")
    places = places if source is None else {**places, "images": source}
    if lacking := [name for name in ("images", "masks", "product", "defect") if name not in {**places, **names}]:
        raise ConfigError(f"--{lacking[0]} is missing; folders need --images, --masks, --product and --defect")
    return read_plain(places["images"], places["masks"], places.get("normals"), names["product"], names["defect"])


def _visa(file: Path, product: str | None) -> list[Picture]:
    """The pictures in VisA's table, of one product if it is given."""
    pictures = read_visa(file)
    known = {picture.product for picture in pictures}
    if product is not None and product not in known:
        raise ConfigError(f"no product '{product}' in {file}; known there: {', '.join(natsorted(known))}")
    return [picture for picture in pictures if product in (None, picture.product)]


def import_data(
    source: Path | str | None, output: Path | str, format: str | None = None, *, images: Path | str | None = None,
    masks: Path | str | None = None, normals: Path | str | None = None, product: str | None = None, defect: str | None = None,
) -> ImportSummary:  # fmt: skip
    """Write the labelled pictures of `source` as the new folder `output` in MVTec AD layout, for `check` and `train`.

    `format`: visa, coco, yolo, labelstudio (found by the files if None), or folders: `images` (or `source`) with `masks` of the
    same names and `normals`, of one `product` and `defect`. A label is a defect type; `product/type` names both, else `product`
    does, else the folder. A picture with nothing marked is normal; train/good and test/good follow the source's division, else
    the last fifth in natural order is for testing. A picture of several types goes, with all that is marked on it, to the type
    that marks most, and a warning names it. Files are hard links where that can be, else copies; masks are 8-bit PNG, 0 or 255.
    `imported.csv` says where each is from. The folder is written whole or not at all.
    Raises `DataError` on what cannot be read or is there already, `ConfigError` on what was asked for.
    """
    source, output = at_home(source) if source is not None else None, at_home(output)
    folders = {"images": images, "masks": masks, "normals": normals}
    places = {name: at_home(value) for name, value in folders.items() if value is not None}
    names = {name: value for name, value in (("product", product), ("defect", defect)) if value is not None}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already; name a new folder with --output")
    format, file = _format(source, format, places, names)
    if (pictures_in := places.get("images")) is not None and not pictures_in.is_dir():
        raise DataError(f"{pictures_in}: no such folder; name the one that holds the pictures with --images")
    if file is None:
        pictures, fallback = _plain(source, places, names), ""
    else:
        above = file.resolve().parent
        fallback = (above.parent if above.name == "annotations" else above).name
        if format == "visa":
            pictures, product = _visa(file, product), None
        elif format == "yolo":
            pictures = read_yolo(file)
        else:
            pictures = (read_coco if format == "coco" else read_labelstudio)(file, pictures_in)
    check_pictures(pictures, file or Path(str(source)))
    placed = place(pictures, product, fallback)
    with replace_folder(output) as part:
        counts = write(part, placed)
    return ImportSummary(format=format, output=output.resolve(), counts=counts)
