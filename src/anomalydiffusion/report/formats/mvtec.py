"""The folders of MVTec AD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from anomalydiffusion.report.formats.common import Goods, Record, each, normals_of, put

__all__ = ["write"]


def write(run: Path, part: Path, pairs: Sequence[Record], goods: Goods) -> Iterator[Record]:
    """Write the layout of MVTec AD; yields the lineage."""
    for pair in each(run, pairs):
        image = f"{pair.key[0]}/test/{pair.key[1]}/{pair.number:06d}.png"
        mask = f"{pair.key[0]}/ground_truth/{pair.key[1]}/{pair.number:06d}_mask.png"
        put(part / image, pair.image_png)
        put(part / mask, pair.mask_png)
        yield {"exported_image": image, "exported_mask": mask, "record": pair.record}
    for name, index, _, png in normals_of(goods):
        put(part / f"{name}/train/good/{index:06d}.png", png)
