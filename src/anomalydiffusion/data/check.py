"""Read a data set and name every problem with its file."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import illegible, placed_at
from anomalydiffusion.core.types import Product
from anomalydiffusion.data.copies import Level, Say, check_copies, check_near_copies
from anomalydiffusion.data.folders import (
    GOOD,
    SUFFIXES,
    folders_in,
    images_in,
    mask_of,
    masks_in,
    named,
    named_in_vain,
    plain,
    product_folders,
    read_folder,
    read_groups,
)
from anomalydiffusion.data.looks import Seen, see
from anomalydiffusion.data.regions import read_regions, region_files
from anomalydiffusion.data.split import Sides, divide

__all__ = ["Problem", "ProductSummary", "Report", "check"]

LEAST_SIDE = 8  # below this there is no picture to learn from
PADDED_SIDE = 128  # below this an image is smaller than one crop, and is padded by reflection
FEW_BITS = 12  # of 16 that hold a picture, and fewer, leave 16 grey levels of 256 at most
SLIP, SLIPS = 16, 100  # pixels of a mask that look like a slip, where others have so many times as many
LARGE = 50_000_000  # pixels; slow, and more memory than most machines have to spare
FEW_SHOTS = 3
READ_BY_OTHERS = ("", ".txt", ".csv", ".json", ".xml", ".md", ".db", ".ini")  # may lie beside the images


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong (error), may be (warning) or is worth knowing (note); `file` is relative to the data set."""

    level: Level
    file: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSummary:
    """What a product holds; `sizes` are the least and the largest width and height, `defects` counts images with a mask."""

    name: str
    normals_train: int
    normals_test: int
    defects: dict[str, int]
    shots: dict[str, int]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    modes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check` found: errors first, then warnings, then notes."""

    root: Path
    products: tuple[ProductSummary, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not any(problem.level == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "root": str(self.root), "ok": self.ok}


def _words(error: str, path: Path) -> tuple[str, str]:
    """What is wrong and what to do, from the one line of an error that names `path`."""
    message, _, remedy = error.removeprefix(f"{path}: ").rpartition("; ")
    return (message, remedy) if message else (remedy, "restore it or remove it")


def _check_image(path: Path, seen: Seen, say: Say) -> None:
    w, h = seen.size
    if seen.fault:
        say("error", path, *_words(seen.fault, path))
    elif min(w, h) < LEAST_SIDE:
        say("error", path, f"{w} x {h} pixels: too small", "remove it")
    elif w * h > LARGE:
        say("note", path, f"{w} x {h} pixels: over {LARGE // 1_000_000} megapixels, which is slow", "cut it into tiles")
    if seen.pages > 1:
        say("warning", path, f"{seen.pages} pictures in one file, of which the first is read", "save each as a file of its own")
    if seen.turned:
        say("warning", path, "its EXIF data ask to turn it, but pixels are read as they are stored", "save it upright")


def _check_mask(path: Path, seen: Seen, image: Path, image_seen: Seen, say: Say) -> None:
    if seen.fault:
        _check_image(path, seen, say)
        return
    if seen.kind == "JPEG":
        say("warning", path, "a JPEG mask: lossy, its edges are smeared", "save masks as PNG")
    if not seen.marked:
        say("error", path, f"marks no pixel of {image.name}", "draw the defect, or remove both files")
    elif seen.marked == 1:
        say("warning", path, f"marks every pixel of {image.name}", "mark the defect only: 0 elsewhere")
    if not image_seen.fault and seen.size != image_seen.size:
        (w, h), (image_w, image_h) = seen.size, image_seen.size
        say("error", path, f"{w} x {h} pixels, but {image.name} is {image_w} x {image_h}", "draw the mask at the image's size")


def _check_slips(masks: Mapping[Path, Seen], defect: str, say: Say) -> None:
    """Masks that mark next to nothing where others of their type mark a lot: their few pixels would be learned as a defect."""
    areas = {path: round(seen.marked * seen.size[0] * seen.size[1]) for path, seen in masks.items() if not seen.fault and seen.marked}
    usual = int(np.median([*areas.values()])) if areas else 0
    for path, area in areas.items():
        if area < SLIP and SLIPS * area < usual:
            said = f"marks {area} pixel{'s' * (area > 1)}, masks of {defect} usually {usual}: a slip of the pen?"
            say("note", path, said, "draw the whole defect, or remove the mask and its image")


def _check_inverted(masks: Mapping[Path, Seen], defect: str, say: Say) -> None:
    """Masks that usually mark most of an image: all but the defect would be learned as the defect."""
    shares = [seen.marked for seen in masks.values() if not seen.fault]
    if shares and 0.5 < (usual := float(np.median(shares))) < 1:
        first, remedy = next(iter(masks)), "mark the defect only: 0 elsewhere"
        say("warning", first, f"masks of {defect} usually mark {100 * usual:.0f} % of an image: black and white exchanged?", remedy)


def _check_depth(product: str, images: Mapping[Path, Seen], say: Say) -> None:
    """Pictures of cameras with fewer bits than the files have: they are read as dark ones."""
    deep = {path: seen for path, seen in images.items() if seen.peak}
    bits = max((seen.peak for seen in deep.values()), default=2**16 - 1).bit_length()
    if bits < 15:
        message = f"the 16-bit images of {product}, {len(deep)}, use {bits} bits, so they are read as 1/{2 ** (16 - bits)} as bright"
        say("error" if bits <= FEW_BITS else "warning", next(iter(deep)), message, f"multiply their values by {2 ** (16 - bits)}")


def _check_strays(folder: Path, flat: bool, say: Say) -> None:
    """What lies in a folder of images and is not read."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir() and flat:
            say("warning", path, "a folder among images: not read", "move its images up")
        elif path.is_file() and path.suffix.lower() not in (*SUFFIXES, *READ_BY_OTHERS):
            say("warning", path, "not a kind of picture that is read", f"save it as one of {' '.join(SUFFIXES)}")


def _check_defect(folder: Path, defect: str, seen: dict[Path, Seen], say: Say) -> None:
    images, place = images_in(folder / "test" / defect), named(folder / "ground_truth", defect)
    masks, used = masks_in(place), dict[Path, Path]()
    for image in images:
        mask = mask_of(image, masks)
        if mask is None:
            say("error", image, "has no mask", f"add {place.name}/{image.stem}_mask.png to ground_truth, or remove the image")
        elif mask in used:
            say("warning", image, f"has the same mask as {used[mask].name}", "give each image a name and a mask of its own")
        else:
            used[mask] = image
            _check_mask(mask, seen[mask], image, seen[image], say)
    _check_slips({mask: seen[mask] for mask in used}, defect, say)
    _check_inverted({mask: seen[mask] for mask in used}, defect, say)
    for mask in images_in(place):
        if mask not in used:
            say("warning", mask, f"no image in test/{defect} goes with this mask", "add the image, or remove the mask")
            if seen[mask].fault:
                _check_image(mask, seen[mask], say)
    for where in (folder / "test" / defect, place):
        _check_strays(where, True, say)


def _check_groups(folder: Path, items: Sequence[Path], say: Say) -> None:
    path = folder / "groups.csv"
    try:
        groups = read_groups(folder)
    except DataError as error:
        say("error", path, *_words(str(error), path))
        return
    vain, like = named_in_vain(groups, folder, items), items[0].relative_to(folder).as_posix() if items else "test/crack/0.png"
    if vain and len(vain) == len(groups):
        say("error", path, f"names none of the images, first {vain[0]}", f"name each relative to the product, as {like}")
        return
    for file in vain:
        say("warning", path, f"names {file}, which does not exist", f"name it relative to the product, as {like}, or remove the line")
    lone = [name for item in items if plain(name := item.relative_to(folder).as_posix()) not in groups] if groups else []
    if lone:
        say("note", path, f"does not list {len(lone)} of the images, first {lone[0]}: each is its own group", "add them")


def _check_regions(folder: Path, product: Product, seen: dict[Path, Seen], say: Say) -> None:
    """Whether the drawn regions can be used: on which images, and for a defect type that there is."""
    try:
        regions = read_regions(folder)
    except DataError as error:
        path = next(path for _, path in region_files(folder) if str(error).startswith(f"{path}: "))
        say("error", path, *_words(str(error), path))
        return
    sizes = [seen[normal.path].size for normal in product.normals if normal.part == "train" and not seen[normal.path].fault]
    for defect, region in regions.items():
        if defect and defect not in map(plain, product.defects):
            say("warning", region.path, f"there are no images of a defect type {defect}", "name it like a folder of test, or remove it")
        if region.pixels_HW is not None and sizes:
            height, width = region.pixels_HW.shape
            others = sum(size != (width, height) for size in sizes)
            level: Level = "error" if others == len(sizes) else "warning"
            if others:
                say(level, region.path, f"{width} x {height} pixels, as only {len(sizes) - others} of {len(sizes)} normal images have",
                    f"draw outlines instead, in shares of width and height: {region.path.stem}.json")  # fmt: skip


def _check_product(folder: Path, product: Product, sides: Sides, seen: dict[Path, Seen], say: Say) -> None:
    tested = [path for place in folders_in(folder / "test") for path in images_in(place)]
    images = images_in(folder / "train" / GOOD) + tested
    for path in images:
        _check_image(path, seen[path], say)
    _check_depth(product.name, {path: seen[path] for path in images}, say)
    small = [path for path in images if LEAST_SIDE <= min(seen[path].size) < PADDED_SIDE]
    if small:
        say("note", small[0], f"{len(small)} images of {product.name} are under {PADDED_SIDE} pixels on a side, this one first",
            "nothing: they are padded by reflection")  # fmt: skip
    names = [place.name for part in ("test", "ground_truth") for place in folders_in(folder / part) if place.name != GOOD]
    for defect in {plain(name): name for name in reversed(names)}.values():
        _check_defect(folder, defect, seen, say)
        shots = sum(shot.defect == defect for shot in sides.shots)
        if defect in sides.refused:
            message, _, remedy = sides.refused[defect].removeprefix(f"{product.name}/{defect}: ").partition("; ")
            say("error", folder / "test" / defect, message, remedy)
        elif defect in product.defects and shots < FEW_SHOTS:
            say("note", folder / "test" / defect, f"only {shots} to learn from", f"add images: {3 * FEW_SHOTS} are advised")
    if not product.defects:
        say("warning", folder, "no defect image with a mask: nothing to learn", "add test/<defect> and ground_truth/<defect>")
    if not sides.normals:
        say("error", folder / "train" / GOOD, "no normal image to learn from", "add images without a defect, of other parts")
    if not sides.held_out_normals:
        say("note", folder / "test" / GOOD, "no normal image to test on", "add some, of other parts, to measure false alarms")
    for part in ("train", "test"):
        _check_strays(folder / part, False, say)
        _check_strays(folder / part / GOOD, True, say)
    for place in folders_in(folder / "train"):
        if place.name != GOOD:
            say("warning", place, "not read: only train/good is", "move defects to test/<defect>, normal images to train/good")
    _check_groups(folder, images, say)
    _check_regions(folder, product, seen, say)


def _summary(product: Product, sides: Sides, images: list[Path], seen: dict[Path, Seen]) -> ProductSummary:
    sizes = [seen[path].size for path in images if not seen[path].fault] or [(0, 0)]
    widths, heights = zip(*sizes, strict=True)
    shots = Counter(shot.defect for shot in sides.shots)
    masked = [shot for some in product.defects.values() for shot in some]
    return ProductSummary(
        name=product.name,
        normals_train=sum(normal.part == "train" for normal in product.normals),
        normals_test=sum(normal.part == "test" for normal in product.normals),
        defects={name: len(shots) for name, shots in product.defects.items()},
        shots={name: shots[name] for name in product.defects},
        sizes=((min(widths), min(heights)), (max(widths), max(heights))),
        groups=len({normal.group for normal in product.normals} | {shot.group for shot in masked}),
        modes=dict(Counter(seen[path].mode for path in images if not seen[path].fault).most_common()),
    )


def check(data: Path | str) -> Report:
    """Read every image and mask of a data set in MVTec AD layout and report every problem with its file.

    Raises `DataError` if there is no product; whatever else is wrong stands in the report.
    """
    root = placed_at(data)
    folders, products = product_folders(root), read_folder(root).products
    images = {
        name: [path for part in ("train", "test") for place in folders_in(folder / part) for path in images_in(place)
               if part == "test" or place.name == GOOD]
        for name, folder in folders.items()
    }  # fmt: skip
    masks = [path for folder in folders.values() for place in folders_in(folder / "ground_truth") for path in images_in(place)]
    everything = [path for paths in images.values() for path in paths]
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's words on odd files; what matters is reported below
        looks = pool.map(see, everything + masks, [False] * len(everything) + [True] * len(masks))
        seen = dict(zip(everything + masks, looks, strict=True))
    problems: list[Problem] = []

    def say(level: Level, path: Path, message: str, remedy: str) -> None:
        named = path.relative_to(root)
        problems.append(Problem(level=level, file=illegible(named) or named.as_posix(), message=message, remedy=remedy))

    for path in everything + masks:
        if illegible(path):
            say("error", path, "its name is not UTF-8, as files of old archives are", "rename it")
    sides = {name: divide(product) for name, product in products.items()}
    for name, product in products.items():
        _check_product(folders[name], product, sides[name], seen, say)
        check_near_copies(sides[name], seen, say)
    check_copies(list(sides.values()), seen, everything, say)
    levels = ("error", "warning", "note")
    problems = natsorted(problems, key=lambda problem: (levels.index(problem.level), problem.file))
    summaries = tuple(_summary(product, sides[name], images[name], seen) for name, product in products.items())
    return Report(root=root, products=summaries, problems=tuple(problems))
