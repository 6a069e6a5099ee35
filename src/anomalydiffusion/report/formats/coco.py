"""The annotations of COCO: run lengths and boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anomalydiffusion.core.pixels import decode_png
from anomalydiffusion.core.types import Mask
from anomalydiffusion.report.formats.common import Goods, Group, Record, each, kinds, lineage, normals_of, put
from anomalydiffusion.report.formats.parts import parts

__all__ = ["run_lengths", "write"]


def run_lengths(marks_HW: np.ndarray) -> list[int]:
    """COCO's run lengths: column by column, how many pixels are off, on, off .. in turn; the first may be 0."""
    flat = marks_HW.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write `annotations.json` and `images/`: one annotation for each connected part; yields the lineage.

    Masks are run lengths, exact; a category is `product/defect`, its supercategory the product. Normal images have no annotation.
    """
    keys = kinds(groups)
    images: list[Record] = []
    annotations: list[Record] = []

    def add(name: str, png: bytes) -> int:
        height, width = decode_png(png).shape[:2]
        put(part / name, png)
        images.append({"id": len(images) + 1, "file_name": name.removeprefix("images/"), "width": width, "height": height})
        return len(images)

    for picture in each(run, groups):
        name = f"images/{picture.key[0]}/{picture.key[1]}/{picture.number:06d}.png"
        image_id = add(name, picture.image_png)
        for key, own in ((key, own) for key, mask_png in picture.labels for own in parts(decode_png(mask_png) > 0)):
            x0, y0, x1, y1 = Mask(pixels_HW=own, origin="exported").box
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": keys.index(key) + 1, "iscrowd": 0,
                "area": int(own.sum()), "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": {"size": list(own.shape), "counts": run_lengths(own)},
            })  # fmt: skip
        yield from lineage(picture, image=name)
    for product, index, _, png in normals_of(goods):
        name = f"images/{product}/good/{index:06d}.png"
        add(name, png)
        yield {"exported_image": name}
    whole = {
        "info": {"description": "made by anomalydiffusion; lineage.jsonl names where each picture is from"}, "licenses": [],
        "images": images, "annotations": annotations,
        "categories": [{"id": index + 1, "name": "/".join(key), "supercategory": key[0]} for index, key in enumerate(keys)],
    }  # fmt: skip
    put(part / "annotations.json", json.dumps(whole).encode())
    yield {"exported_file": "annotations.json"}
