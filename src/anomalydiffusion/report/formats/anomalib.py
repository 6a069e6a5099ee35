"""What anomalib's Folder datamodule reads, a `folder.yaml` for each product, and textures for its synthetic anomalies."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from scipy import ndimage

from anomalydiffusion.core.pixels import decode_png, encode_png
from anomalydiffusion.core.shapes import EIGHT
from anomalydiffusion.core.types import Mask
from anomalydiffusion.report.formats.common import Goods, Group, Record, each, kinds, lineage, normals_of, put

__all__ = ["texture", "write"]

log = logging.getLogger(__name__)
SIDE = 32  # least width and height of a texture, in pixels: anomalib stretches it to the size of the whole image
HEAD = """\
# anomalib 2.7, in this folder:          anomalib train --model Padim --data folder.yaml
# from elsewhere, name this folder:      --data folder.yaml --data.init_args.root THIS_FOLDER
# models that draw their own anomalies:  anomalib train --model Draem --model.dtd_dir textures --data folder.yaml
# The abnormal images are generated, on normal images that are here too: choose and calibrate by them; test on real images.
"""
NO_NORMALS = "# This export holds no normal images: let normal_dir name a folder of yours.\n"


def texture(image: np.ndarray, marks_HW: np.ndarray) -> np.ndarray:
    """Cut the largest connected part of a defect out of its image (H x W or H x W x 3): nothing but defect, at least `SIDE` a side.

    Outside the mask each pixel takes the value of the nearest pixel within it, so that what anomalib pastes and labels as a
    defect is never the normal surface around one. Smaller only where the image itself is.
    """
    labels, _ = ndimage.label(marks_HW, EIGHT)
    own = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    x0, y0, x1, y1 = Mask(pixels_HW=own, origin="exported").box
    rows, columns = _widened(y0, y1, own.shape[0]), _widened(x0, x1, own.shape[1])
    nearest = ndimage.distance_transform_edt(~marks_HW[rows, columns], return_distances=False, return_indices=True)
    return np.ascontiguousarray(image[rows, columns][tuple(nearest)])


def _widened(start: int, stop: int, size: int) -> slice:
    """At least `SIDE` long with the old range in the middle, as far as the image goes."""
    more = max(0, SIDE - (stop - start))
    start = max(0, min(start - more // 2, size - max(stop - start, SIDE)))
    return slice(start, min(size, start + max(SIDE, stop - start)))


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write each product's `normal/`, `abnormal/<defect>/`, `mask/<defect>/`, `textures/<defect>/` and `folder.yaml`; yields the lineage.

    An image, its mask (8 bit, 0 or 255) and its texture have one name, six digits: anomalib pairs files by their order, and
    takes any picture in a folder for one of its own.
    """
    for picture in each(run, groups):
        product, defect = picture.key
        image, mask, piece = (f"{product}/{name}/{defect}/{picture.number:06d}.png" for name in ("abnormal", "mask", "textures"))
        put(part / image, picture.image_png)
        put(part / mask, picture.mask_png)
        put(part / piece, encode_png(texture(decode_png(picture.image_png), decode_png(picture.mask_png) > 0)))
        yield from lineage(picture, image=image, mask=mask, texture=piece)
    for product, index, _, png in normals_of(goods):
        name = f"{product}/normal/{index:06d}.png"
        put(part / name, png)
        yield {"exported_image": name}
    for product in sorted({product for product, _ in kinds(groups)}):
        if not (product.isascii() and product.isprintable()):
            log.warning("%s: anomalib reads no folder whose name is not plain ASCII; rename it before you use it there", product)
        about = {
            "name": product, "root": ".", "normal_dir": "normal", "abnormal_dir": "abnormal", "mask_dir": "mask",
            "test_split_mode": "from_dir", "test_split_ratio": 0.2, "val_split_mode": "from_test", "val_split_ratio": 0.5, "seed": 0,
        }  # fmt: skip
        whole = yaml.safe_dump({"class_path": "anomalib.data.Folder", "init_args": about}, sort_keys=False, allow_unicode=True)
        put(part / product / "folder.yaml", (HEAD + ("" if goods.files.get(product) else NO_NORMALS) + whole).encode())
        yield {"exported_file": f"{product}/folder.yaml"}
