"""The layouts that other tools read: MVTec AD's folders, COCO's annotations, YOLO's polygons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.manifest import DEFECT, IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, PRODUCT
from anomalydiffusion.core.pixels import decode_png, encode_png, read_image, read_mask
from anomalydiffusion.core.types import Mask

__all__ = ["FORMATS", "Goods", "Record", "outline", "run_lengths"]

Record = dict[str, Any]
Goods = Mapping[str, Sequence[tuple[Path, str]]]  # path and SHA-256 of a product's normal images
EIGHT = np.ones((3, 3))
VALIDATION = 5  # one source image in so many is for validation


def _read(path: Path, sha256: str, remedy: str) -> bytes:
    """The file's bytes, which must be those that were recorded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{path}: changed since it was recorded (another SHA-256); {remedy}")
    return data


def _as_png(path: Path, data: bytes) -> bytes:
    """`data` itself where it is an 8 bit grey or RGB PNG, else the picture at `path` written as one."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] in (b"\x08\x00", b"\x08\x02"):  # depth and colour type
        return data
    return encode_png(read_image(path))


def _pair_bytes(run: Path, record: Record) -> tuple[bytes, bytes]:
    """Image and mask of a record as PNG files of one size; the mask 8 bit, 0 or 255."""
    remedy = "restore it, or remove its line from manifest.jsonl and make it again with: anomalydiffusion generate"
    image_path, mask_path = run / record[IMAGE], run / record[MASK]
    image, mask = _read(image_path, record[IMAGE_SHA256], remedy), _read(mask_path, record[MASK_SHA256], remedy)
    try:
        image = _as_png(image_path, image)
        pixels_HW = read_mask(mask_path)
        height, width = decode_png(image).shape[:2]
    except (DataError, OSError) as error:
        raise RunError(f"{image_path}, {mask_path.name}: not a picture ({error}); {remedy}") from error
    if not pixels_HW.any():
        raise RunError(f"{mask_path}: the mask marks no pixel; {remedy}")
    if pixels_HW.shape != (height, width):
        raise RunError(f"{mask_path}: {pixels_HW.shape[1]} x {pixels_HW.shape[0]}, but its image is {width} x {height}; {remedy}")
    plain = decode_png(mask)
    exact = mask[:4] == b"\x89PNG" and np.array_equal(plain, pixels_HW * np.uint8(255)) and plain.dtype == np.uint8
    return image, mask if exact else encode_png(pixels_HW)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """One accepted pair as it is written."""

    record: Record
    key: tuple[str, str]
    number: int  # within its defect type
    image_png: bytes
    mask_png: bytes


def _each(run: Path, pairs: Sequence[Record]) -> Iterator[_Pair]:
    number, last = 0, ("", "")
    for record in pairs:
        key = record[PRODUCT], record[DEFECT]
        number, last = (number + 1 if key == last else 0), key
        image_png, mask_png = _pair_bytes(run, record)
        yield _Pair(record=record, key=key, number=number, image_png=image_png, mask_png=mask_png)


def _normals(goods: Goods) -> Iterator[tuple[str, int, str, bytes]]:
    """Product, number, SHA-256 and PNG of each normal image."""
    remedy = "put the data set back as it was, or export without normal images (normals=False, --no-normals)"
    for name, files in goods.items():
        for index, (path, sha256) in enumerate(files):
            yield name, index, sha256, _as_png(path, _read(path, sha256, remedy))


def _mvtec(run: Path, part: Path, pairs: Sequence[Record], goods: Goods) -> Iterator[Record]:
    """Write the layout of MVTec AD; yields the lineage."""
    for pair in _each(run, pairs):
        image = f"{pair.key[0]}/test/{pair.key[1]}/{pair.number:06d}.png"
        mask = f"{pair.key[0]}/ground_truth/{pair.key[1]}/{pair.number:06d}_mask.png"
        _put(part / image, pair.image_png)
        _put(part / mask, pair.mask_png)
        yield {"exported_image": image, "exported_mask": mask, "record": pair.record}
    for name, index, _, png in _normals(goods):
        _put(part / f"{name}/train/good/{index:06d}.png", png)


def _parts(marks_HW: np.ndarray) -> Iterator[np.ndarray]:
    """Each connected part of a mask, as large as the mask."""
    labels, count = ndimage.label(marks_HW, EIGHT)
    for label in range(1, count + 1):
        yield labels == label


def run_lengths(marks_HW: np.ndarray) -> list[int]:
    """COCO's run lengths: column by column, how many pixels are off, on, off .. in turn; the first may be 0."""
    flat = marks_HW.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def _coco(run: Path, part: Path, pairs: Sequence[Record], goods: Goods) -> Iterator[Record]:
    """Write `annotations.json` and `images/`: one annotation for each connected part; yields the lineage.

    Masks are run lengths, exact; a category is `product/defect`, its supercategory the product. Normal images have no annotation.
    """
    keys = sorted({(record[PRODUCT], record[DEFECT]) for record in pairs})
    images: list[Record] = []
    annotations: list[Record] = []

    def add(name: str, png: bytes) -> int:
        height, width = decode_png(png).shape[:2]
        _put(part / name, png)
        images.append({"id": len(images) + 1, "file_name": name.removeprefix("images/"), "width": width, "height": height})
        return len(images)

    for pair in _each(run, pairs):
        name = f"images/{pair.key[0]}/{pair.key[1]}/{pair.number:06d}.png"
        image_id, marks = add(name, pair.image_png), decode_png(pair.mask_png) > 0
        for own in _parts(marks):
            x0, y0, x1, y1 = Mask(pixels_HW=own, origin="exported").box
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": keys.index(pair.key) + 1, "iscrowd": 0,
                "area": int(own.sum()), "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": list(own.shape), "counts": run_lengths(own)},
            })  # fmt: skip
        yield {"exported_image": name, "record": pair.record}
    for product, index, _, png in _normals(goods):
        name = f"images/{product}/good/{index:06d}.png"
        add(name, png)
        yield {"exported_image": name}
    whole = {
        "info": {"description": "made by anomalydiffusion; lineage.jsonl names where each picture is from"}, "licenses": [],
        "images": images, "annotations": annotations,
        "categories": [{"id": index + 1, "name": "/".join(key), "supercategory": key[0]} for index, key in enumerate(keys)],
    }  # fmt: skip
    _put(part / "annotations.json", json.dumps(whole).encode())
    yield {"exported_file": "annotations.json"}


def outline(marks_HW: np.ndarray) -> list[tuple[int, int]]:
    """The outer border of one connected part along the edges of its pixels, (x, y) corners in turn; filled, it is the part.

    Where pixels touch by a corner alone the border passes that corner twice. Holes are not cut out.
    """
    padded = np.pad(marks_HW, 1)
    inside = padded[1:-1, 1:-1]
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), (start, end) in {
        (-1, 0): ((0, 0), (1, 0)), (0, 1): ((1, 0), (1, 1)), (1, 0): ((1, 1), (0, 1)), (0, -1): ((0, 1), (0, 0)),
    }.items():  # fmt: skip  # the neighbour beyond an edge; the edge's ends, clockwise around the pixel
        beyond = padded[1 + dy : 1 + dy + inside.shape[0], 1 + dx : 1 + dx + inside.shape[1]]
        for y, x in np.argwhere(inside & ~beyond).tolist():
            ahead.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    top = int(np.flatnonzero(inside.any(1))[0])
    first = (int(np.flatnonzero(inside[top])[0]), top)
    corners, at, step = [first], first, (1, 0)
    while True:
        left = (at[0] + step[1], at[1] - step[0])  # at a corner that two pixels share, on to the other one
        end = left if left in ahead[at] else ahead[at][0]
        turned = (end[0] - at[0], end[1] - at[1])
        if turned != step and at != first:
            corners.append(at)
        if end == first:
            return corners
        at, step = end, turned


def _validation(sources: Sequence[str]) -> set[str]:
    """The source images that are for validation, by SHA-256; where there are two or more, some are on either side."""
    ordered = sorted(set(sources), key=lambda sha256: hashlib.sha256(sha256.encode()).hexdigest())
    return set(ordered[: max(1, len(ordered) // VALIDATION)]) if len(ordered) > 1 else set()


def _yolo(run: Path, part: Path, pairs: Sequence[Record], goods: Goods) -> Iterator[Record]:
    """Write `data.yaml`, `images/` and `labels/` for segmentation, divided into train and val; yields the lineage.

    A line is a connected part: class and corners along its pixels' edges, in shares of width and height; holes are filled.
    All pictures from one normal image, and it itself, are on one side. Normal images have an empty label file.
    """
    keys = sorted({(record[PRODUCT], record[DEFECT]) for record in pairs})
    held = _validation([*(str(record["normal_sha256"]) for record in pairs), *(sha256 for files in goods.values() for _, sha256 in files)])

    def add(stem: str, source: str, png: bytes, lines: Sequence[str]) -> Record:
        side = "val" if source in held else "train"
        image, label = f"images/{side}/{stem}.png", f"labels/{side}/{stem}.txt"
        _put(part / image, png)
        _put(part / label, "".join(line + "\n" for line in lines).encode())
        return {"exported_image": image, "exported_label": label}

    for pair in _each(run, pairs):
        marks = decode_png(pair.mask_png) > 0
        height, width = marks.shape
        lines = [
            f"{keys.index(pair.key)} " + " ".join(f"{x / width:.7f} {y / height:.7f}" for x, y in outline(own)) for own in _parts(marks)
        ]
        stem = f"{pair.key[0]}/{pair.key[1]}/{pair.number:06d}"
        yield {**add(stem, str(pair.record["normal_sha256"]), pair.image_png, lines), "record": pair.record}
    for product, index, sha256, png in _normals(goods):
        yield add(f"{product}/good/{index:06d}", sha256, png, [])
    names = "".join(f"  {index}: {json.dumps('/'.join(key), ensure_ascii=False)}\n" for index, key in enumerate(keys))
    sides = "".join(f"{side}: images/{side}\n" for side in ("train", "val") if (part / "images" / side).is_dir())
    _put(part / "data.yaml", f"path: .\n{sides}names:\n{names}".encode())
    yield {"exported_file": "data.yaml"}


Writer = Callable[[Path, Path, Sequence[Record], Goods], Iterator[Record]]
FORMATS: dict[str, Writer] = {"mvtec": _mvtec, "coco": _coco, "yolo": _yolo}
