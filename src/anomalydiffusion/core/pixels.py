"""The one border between files and tensors: uint8 HWC <-> float BCHW, pixel mask -> latent mask, hashes."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomalydiffusion.core.errors import DataError

if TYPE_CHECKING:  # it takes seconds to import, and what only reads and writes pictures does without
    import torch

__all__ = [
    "MAX_PIXELS",
    "Cells",
    "decode_png",
    "digest_file",
    "digest_pixels",
    "encode_png",
    "is_turned",
    "read_image",
    "read_mask",
    "read_size",
    "to_batch",
    "to_latent_mask",
    "to_mask",
    "to_rgb",
    "to_tensor",
    "to_uint8",
]

Cells = Literal["any", "nearest"]

UPRIGHT = (None, 1)  # what EXIF data say of a picture that is not to be turned
MAX_PIXELS = 178_000_000  # Pillow itself refuses a little more
# Told from what is in the file, not from its name: Pillow knows kinds besides for which it starts other programs. It reads MPO as JPEG,
# and no kind after that name where it stands here. It unpacks WebP before it says how large that is: gigabytes, of a few kilobytes.
FORMATS = ("PNG", "BMP", "TIFF", "JPEG", "GIF", "PPM")


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """The picture, of which no pixel is read yet; whatever goes wrong in the block is one line that names the file."""
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; copy it again or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of what is read here
            opened = Image.open(path, formats=FORMATS)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} is over {MAX_PIXELS // 1_000_000} megapixels; cut it into tiles")
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too many pixels ({error}); cut it into tiles") from error
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}); save it again as PNG or remove it") from error


def _open(path: Path) -> np.ndarray:
    """Any picture as an array of its own depth: H x W or H x W x C."""
    with _picture(path) as image:
        return _array(image)


def _array(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "PA", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    image.load()
    return np.asarray(image)


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    """Views of a few million pixels each, whatever a pixel is: what is computed of a large picture takes little memory beside it."""
    flat = array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
    return np.array_split(flat, max(1, len(flat) // 2_000_000))


def read_size(path: Path) -> tuple[int, int]:
    """Width and height as the picture's first bytes say them; no pixel is read."""
    with _picture(path) as image:
        return image.size


def is_turned(path: Path) -> bool:
    """Whether a picture's EXIF data ask to turn it: pixels are read as they are stored, other programs show it turned."""
    with _picture(path) as image:
        return image.getexif().get(0x0112) not in UPRIGHT


def read_image(path: Path) -> np.ndarray:
    """Read 8 or 16 bit, grey or RGB, as uint8 RGB H x W x 3. 16 bit is scaled by 257, so that 65535 becomes 255."""
    return _rgb(_open(path), path)


def to_rgb(image: Image.Image) -> np.ndarray:
    """What `read_image` makes of a file, of a picture that was opened already."""
    return _rgb(_array(image), "image")


def _rgb(array: np.ndarray, named: Path | str) -> np.ndarray:
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 65535:
            raise DataError(f"{named}: pixels of type {array.dtype} ({array.min()}..{array.max()}); 8 and 16 bit pictures can be read")
        deep, array = array, np.empty(array.shape, np.uint8)
        for some, into in zip(_pieces(deep), _pieces(array), strict=True):
            into[...] = (some.astype(np.uint32) + 128) // 257
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as bool H x W: any non-zero pixel is defect, whatever the depth."""
    return _marked(_open(path))


def to_mask(picture: Image.Image | np.ndarray) -> np.ndarray:
    """What `read_mask` makes of a file, of a picture that was opened already, or of an array; how opaque a pixel is marks nothing."""
    array = _array(picture) if isinstance(picture, Image.Image) else np.asarray(picture)
    if array.ndim not in (2, 3) or not array.size:
        raise DataError(f"mask: expected H x W, or H x W x 1 to 4, got {array.shape}")
    return _marked(array[..., : array.shape[2] - 1 + array.shape[2] % 2] if array.ndim == 3 else array)


def _marked(array: np.ndarray) -> np.ndarray:
    marked = np.empty(array.shape[:2], bool)
    for some, into in zip(_pieces(array), _pieces(marked), strict=True):
        into[...] = some.any(axis=1) if some.ndim == 2 else some != 0
    return marked


def encode_png(array: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode uint8 RGB (H x W x 3) or a bool mask (written as 8 bit 0 / 255); `text` goes before the pixels, by its keywords."""
    buffer, said = io.BytesIO(), PngInfo()
    for keyword, words in (text or {}).items():
        said.add_text(keyword, words)
    picture = array.astype(np.uint8) * 255 if array.dtype == bool else array
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3, pnginfo=said)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """The array in PNG `data`, as it was given to `encode_png` (masks as uint8 0 / 255)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def digest_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_pixels(image_HWC: np.ndarray) -> str:
    """SHA-256 of a picture's size and pixels: the same for the same picture saved anew without loss."""
    return hashlib.sha256(repr(image_HWC.shape).encode() + np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def to_tensor(image_HWC: np.ndarray) -> torch.Tensor:
    """uint8 H x W x 3 in 0..255 -> float32 1 x 3 x H x W in -1..1."""
    import torch

    return torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_batch(images_NHWC: np.ndarray) -> torch.Tensor:
    """uint8 N x H x W x 3 in 0..255 -> float32 N x 3 x H x W in -1..1, channels last in memory."""
    import torch

    return torch.from_numpy(np.array(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x_1CHW: torch.Tensor) -> np.ndarray:
    """float 1 x 3 x H x W in -1..1 -> uint8 H x W x 3, rounded to nearest, clipped."""
    import torch

    x = ((x_1CHW[0].detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return x.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def to_latent_mask(mask_B1HW: torch.Tensor, factor: int, cells: Cells | None = None) -> torch.Tensor:
    """Bring a pixel mask (0/1 float) to the latent grid: "any" marked pixel marks its cell (None is the same), or the "nearest" does.

    The nearest to a cell's middle is plain resizing: thin scratches lose cells, or all of them, while their label stays.
    """
    import torch

    if cells == "nearest":
        return torch.nn.functional.interpolate(mask_B1HW, scale_factor=1 / factor, mode="nearest-exact")
    return torch.nn.functional.max_pool2d(mask_B1HW, factor)
