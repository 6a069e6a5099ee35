"""THE few-shot split: who may be learned from and who is only ever tested on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalydiffusion.core.errors import DataError, SplitError
from anomalydiffusion.core.names import illegible, is_below, is_folder, placed_at, shown
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.core.types import DefectSet, Normal, Product, Shot, Split
from anomalydiffusion.data.folders import images_in, load, named_in_vain, plain, product_folders, read_groups

__all__ = ["Sides", "divide", "few_shot_split", "from_json", "single_split", "to_json"]

SHARE = 3  # one image in three is learned from, as in the paper: the first floor(n / 3) of a defect type


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """One product, divided; `refused` says of each defect type that cannot be divided why."""

    shots: tuple[Shot, ...]
    held_out: tuple[Shot, ...]
    normals: tuple[Normal, ...]
    held_out_normals: tuple[Normal, ...]
    refused: dict[str, str]


def _deal(shots: Sequence[Shot], learned: dict[str, bool]) -> bool:
    """Give each group of one defect type its side in `learned`; say whether both sides got an image."""
    sizes = Counter(shot.group for shot in shots)  # in the order of each group's first file
    free = [group for group in sizes if group not in learned]
    count = sum(size for group, size in sizes.items() if learned.get(group))
    taken = []
    for group in free:
        if count + sizes[group] > len(shots) // SHARE:
            break
        count += sizes[group]
        taken.append(group)
    if free and not count:
        taken = [min(free, key=sizes.__getitem__)]
    learned.update({group: group in taken for group in free})
    return len({learned[group] for group in sizes}) == 2


def _refusal(product: Product, defect: str) -> str:
    shots = product.defects[defect]
    where, remedy = f"{product.name}/{defect}", "or leave it out by naming the other types with --defect"
    if len(shots) == 1:
        return f"{where}: 1 image with a mask, but both sides of the split need one; add images (3 or more advised) {remedy}"
    if len({shot.group for shot in shots}) == 1:
        return f"{where}: all {len(shots)} images are of one group in groups.csv; add images of another part {remedy}"
    return f"{where}: its groups also show other defect types, which leaves one side empty; add images of other parts {remedy}"


def _turned(shots: Sequence[Shot], rotation: int) -> list[Shot]:
    """The images of one defect type with their groups' order turned on by `rotation` thirds."""
    groups = list(dict.fromkeys(shot.group for shot in shots))
    first = round(len(groups) * (rotation % SHARE) / SHARE)
    place = {group: index for index, group in enumerate([*groups[first:], *groups[:first]])}
    return sorted(shots, key=lambda shot: place[shot.group])


def divide(product: Product, rotation: int = 0) -> Sides:
    """Divide one product. A group never stands on both sides, whichever defect types and normal images it has.

    Defect types in natural order; in each, groups in the natural order of their first file. A group that an earlier type
    placed keeps its side. The shots are whole groups, taken in that order as long as they are floor(n / 3) images or fewer in
    all, with those placed before; the first group that is too large ends them. Where that gives no shot, the smallest group
    (the first of equals) is the shots. A type whose groups were all placed on one side before is dealt first, and all begins
    anew; if that does not help, it is refused. Without groups these are the first floor(n / 3) images, 1 of 2.
    `rotation` 1 and 2 begin each type's order a third and two thirds on: other shots, for judging how much is the split's luck.

    Normals: train/good, save the images of a held-out group, which are held out. Held-out normals: test/good, save the
    images of a group that is learned from, which stand nowhere.
    """
    order = [name for name, shots in product.defects.items() if len({shot.group for shot in shots}) > 1]
    refused = {name: _refusal(product, name) for name in product.defects if name not in order}
    dealt_from = {name: _turned(shots, rotation) for name, shots in product.defects.items()}
    hurried: set[str] = set()
    while True:
        learned: dict[str, bool] = {}
        stuck = next((name for name in order if not _deal(dealt_from[name], learned)), None)
        if stuck is None:
            break
        order.remove(stuck)
        if stuck in hurried:
            refused[stuck] = _refusal(product, stuck)
        else:
            hurried.add(stuck)
            order.insert(0, stuck)
    dealt = [shot for name, shots in product.defects.items() if name not in refused for shot in shots]
    normals = tuple(n for n in product.normals if n.part == "train" and learned.get(n.group, True))
    known = {n.group for n in normals} | {group for group, side in learned.items() if side}
    return Sides(
        shots=tuple(shot for shot in dealt if learned[shot.group]),
        held_out=tuple(shot for shot in dealt if not learned[shot.group]),
        normals=normals,
        held_out_normals=tuple(n for n in product.normals if n.group not in known),
        refused=refused,
    )


def _asked(names: Iterable[str], known: Iterable[str], what: str) -> set[str]:
    """The names that were asked for as they are compared, each a known one."""
    there = {plain(name): name for name in known}
    for name in names:
        if plain(name) not in there:
            raise SplitError(f"no {what} '{name}' with masked images; known here: {', '.join(there.values()) or 'none'}")
    return {plain(name) for name in names}


def few_shot_split(
    data: DefectSet, *, products: Sequence[str] | None = None, defects: Sequence[str] | None = None, rotation: int = 0
) -> Split:  # fmt: skip
    """Split `data`: of each defect type the first floor(n / 3) images are shots, the rest is held out; `divide` has the rule.

    `products` and `defects` choose what takes part (all, if None or empty); they never change an image's side; `rotation` does.
    Raises `SplitError` on unknown names, a defect type that cannot be divided and a product without normal images, and
    `DataError` on a broken groups.csv, an unreadable file and the same content on both sides.
    """
    wanted = _asked(products or (), [name for name, product in data.products.items() if product.defects], "product")
    among = [product for name, product in data.products.items() if not wanted or plain(name) in wanted]
    types = _asked(defects or (), [name for product in among for name in product.defects], "defect type")
    folders = product_folders(data.root)
    shots: list[Shot] = []
    held_out: list[Shot] = []
    normals: list[Normal] = []
    held_out_normals: list[Normal] = []
    for product in among:
        chosen = [name for name in product.defects if not types or plain(name) in types]
        if not chosen:
            continue
        _check_groups(product, folders[product.name])
        sides = divide(product, rotation)
        for name in chosen:
            if name in sides.refused:
                raise SplitError(sides.refused[name])
        if not sides.normals:
            raise SplitError(f"{product.name}: no normal image to learn from; put images without a defect, of parts that no "
                             f"held-out image shows, into {product.name}/train/good")  # fmt: skip
        shots += [shot for shot in sides.shots if shot.defect in chosen]
        held_out += [shot for shot in sides.held_out if shot.defect in chosen]
        normals += sides.normals
        held_out_normals += sides.held_out_normals
    if not shots:
        raise SplitError(f"{data.root}: no defect image with a mask; put <stem>_mask.png into <product>/ground_truth/<defect>")
    roles = _roles(shots, held_out, normals, held_out_normals)
    sha256 = _hashes(roles)
    lines = sorted(
        (name, _relative(path, data.root), sha256[path])
        for role, item in roles
        for name, path in ((role, item.path), *([("mask", item.mask_path)] if isinstance(item, Shot) else []))
    )
    return Split(
        shots=tuple(shots),
        held_out=tuple(held_out),
        normals=tuple(normals),
        held_out_normals=tuple(held_out_normals),
        sha256=sha256,
        digest=hashlib.sha256(os.fsencode("\n".join("\t".join(line) for line in lines))).hexdigest()[:16],
    )


def _check_groups(product: Product, folder: Path) -> None:
    """Raises on a broken groups.csv, or one that names no image: either would silently part the groups."""
    groups, shots = read_groups(folder), [shot for own in product.defects.values() for shot in own]
    vain = named_in_vain(groups, folder, [*(normal.path for normal in product.normals), *(shot.path for shot in shots)])
    if vain and len(vain) == len(groups):
        raise SplitError(f"{folder / 'groups.csv'}: names none of the images of {product.name}, first {vain[0]}; name each relative to "
                         f"{folder}, as test/{next(iter(product.defects))}/0.png")  # fmt: skip


def single_split(reference: Path, mask: Path, normals: Path, product: str, defect: str) -> tuple[Split, Path]:
    """One defect image with its mask, the pictures in a folder of normal ones, and nothing held out; with the folder that holds all.

    Raises `DataError` where one of them cannot be used, or the defect is among the normals.
    """
    shot = Shot(product=product, defect=defect, path=reference.resolve(), mask_path=mask.resolve(), group=reference.name)
    _, marked = load(shot)
    if marked.pixels_HW.all():
        raise DataError(f"{mask}: marks every pixel; mark the defect alone")
    pictures = images_in(normals.resolve())
    if not pictures:
        raise DataError(f"{normals}: no normal images to draw on; give --normals a folder of pictures without a defect")
    own = tuple(Normal(product=product, path=path, part="train", group=path.name) for path in pictures)
    sha256 = _hashes(_roles([shot], (), own, ()))
    for normal in own:
        if sha256[normal.path] == sha256[shot.path]:
            raise DataError(f"{normal.path}: is the picture with the defect; take it out of the normal ones")
    lines = sorted(f"{path.name}\t{value}" for path, value in sha256.items())
    digest = hashlib.sha256(os.fsencode("\n".join([product, defect, *lines]))).hexdigest()[:16]
    split = Split(shots=(shot,), held_out=(), normals=own, held_out_normals=(), sha256=sha256, digest=digest)
    return split, Path(os.path.commonpath([path.parent for path in sha256]))


Roles = list[tuple[str, Shot | Normal]]


def _roles(shots: Iterable[Shot], held: Iterable[Shot], normals: Iterable[Normal], held_normals: Iterable[Normal]) -> Roles:
    named: dict[str, Iterable[Shot | Normal]]
    named = {"shot": shots, "held_out": held, "normal": normals, "held_out_normal": held_normals}
    return [(role, item) for role, items in named.items() for item in items]


def _hashes(roles: Roles) -> dict[Path, str]:
    masks = [item.mask_path for _, item in roles if isinstance(item, Shot)]
    paths = list(dict.fromkeys([item.path for _, item in roles] + masks))
    if odd := next(filter(None, map(illegible, paths)), None):
        raise DataError(f"{odd}: its name is not UTF-8, as files of old archives are; rename it")
    try:
        with ThreadPoolExecutor() as pool:
            return dict(zip(paths, pool.map(digest_file, paths), strict=True))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); restore it or remove it") from error


def _relative(path: Path, root: Path) -> str:
    for base in (root, placed_at(root)):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    raise DataError(f"{path}: not inside {root}; give the folder that the split was made from")


def to_json(split: Split, root: Path) -> dict[str, Any]:
    """The split as plain values, paths relative to `root`: what a run keeps in split.json."""
    files = []
    for role, item in _roles(split.shots, split.held_out, split.normals, split.held_out_normals):
        shot = item if isinstance(item, Shot) else None
        files.append({
            "path": _relative(item.path, root), "sha256": split.sha256[item.path], "role": role, "product": item.product,
            "defect": shot and shot.defect, "group": item.group, "mask": shot and _relative(shot.mask_path, root),
            "mask_sha256": shot and split.sha256[shot.mask_path],
        })  # fmt: skip
    return {"digest": split.digest, "root": str(root), "files": files}


def _below(root: Path, name: str) -> Path:
    if not is_below(name):
        raise ValueError(f"{shown(name)} may lie outside of {root}")
    return root / name


def _named(name: str) -> str:
    if not is_folder(name):
        raise ValueError(f"{shown(name)} is no name for a folder")
    return name


def from_json(record: dict[str, Any], root: Path) -> Split:
    """The split that `to_json` wrote, files under `root`. Raises `DataError` on a missing file; hashes are not compared."""
    root = placed_at(root)
    sides: dict[str, list[Any]] = {"shot": [], "held_out": [], "normal": [], "held_out_normal": []}
    sha256: dict[Path, str] = {}
    try:
        if not isinstance(record["files"], list):
            raise TypeError("files is no list")
        for file in record["files"]:
            path, common = _below(root, file["path"]), {"product": _named(file["product"]), "group": str(file["group"])}
            sha256[path] = file["sha256"]
            if (file["mask"] is None) is not file["role"].endswith("normal"):
                raise ValueError(f"the mask of a file that is {file['role']}")
            if file["mask"] is None:
                part = "train" if path.parent.parent.name == "train" else "test"
                sides[file["role"]].append(Normal(path=path, part=part, **common))
            else:
                mask = _below(root, file["mask"])
                sha256[mask] = file["mask_sha256"]
                sides[file["role"]].append(Shot(defect=_named(file["defect"]), path=path, mask_path=mask, **common))
        digest = record["digest"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the record of the split is damaged ({error!r}); train anew in an empty folder") from error
    if missing := [path for path in sha256 if not path.is_file()]:
        raise DataError(f"{missing[0]}: no such file, but the split names it ({len(missing)} missing in all); restore it")
    return Split(
        shots=tuple(sides["shot"]),
        held_out=tuple(sides["held_out"]),
        normals=tuple(sides["normal"]),
        held_out_normals=tuple(sides["held_out_normal"]),
        sha256=sha256,
        digest=digest,
    )
