"""What every layout shares: checked files of pairs and normal images, and which source images are for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.manifest import DEFECT, IMAGE, IMAGE_SHA256, MASK, MASK_SHA256, NORMAL_SHA256, PRODUCT
from anomalydiffusion.core.names import shown
from anomalydiffusion.core.pixels import decode_png, encode_png, is_turned, read_image, read_mask
from anomalydiffusion.report.formats.together import COMBINED, Record, added, key_of

__all__ = [
    "COMBINED", "GOOD", "ROLE", "Goods", "Group", "Picture", "Record", "Writer", "each", "is_real", "kinds", "lineage", "normals_of", "put",
    "source_of", "validation",
]  # fmt: skip

Group = tuple[Record, ...]  # the pairs in one picture, all of one normal image
GOOD = "good"  # what MVTec AD calls a product without a defect
VALIDATION = 5  # one source image in so many is for validation
ROLE = "role"  # which a real defect's record has, as the split has it, and a pair's has not


@dataclass(frozen=True, slots=True, kw_only=True)
class Goods:
    """A product's normal images that are copied, path and SHA-256; and which part a file's SHA-256 shows, where the split knows."""

    files: Mapping[str, Sequence[tuple[Path, str]]]
    parts: Mapping[str, str]


Writer = Callable[[Path, Path, Sequence[Group], Goods], Iterator[Record]]  # run, new folder, pictures, normal images -> lineage


def _read(path: Path, sha256: str, remedy: str) -> bytes:
    """The file's bytes, which must be those that were recorded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:  # a zero byte in the name
        raise RunError(f"{shown(str(path))}: cannot be read ({error}); {remedy}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{path}: changed since it was recorded (another SHA-256); {remedy}")
    return data


def _as_png(path: Path, data: bytes) -> bytes:
    """`data` itself where it is an 8 bit grey or RGB PNG that is not to be shown turned, else the picture at `path` written as one."""
    plain = data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] in (b"\x08\x00", b"\x08\x02")  # depth and colour type
    if plain and not (b"eXIf" in data and is_turned(path)):
        return data
    return encode_png(read_image(path))


def _pair_bytes(run: Path, record: Record) -> tuple[bytes, bytes]:
    """Image and mask of a record as PNG files of one size; the mask 8 bit, 0 or 255."""
    remedy = "restore it, or remove its line from manifest.jsonl and make it again with: anomalydiffusion generate"
    if is_real(record):
        remedy = "put the data set back as it was, or export the generated pairs alone"
    image_path, mask_path = run / record[IMAGE], run / record[MASK]
    image, mask = _read(image_path, record[IMAGE_SHA256], remedy), _read(mask_path, record[MASK_SHA256], remedy)
    try:
        image = _as_png(image_path, image)
        pixels_HW = read_mask(mask_path)
        height, width = decode_png(image).shape[:2]
    except (DataError, OSError) as error:
        raise RunError(f"{image_path}, {mask_path.name}: not a picture ({error}); {remedy}") from error
    if not pixels_HW.any():
        raise RunError(f"{mask_path}: the mask marks no pixel; {remedy}")
    if pixels_HW.shape != (height, width):
        raise RunError(f"{mask_path}: {pixels_HW.shape[1]} x {pixels_HW.shape[0]}, but its image is {width} x {height}; {remedy}")
    plain = decode_png(mask)
    exact = mask[:4] == b"\x89PNG" and np.array_equal(plain, pixels_HW * np.uint8(255)) and plain.dtype == np.uint8
    return image, mask if exact else encode_png(pixels_HW)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One accepted pair, or several on one normal image, or one real defect, as it is written."""

    records: Group
    key: tuple[str, str]  # product, and defect type or `combined`
    number: int  # among those of its key
    image_png: bytes
    mask_png: bytes  # of all its defects
    labels: tuple[tuple[tuple[str, str], bytes], ...]  # the key and the mask of each


def each(run: Path, groups: Sequence[Group]) -> Iterator[Picture]:
    """Every picture with its files, which must be those that were recorded; `groups` in the order of their keys."""
    number, last = 0, ("", "")
    for records in groups:
        key = key_of(records)
        number, last = (number + 1 if key == last else 0), key
        files = [_pair_bytes(run, record) for record in records]
        labels = tuple(((record[PRODUCT], record[DEFECT]), mask_png) for record, (_, mask_png) in zip(records, files, strict=True))
        image_png, mask_png = files[0]
        if len(records) > 1:
            image_png = encode_png(added(run, records))
            mask_png = encode_png(np.any([decode_png(mask) > 0 for _, mask in files], axis=0))
        yield Picture(records=records, key=key, number=number, image_png=image_png, mask_png=mask_png, labels=labels)


def lineage(picture: Picture, **exported: str) -> Iterator[Record]:
    """A line for each pair in a picture: its files as they were written, `image` for `exported_image`, and the manifest's `record`.

    Of a real defect it has the split's word on it, `real`.
    """
    for record in picture.records:
        yield {**{f"exported_{name}": path for name, path in exported.items()}, "real" if is_real(record) else "record": record}


def normals_of(goods: Goods) -> Iterator[tuple[str, int, str, bytes]]:
    """Product, number, SHA-256 and PNG of each normal image."""
    remedy = "put the data set back as it was, or export without normal images (normals=False, --no-normals)"
    for name, files in goods.files.items():
        for index, (path, sha256) in enumerate(files):
            yield name, index, sha256, _as_png(path, _read(path, sha256, remedy))


def kinds(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Product and defect of all pairs, each once, in order."""
    return sorted({(record[PRODUCT], record[DEFECT]) for records in groups for record in records})


def is_real(record: Record) -> bool:
    """Whether a record is of a real defect, and not of a pair."""
    return ROLE in record


def source_of(record: Record, goods: Goods) -> str:
    """What a picture shows: the part on its normal image, or that image by SHA-256; where none is recorded, one and the same for all."""
    sha256 = str(record.get(IMAGE_SHA256 if is_real(record) else NORMAL_SHA256))
    return goods.parts.get(sha256, sha256)


def _share(sources: set[str]) -> set[str]:
    """One in `VALIDATION`, by a hash of the hash; where there are two or more, some stay on either side."""
    ordered = sorted(sources, key=lambda sha256: hashlib.sha256(sha256.encode()).hexdigest())
    return set(ordered[: max(1, len(ordered) // VALIDATION)]) if len(ordered) > 1 else set()


def validation(groups: Sequence[Group], goods: Goods) -> set[str]:
    """The sources (`source_of`) that are for validation; all that comes from one of them goes there with it.

    Chosen among those with pairs and those without apart, so that pairs of two or more sources are never all on one side. Real
    defects are all trained on where pairs are there, which were begun from them.
    """
    pairs = {source_of(record, goods) for records in groups for record in records if not is_real(record)}
    real = {source_of(record, goods) for records in groups for record in records if is_real(record)}
    normals = {goods.parts.get(sha256, sha256) for files in goods.files.values() for _, sha256 in files}
    return (_share(pairs - real) if pairs else _share(real)) | _share(normals - pairs - real)
