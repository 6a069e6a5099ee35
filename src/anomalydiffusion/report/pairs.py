"""One pair of a run, read for people to look at."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.core import manifest as field
from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import is_below, is_file
from anomalydiffusion.core.pixels import digest_file, read_image, read_mask
from anomalydiffusion.core.types import Mask
from anomalydiffusion.report.sheets import Row

__all__ = ["row_of"]

log = logging.getLogger(__name__)


def row_of(run: Path, record: Mapping[str, Any]) -> Row:
    """The pictures of a manifest's record. Raises `DataError`, `TypeError` or `ValueError` where they, or it, cannot be read."""
    name, mask_name = str(record.get(field.IMAGE)), str(record.get(field.MASK))
    if not (is_below(name) and is_below(mask_name)):
        raise DataError(f"{name}: its files lie outside of the run")
    image, mask = read_image(run / name), Mask(pixels_HW=read_mask(run / mask_name), origin="file")
    x0, y0, x1, y1 = map(int, record.get(field.TOUCHED_BOX) or mask.box)
    normal = _normal(run, record, image)
    return Row(image_HWC=image, mask_HW=mask.pixels_HW, box=(x0, y0, x1, y1), normal_HWC=normal, label=Path(name).name)


def _normal(run: Path, record: Mapping[str, Any], image_HWC: np.ndarray) -> np.ndarray | None:
    """The normal image that the pair was made on, where it is still there and the same."""
    path = run / str(record.get(field.NORMAL))
    if not (record.get(field.NORMAL) and is_file(path)):
        return None
    try:
        normal = read_image(path)
    except DataError as error:
        log.warning("%s; the pair is shown without it", error)
        return None
    same = record.get(field.NORMAL_SHA256) in (None, "", digest_file(path))
    return normal if same and normal.shape == image_HWC.shape else None
