"""Several defects in one picture: pairs on one normal image add up where their changes lie apart, as all else is that image's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.manifest import DEFECT, IMAGE, MASK, NORMAL, NORMAL_SHA256, PRODUCT
from anomalydiffusion.core.pixels import digest_file, read_image, read_mask
from anomalydiffusion.core.shapes import EIGHT

__all__ = ["added", "grouped", "key_of"]

Record = dict[str, Any]
COMBINED = "combined"  # what MVTec AD calls a picture of several defect types
GAP = 2  # pixels between what two defects change


def key_of(records: Sequence[Record]) -> tuple[str, str]:
    """Product and defect of a picture; of several defect types `combined`, as MVTec AD has it."""
    kinds = {record[DEFECT] for record in records}
    return records[0][PRODUCT], kinds.pop() if len(kinds) == 1 else COMBINED


def _normal(run: Path, record: Record) -> np.ndarray:
    """The normal image that a pair was drawn on, which must be the one that was recorded."""
    remedy = "put the normal images back as they were, or export each pair by itself (together=1)"
    path = run / str(record.get(NORMAL))
    if NORMAL_SHA256 not in record:
        raise RunError(
            f"{run / record[IMAGE]}: which normal image it was drawn on is not recorded; export each pair by itself (together=1)"
        )
    try:
        if digest_file(path) != record[NORMAL_SHA256]:
            raise RunError(f"{path}: changed since {record[IMAGE]} was drawn on it; {remedy}")
        return read_image(path)
    except (OSError, DataError) as error:
        raise RunError(f"{path}: cannot be read ({error}); {remedy}") from error


def _taken(run: Path, record: Record, normal_HWC: np.ndarray) -> np.ndarray:
    """What a pair changes or marks: bool H x W."""
    try:
        image, mask = read_image(run / record[IMAGE]), read_mask(run / record[MASK])
    except (OSError, DataError) as error:
        raise RunError(f"{run / record[IMAGE]}: cannot be read ({error}); restore it, or remove its line from manifest.jsonl") from error
    if not image.shape[:2] == mask.shape == normal_HWC.shape[:2]:
        raise RunError(f"{run / record[IMAGE]}: image, mask and normal image differ in size; remove its line from manifest.jsonl")
    return (image != normal_HWC).any(2) | mask


def grouped(run: Path, records: Sequence[Record], most: int) -> list[tuple[Record, ...]]:
    """Divide pairs into pictures of at most `most` defects each, which lie at least `GAP` pixels apart on one normal image.

    Each pair is in one picture; the pairs of a normal image are taken in the order of their numbers, so that types mix. Pictures are
    in the order of product, defect type and image. Raises `RunError` where a normal image is missing or changed.
    """
    if most == 1:
        return [(record,) for record in records]
    by_normal: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_normal.setdefault((record[PRODUCT], str(record.get(NORMAL_SHA256))), []).append(record)
    out = [group for own in by_normal.values() for group in _of_one(run, own, most)]
    return sorted(out, key=lambda group: (*key_of(group), group[0][IMAGE]))


def _of_one(run: Path, records: Sequence[Record], most: int) -> Iterator[tuple[Record, ...]]:
    """The same for the pairs of one normal image: each goes to the first picture that has room for it."""
    if len(records) == 1:
        yield tuple(records)
        return
    normal = _normal(run, records[0])
    groups: list[tuple[list[Record], np.ndarray]] = []
    for record in sorted(records, key=lambda record: (Path(record[IMAGE]).name, record[DEFECT])):
        taken = _taken(run, record, normal)
        wide = ndimage.binary_dilation(taken, EIGHT, iterations=GAP)
        for members, full in groups:
            if len(members) < most and not (full & wide).any():
                members.append(record)
                np.logical_or(full, taken, out=full)
                break
        else:
            groups.append(([record], taken))
    yield from (tuple(members) for members, _ in groups)


def added(run: Path, records: Sequence[Record]) -> np.ndarray:
    """The normal image with what each of a group's pairs changes in it: uint8 H x W x 3."""
    normal = _normal(run, records[0])
    out = normal.copy()
    for record in records:
        taken = _taken(run, record, normal)
        out[taken] = read_image(run / record[IMAGE])[taken]
    return out
