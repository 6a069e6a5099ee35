"""What a generated picture says of itself: the facts from which it can be drawn again, in a text chunk of its PNG file."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from anomalydiffusion.core.config import from_dict
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.names import is_folder, shown
from anomalydiffusion.core.pixels import MAX_PIXELS
from anomalydiffusion.core.types import Provenance

__all__ = ["KEY", "Imprint", "read_imprint"]

KEY = "anomalydiffusion"  # the text chunk's keyword
LONGEST = 16_384  # bytes of such a chunk; what is written has under one thousand, and the names that the user gave
CHUNKS = 1_000  # before the pixels; PNG files have a handful
SPARE = 1_000_000  # bytes of a file beyond what its pixels can need
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imprint:
    """From what a picture was drawn. A file travels: no place on a disk is among it, and nothing that depends on when or by whom.

    `settings_digest` is of what decides how a picture looks, so it is the same whatever gate judged it.
    """

    product: str
    defect: str
    index: int  # the pair's number in its defect type
    attempt: int
    seed: int
    normal: str  # its file's name
    normal_sha256: str
    mask_origin: str
    prior_digest: str
    adapter_digest: str
    settings_digest: str
    steps: int
    severity: float
    version: str

    def __post_init__(self) -> None:
        if not is_folder(self.product) or not is_folder(self.defect):
            raise DataError(f"product {shown(self.product)}, defect {shown(self.defect)}: expected names that folders can have")
        if not all(0 <= value < bound for value, bound in ((self.index, 10**9), (self.attempt, 10**9), (self.seed, 2**63))):
            raise DataError(f"index {self.index}, attempt {self.attempt}, seed {self.seed}: expected whole numbers from 0, below 2^63")

    @classmethod
    def of(cls, made: Provenance, *, index: int, settings_digest: str) -> Imprint:
        """What the picture of provenance `made` says, as number `index` of its type."""
        facts = {name: value for name, value in made.to_dict().items() if name in cls.__dataclass_fields__}
        return cls(**{**facts, "index": index, "normal": Path(made.normal).name, "settings_digest": settings_digest})

    @property
    def key(self) -> tuple[str, str]:
        return self.product, self.defect

    def chunk(self) -> dict[str, str]:
        """The text chunk to write: its keyword, and plain ASCII."""
        return {KEY: json.dumps(asdict(self), allow_nan=False)}


def read_imprint(path: Path) -> Imprint:
    """Read what the PNG file `path` says of itself; no pixel is read, and no more than 16 KB of text.

    Raises `DataError` where it is no PNG file, says nothing, or nothing that can be understood, and where it holds far more than a
    picture of its size.
    """
    try:
        with path.open("rb") as file:
            _check_size(path, file)
            text = _text(path, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a picture that generate has drawn") from error
    if text is None:
        raise DataError(f"{path}: does not say how it was drawn (no text chunk '{KEY}'); give a picture as generate wrote it")
    try:
        values = json.loads(text)
        return from_dict(Imprint, {item.name: values[item.name] for item in fields(Imprint)})
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError, DataError) as error:  # of which none is worth a line of its own
        raise DataError(f"{path}: its text chunk '{KEY}' cannot be understood; give a picture as generate wrote it") from error


def _check_size(path: Path, file: BinaryIO) -> None:
    """Refuse a file whose other parts could fill the memory of who reads its pixels."""
    head = file.read(len(SIGNATURE) + 16)
    if len(head) < len(SIGNATURE) + 16 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        raise DataError(f"{path}: is no PNG file; give a picture as generate wrote it")
    width, height = struct.unpack(">II", head[16:24])
    if width * height > MAX_PIXELS or path.stat().st_size > 8 * width * height + SPARE:
        raise DataError(f"{path}: holds more than a picture of {width} x {height} needs; give a picture as generate wrote it")


def _text(path: Path, file: BinaryIO) -> bytes | None:
    """The text under our keyword, of the chunks before the pixels."""
    place = len(SIGNATURE)
    for _ in range(CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return None
        length, keyword = int.from_bytes(head[:4], "big"), KEY.encode() + b"\0"
        if head[4:] == b"tEXt" and file.read(len(keyword)) == keyword:
            if length > LONGEST:
                raise DataError(f"{path}: its text chunk '{KEY}' has {length} bytes; give a picture as generate wrote it")
            text = file.read(max(0, length - len(keyword)))
            if file.read(4) != zlib.crc32(head[4:] + keyword + text).to_bytes(4, "big"):
                raise DataError(f"{path}: its text chunk '{KEY}' is damaged; give a picture as generate wrote it")
            return text
        place += 12 + length
    return None
