"""Say of which products no object is found, so that defects may lie anywhere on their images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anomalydiffusion.app.opened import Key
from anomalydiffusion.app.progress import say
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import images_in
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.data.regions import region_for, regions_of
from anomalydiffusion.report.masks import evenly

__all__ = ["tell_grounds"]

LOOKED = 3  # normal images of a product: those of one camera are alike in this


def tell_grounds(split: Split, keys: Iterable[Key], normals: Path | None, *, quiet: bool) -> None:
    """One line for each product with a defect type whose region nobody drew, where no object stands out in its normal images.

    `normals`: a folder of the user's; None = the run's own. An image that cannot be read says nothing; who draws on it says so.
    """
    regions = regions_of(split)
    for product in dict.fromkeys(key[0] for key in keys if region_for(regions[key[0]], key[1]) is None):
        own = images_in(normals) if normals else [normal.path for normal in split.normals if normal.product == product]
        found = [whole for path in evenly(own, LOOKED) if (whole := _is_everywhere(path)) is not None]
        if found and all(found):
            say(
                f"{product}: no object stands out from a plain background in its normal images ({len(found)} looked at), so defects may "
                f"lie anywhere on them; where that is wrong, draw {product}/roi.png",
                quiet=quiet,
            )


def _is_everywhere(path: Path) -> bool | None:
    try:
        return bool(foreground(read_image(path)).all())
    except (DataError, OSError):
        return None
