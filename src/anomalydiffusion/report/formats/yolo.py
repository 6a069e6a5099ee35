"""The labels of YOLO for segmentation: polygons in shares of width and height."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from anomalydiffusion.core.pixels import decode_png
from anomalydiffusion.report.formats.common import Goods, Group, Record, each, kinds, lineage, normals_of, put, source_of, validation
from anomalydiffusion.report.formats.parts import outline, parts

__all__ = ["write"]


def _folder(name: str) -> str:
    """A folder's name: trainers look for a picture's labels by the last `images` in its path."""
    return f"{name}_" if name == "images" else name


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write `data.yaml`, `images/` and `labels/` for segmentation, divided into train and val; yields the lineage.

    A line is a connected part: class and corners along its pixels' edges, in shares of width and height; holes are filled.
    All pictures from one normal image, or of one part, and it itself, are on one side. Normal images have an empty label file.
    """
    keys, held = kinds(groups), validation(groups, goods)

    def add(stem: str, source: str, png: bytes, lines: Sequence[str]) -> dict[str, str]:
        side = "val" if source in held else "train"
        image, label = f"images/{side}/{stem}.png", f"labels/{side}/{stem}.txt"
        put(part / image, png)
        put(part / label, "".join(line + "\n" for line in lines).encode())
        return {"image": image, "label": label}

    for picture in each(run, groups):
        height, width = decode_png(picture.mask_png).shape
        lines = [
            f"{keys.index(key)} " + " ".join(f"{x / width:.7f} {y / height:.7f}" for x, y in outline(own))
            for key, mask_png in picture.labels for own in parts(decode_png(mask_png) > 0)
        ]  # fmt: skip
        stem = f"{_folder(picture.key[0])}/{_folder(picture.key[1])}/{picture.number:06d}"
        yield from lineage(picture, **add(stem, source_of(picture.records[0], goods), picture.image_png, lines))
    for product, index, sha256, png in normals_of(goods):
        files = add(f"{_folder(product)}/good/{index:06d}", goods.parts.get(sha256, sha256), png, [])
        yield {f"exported_{name}": path for name, path in files.items()}
    names = "".join(f"  {index}: {json.dumps('/'.join(key), ensure_ascii=False)}\n" for index, key in enumerate(keys))
    sides = "".join(f"{side}: images/{side}\n" for side in ("train", "val") if (part / "images" / side).is_dir())
    if not (part / "images" / "val").is_dir():  # a trainer refuses to begin without
        sides += "val: images/train  # there was one normal image alone: nothing is left to validate on\n"
    put(part / "data.yaml", f"{sides}names:\n{names}".encode())  # no path: its folder is where this file lies
    yield {"exported_file": "data.yaml"}
