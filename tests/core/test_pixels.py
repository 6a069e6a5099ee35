"""Pictures of every kind become the same arrays; what cannot be read is named."""

import io
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import (
    decode_png,
    encode_png,
    read_image,
    read_mask,
    read_size,
    to_batch,
    to_latent_mask,
    to_rgb,
    to_tensor,
    to_uint8,
)
from tests.hostile import damaged, refused

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_and_rgb_in_every_format(tmp_path: Path, suffix: str) -> None:
    colour = np.stack([GREY, GREY[::-1], GREY.T], axis=2)
    for name, array, wanted in (("g", GREY, np.repeat(GREY[..., None], 3, 2)), ("c", colour, colour)):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(array).save(path)
        assert np.array_equal(read_image(path), wanted)


def test_16_bit_1_bit_palette_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], GREY)
    Image.fromarray(GREY > 127).save(tmp_path / "bit.png")
    assert np.array_equal(read_image(tmp_path / "bit.png")[..., 1], (GREY > 127) * np.uint8(255))
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png")[..., 2], GREY)
    Image.fromarray(np.dstack([GREY] * 4)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").shape == (16, 16, 3)


def test_any_nonzero_pixel_of_a_mask_is_defect(tmp_path: Path) -> None:
    for kind in (np.uint8, np.uint16):
        array = np.zeros((5, 6), kind)
        array[1, 2], array[3, 4] = 1, np.iinfo(kind).max
        Image.fromarray(array).save(tmp_path / "m.png")
        mask = read_mask(tmp_path / "m.png")
        assert mask.dtype == bool and mask.sum() == 2 and mask[1, 2] and mask[3, 4]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {"empty.png": b"", "cut.png": whole[: len(whole) // 2], "text.png": b"not a picture"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_mask(tmp_path / "gone.png")
    Image.fromarray(np.full((4, 4), -1.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="8 and 16 bit"):
        read_image(tmp_path / "float.tif")


def test_bytes_to_tensor_and_back() -> None:
    image = np.stack([GREY, GREY.T, GREY[::-1]], axis=2)
    x = to_tensor(image)
    assert x.shape == (1, 3, 16, 16) and float(x.min()) == -1 and float(x.max()) == 1
    assert np.array_equal(to_uint8(x), image) and np.array_equal(decode_png(encode_png(image)), image)
    assert torch.equal(to_batch(np.stack([image, 255 - image])), torch.cat([x, to_tensor(255 - image)]))
    assert to_uint8(torch.full((1, 3, 2, 2), 7.0)).max() == 255
    assert set(np.unique(decode_png(encode_png(GREY > 99)))) == {0, 255}


def test_one_marked_pixel_marks_its_cell() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[0, 0, 7, 8] = 1
    assert to_latent_mask(mask, 8)[0, 0].tolist() == to_latent_mask(mask, 8, "any")[0, 0].tolist() == [[0, 1], [0, 0]]
    assert not to_latent_mask(mask, 8, "nearest").any()
    mask[0, 0, 4, 12] = 1
    assert to_latent_mask(mask, 8, "nearest")[0, 0].tolist() == [[0, 1], [0, 0]]


def _saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.dstack([GREY] * 3)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "MPO"])
def test_each_kind_that_is_named_is_read_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.png").write_bytes(_saved(kind))
    assert np.abs(read_image(tmp_path / "x.png").astype(int) - GREY[..., None]).mean() < 8


def test_webp_is_no_kind_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_saved("WEBP"))
    for read in (read_size, read_image, read_mask):
        with pytest.raises(DataError, match=r"x\.png: cannot be read as a picture .*save it again as PNG"):
            read(tmp_path / "x.png")


def test_large_pictures_of_16_bit_are_converted_piece_by_piece(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (2600, 3300), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png")
    assert read.shape == (2600, 3300, 3) and (read[..., 1] == np.rint(deep / 257)).all()
    assert (read_mask(tmp_path / "deep.png") == (deep > 0)).all()


@settings(max_examples=60, deadline=None)
@given(data=damaged(*(_saved(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF"))))
def test_a_damaged_picture_is_a_picture_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "theirs.png"
    path.write_bytes(data)
    for read in (read_size, read_image, read_mask):
        said = refused(lambda read=read: read(path))
        assert not said or ("theirs.png" in said and "; " in said)


def test_a_file_for_which_pillow_would_start_a_program_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*words: object, **options: object) -> None:
        raise AssertionError(f"started {words}")

    for name in ("Popen", "check_call", "run", "call"):
        monkeypatch.setattr(subprocess, name, start)
    (tmp_path / "drawn.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"drawn\.png: cannot be read as a picture"):
        read_image(tmp_path / "drawn.png")


def _png_of(width: int, height: int) -> bytes:
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _tiff_of(width: int, height: int) -> bytes:
    tags = (
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, 9),
    )
    packed = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + bytes(4)).ljust(200, b"\0") + zlib.compress(bytes(1000))


@pytest.mark.parametrize("make", [_png_of, _tiff_of])
@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0)])
def test_a_small_file_of_a_huge_picture_is_refused_before_its_pixels(tmp_path: Path, make, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(make(*size))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bomb\.png: .*; "):
            read_image(tmp_path / "bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_text_that_unfolds_without_end_beside_the_pixels_is_not_kept(tmp_path: Path) -> None:
    whole, bomb = _saved("PNG"), b"a\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    (tmp_path / "bomb.png").write_bytes(whole[:33] + chunk + whole[33:])
    tracemalloc.start()
    try:
        refused(lambda: read_image(tmp_path / "bomb.png"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["16 bit", "grey", "palette", "RGBA", "1 bit"])
def test_an_opened_picture_is_read_as_its_file_is(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    deep = Image.fromarray(random.integers(0, 65536, (9, 11)).astype(np.uint16))
    plain = Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    picture = {"16 bit": deep, "grey": plain.convert("L"), "palette": plain.convert("P"), "RGBA": plain.convert("RGBA"),
               "1 bit": plain.convert("1")}[kind]  # fmt: skip
    picture.save(tmp_path / "a.png")
    assert np.array_equal(to_rgb(Image.open(tmp_path / "a.png")), read_image(tmp_path / "a.png"))
    assert kind != "16 bit" or 100 < read_image(tmp_path / "a.png").mean() < 155


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_large_masks_of_every_kind_are_read(mode: str, tmp_path: Path) -> None:
    marks = np.zeros((2100, 2000), bool)
    marks[2000:, 1990:] = True
    Image.fromarray(marks).convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marks)
