"""The folders of MVTec AD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from anomalydiffusion.report.formats.common import Goods, Group, Record, each, lineage, normals_of, put

__all__ = ["write"]


def write(run: Path, part: Path, groups: Sequence[Group], goods: Goods) -> Iterator[Record]:
    """Write the layout of MVTec AD; yields the lineage."""
    for picture in each(run, groups):
        image = f"{picture.key[0]}/test/{picture.key[1]}/{picture.number:06d}.png"
        mask = f"{picture.key[0]}/ground_truth/{picture.key[1]}/{picture.number:06d}_mask.png"
        put(part / image, picture.image_png)
        put(part / mask, picture.mask_png)
        yield from lineage(picture, image=image, mask=mask)
    for name, index, _, png in normals_of(goods):
        put(part / f"{name}/train/good/{index:06d}.png", png)
