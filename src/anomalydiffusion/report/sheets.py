"""Contact sheets: the whole picture, and the defect's surroundings large enough to be judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Box

__all__ = ["Cell", "Row", "amplification", "cells", "contact_sheet", "fitted", "heat", "outlined", "strength"]

BOX_COLOUR = (229, 57, 53)
OUTLINE_COLOUR = (0, 200, 255)
HEAT = np.array([[0, 0, 0], [88, 24, 130], [214, 50, 92], [252, 150, 50], [252, 250, 190]], np.float32)  # dark to bright
MARGIN = 0.35  # of the touched box's longer side, on each side
LEAST_CROP = 48  # pixels: smaller surroundings show grain, not the defect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One pair: result uint8 H x W x 3, label bool H x W, the normal image where it is still there, and the touched box."""

    image_HWC: np.ndarray
    mask_HW: np.ndarray
    box: Box
    normal_HWC: np.ndarray | None = None
    label: str = ""

    def __post_init__(self) -> None:
        others = {self.mask_HW.shape[:2]} | ({self.normal_HWC.shape[:2]} if self.normal_HWC is not None else set())
        if others != {self.image_HWC.shape[:2]}:
            raise DataError(f"{self.label or 'pair'}: image is {self.image_HWC.shape[:2]}, mask and normal are {others}")
        x0, y0, x1, y1 = self.box
        if not (0 <= x0 < x1 <= self.image_HWC.shape[1] and 0 <= y0 < y1 <= self.image_HWC.shape[0]):
            raise DataError(f"{self.label or 'pair'}: the box {self.box} does not lie in the image")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """One picture of a sheet, uint8 RGB, and the word above it."""

    label: str
    image_HWC: np.ndarray


def _crop_box(row: Row) -> Box:
    """A square around the touched box with a margin; moved, and only then cut, to lie in the image."""
    (height, width), (x0, y0, x1, y1) = row.image_HWC.shape[:2], row.box
    longer = max(x1 - x0, y1 - y0)
    side = max(LEAST_CROP, round(longer * (1 + 2 * MARGIN)))
    left = min(max((x0 + x1 - side) // 2, 0), max(width - side, 0))
    top = min(max((y0 + y1 - side) // 2, 0), max(height - side, 0))
    return left, top, min(left + side, width), min(top + side, height)


def _fit(image_HWC: np.ndarray, cell: int) -> Image.Image:
    """The picture with its longer side `cell` pixels long."""
    height, width = image_HWC.shape[:2]
    scale = cell / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kernel = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return Image.fromarray(np.ascontiguousarray(image_HWC)).resize(size, kernel)


def _rectangle(picture: Image.Image, box: Box, scale: float) -> None:
    """Draw `box`, dark around bright, so that it is seen on any ground."""
    draw, (x0, y0, x1, y1) = ImageDraw.Draw(picture), (round(value * scale) for value in box)
    edge = x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)
    draw.rectangle((edge[0] - 1, edge[1] - 1, edge[2] + 1, edge[3] + 1), outline=(255, 255, 255))
    draw.rectangle(edge, outline=BOX_COLOUR, width=2 if picture.width >= 128 else 1)


def _outlined(image_HWC: np.ndarray, mask_HW: np.ndarray, cell: int) -> Image.Image:
    """The picture with a line around the mask, just outside it, so that it hides nothing of the defect."""
    picture = _fit(image_HWC, cell)
    mask = Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    least = max(1, min(128, mask.getextrema()[1]))  # of a defect of few pixels nothing is left at half
    inside = mask.point(lambda value: 255 * (value >= least))
    around, array = inside, np.array(picture)
    for _ in range(1 if cell < 128 else max(2, cell // 400)):  # pixels: a large picture is looked at from farther away
        around = around.filter(ImageFilter.MaxFilter(3))
    array[np.asarray(around) > np.asarray(inside)] = OUTLINE_COLOUR
    return Image.fromarray(array)


def _difference(image: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Largest change over the channels (the last axis), uint8; never more than a few single channels are in memory."""
    out = np.zeros(image.shape[:-1], np.uint8)
    for a, b in zip(np.moveaxis(image, -1, 0), np.moveaxis(normal, -1, 0), strict=True):
        np.maximum(out, np.maximum(a, b) - np.minimum(a, b), out=out)
    return out


def strength(row: Row) -> float | None:
    """How strong a pair's stronger changes under the label are, 0..255; None without a normal image or a label."""
    if row.normal_HWC is None or not row.mask_HW.any():
        return None
    return float(np.percentile(_difference(row.image_HWC[row.mask_HW], row.normal_HWC[row.mask_HW]), 95))


def amplification(strengths: Iterable[float | None]) -> int:
    """The power of two, 1..16, that brings changes of these strengths near white; one for all, so that pairs compare."""
    strong = [each for each in strengths if each is not None]
    if not strong:
        return 1
    return int(2 ** np.clip(np.floor(np.log2(255 / max(float(np.median(strong)), 1.0))), 0, 4))


def heat(strength_HW: np.ndarray) -> np.ndarray:
    """Values from 0 (dark) to 1 (bright) as colours, float H x W x 3 in 0..255."""
    anchors = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(strength_HW, anchors, HEAT[:, channel]) for channel in range(3)], axis=2)


def fitted(label: str, image_HWC: np.ndarray, cell: int = 220) -> Cell:
    """A whole picture, uint8 RGB of any size, as a cell whose longer side is `cell` pixels."""
    return Cell(label=label, image_HWC=np.asarray(_fit(image_HWC, cell)))


def outlined(label: str, image_HWC: np.ndarray, mask_HW: np.ndarray, cell: int = 220) -> Cell:
    """A whole picture with a line around a mask of its size, as a cell whose longer side is `cell` pixels."""
    return Cell(label=label, image_HWC=np.asarray(_outlined(image_HWC, mask_HW, cell)))


def shaded(image_HWC: np.ndarray, legal_HW: np.ndarray) -> np.ndarray:
    """A picture that is darker where `legal_HW` is False."""
    return np.where(legal_HW[..., None], image_HWC, image_HWC // 3)


def _heat(image_HWC: np.ndarray, normal_HWC: np.ndarray, amplify: int, most: int) -> np.ndarray:
    """|result - normal| times `amplify`, as heat over a pale grey normal; averaged down first where far larger than `most`."""
    difference, normal = Image.fromarray(_difference(image_HWC, normal_HWC)), Image.fromarray(np.ascontiguousarray(normal_HWC))
    if (step := max(normal.size) // most) > 1:
        difference, normal = difference.reduce(step), normal.reduce(step)
    strong = np.clip(np.asarray(difference, np.float32) * amplify / 255, 0, 1)
    grey = np.asarray(normal, np.float32).mean(2, keepdims=True) * 0.3
    return np.asarray(np.clip(grey * (1 - strong[..., None]) + heat(strong), 0, 255), np.uint8)


def cells(row: Row, *, cell: int = 160, amplify: int = 1) -> list[Cell]:
    """The pictures of one pair, each with its longer side `cell` pixels: whole result with the crop's frame, then at the
    frame: normal, result, label's outline, difference times `amplify`. Without a normal image, three of the five."""
    frame = _crop_box(row)
    x0, y0, x1, y1 = frame
    image, mask = row.image_HWC[y0:y1, x0:x1], row.mask_HW[y0:y1, x0:x1]
    whole = _fit(row.image_HWC, cell)
    _rectangle(whole, frame, whole.width / row.image_HWC.shape[1])
    found = [("whole result", whole), ("result", _fit(image, cell)), ("label", _outlined(image, mask, cell))]
    if row.normal_HWC is not None:
        normal = row.normal_HWC[y0:y1, x0:x1]
        found.insert(1, ("normal", _fit(normal, cell)))
        found.append((f"difference ×{amplify}", _fit(_heat(image, normal, amplify, 4 * cell), cell)))
    return [Cell(label=label, image_HWC=np.asarray(picture)) for label, picture in found]


def contact_sheet(lines: Sequence[tuple[str, Sequence[Cell]]], *, gap: int = 4) -> np.ndarray:
    """Put the cells of one pair a line on white, uint8 H x W x 3, column names on top, the pair's label above its cells.

    Raises `DataError` when there is no line.
    """
    if not lines:
        raise DataError("a contact sheet needs at least one pair")
    cell = max(max(item.image_HWC.shape[:2]) for _, line in lines for item in line)
    names = list(dict.fromkeys(item.label for _, line in sorted(lines, key=lambda line: -len(line[1])) for item in line))
    size = max(10, cell // 13)
    font, head = ImageFont.load_default(size), size + 8
    tops: list[int] = []
    height = gap + head
    for label, _ in lines:
        height += head if label else 0
        tops.append(height)
        height += cell + gap
    sheet = Image.new("RGB", (gap + len(names) * (cell + gap), height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        middle, plain = gap + column * (cell + gap) + cell // 2, name.replace("×", "x")  # Pillow's own font lacks the sign
        draw.text((middle, gap + head // 2), plain, fill=(40, 44, 52), font=font, anchor="mm")
    for (label, line), top in zip(lines, tops, strict=True):
        if label:
            draw.text((gap + 1, top - head // 2), label, fill=(110, 116, 128), font=font, anchor="lm")
        for item in line:
            (high, wide), column = item.image_HWC.shape[:2], names.index(item.label)
            place = gap + column * (cell + gap) + (cell - wide) // 2, top + (cell - high) // 2
            sheet.paste(Image.fromarray(item.image_HWC), place)
    return np.asarray(sheet)
