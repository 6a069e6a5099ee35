"""What one file of a data set turns out to be: size, mode, content, a thumbnail, or why it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import digest_file, is_turned, read_image, read_mask

__all__ = ["THUMB", "Seen", "see"]

THUMB = 32  # side of a thumbnail
MODES = {
    "1": "1-bit", "L": "8-bit grey", "LA": "8-bit grey, alpha", "RGB": "8-bit RGB", "RGBA": "8-bit RGB, alpha", "P": "palette",
    "I;16": "16-bit grey", "I;16B": "16-bit grey", "I": "32-bit grey", "F": "float", "CMYK": "8-bit CMYK",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one file turned out to be; `fault` is why it could not be read."""

    fault: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    kind: str = ""
    turned: bool = False
    sha256: str = ""
    marked: float = 0.0
    peak: int = 0  # the largest value in a grey picture of 16 bits
    pages: int = 1  # pictures in the file, of which the first is read
    thumb: np.ndarray | None = None  # grey, flat, 0..255


def see(path: Path, is_mask: bool) -> Seen:
    """Read one image or mask whole; a file that cannot be read is seen too, with its fault."""
    try:
        array = read_mask(path) if is_mask else read_image(path)
        with Image.open(path) as image:
            mode, kind = image.mode, image.format or ""
            pages = int(getattr(image, "n_frames", 1)) if kind in ("TIFF", "GIF") else 1
            peak = int(np.asarray(image).max()) if mode.startswith("I") and not is_mask else 0
        thumb = None
        if not is_mask:
            grey = Image.fromarray(array).convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
            thumb = np.asarray(grey, dtype=np.float32).ravel()
        return Seen(
            size=(array.shape[1], array.shape[0]), mode=MODES.get(mode, mode), kind=kind, turned=is_turned(path),
            sha256=digest_file(path), marked=float(array.mean()) if is_mask else 0.0, thumb=thumb, peak=peak, pages=pages,
        )  # fmt: skip
    except (DataError, OSError) as error:
        return Seen(fault=str(error))
