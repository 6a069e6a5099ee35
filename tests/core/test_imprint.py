"""A picture says how it was drawn; what others wrote into a file is refused in one line, without filling the memory."""

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.imprint import KEY, Imprint, read_imprint
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.types import Provenance
from tests.hostile import refused, spoilt

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
MADE = Provenance(
    product="Tülle", defect="crack", seed=2**53 - 1, attempt=1, normal="/home/someone/secret/tëst 1.png", normal_sha256="ab" * 32,
    mask_origin="warped", touched_box=(1, 2, 3, 4), prior_digest="p", adapter_digest="a", config_digest="c", steps=20, severity=0.7,
    version="1", reference="/home/someone/secret/shot.png",
)  # fmt: skip
SAID = Imprint.of(MADE, index=3, settings_digest="s")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with(chunk: bytes) -> bytes:
    """A picture with another chunk before its pixels."""
    plain = encode_png(PICTURE)
    return plain[:33] + chunk + plain[33:]


def _text(words: bytes) -> bytes:
    return _with(_chunk(b"tEXt", KEY.encode() + b"\0" + words))


def test_what_is_written_is_read_and_names_no_place(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(PICTURE, SAID.chunk()))
    assert read_imprint(path) == SAID and (read_image(path) == PICTURE).all()
    assert SAID.key == ("Tülle", "crack") and SAID.normal == "tëst 1.png" and SAID.severity == 0.7
    assert b"someone" not in path.read_bytes() and b"shot.png" not in path.read_bytes()
    with Image.open(path) as opened:  # other tools see it too
        assert json.loads(opened.text[KEY])["seed"] == 2**53 - 1
    assert encode_png(PICTURE, SAID.chunk()) == path.read_bytes()


def test_a_version_that_says_more_is_understood(tmp_path: Path) -> None:
    path, said = tmp_path / "a.png", json.loads(SAID.chunk()[KEY])
    path.write_bytes(_text(json.dumps({**said, "mood": "new"}).encode()))
    assert read_imprint(path) == SAID


def _broken(**other: object) -> bytes:
    return _text(json.dumps({**json.loads(SAID.chunk()[KEY]), **other}).encode())


def _lacking(name: str) -> bytes:
    return _text(json.dumps({key: value for key, value in json.loads(SAID.chunk()[KEY]).items() if key != name}).encode())


def _compressed() -> bytes:
    said = PngInfo()
    said.add_text(KEY, "x" * 100_000, zip=True)
    return _with(b"".join(_chunk(kind, data) for kind, data, *_ in said.chunks))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: encode_png(PICTURE), "does not say how it was drawn"),
        (lambda: b"", "is no PNG file"),
        (lambda: b"\xff\xd8 a photograph", "is no PNG file"),
        (lambda: encode_png(PICTURE, SAID.chunk())[:60], "damaged"),
        (lambda: encode_png(PICTURE, SAID.chunk()).replace(b"crack", b"Crack"), "damaged"),
        (lambda: _text(b""), "cannot be understood"),
        (lambda: _text(b"\xff\xfe not JSON"), "cannot be understood"),
        (lambda: _text(b"[1, 2]"), "cannot be understood"),
        (lambda: _text(b"null"), "cannot be understood"),
        (lambda: _text(b"[" * 8000 + b"]" * 8000), "cannot be understood"),
        (lambda: _text(b'{"seed": ' + b"9" * 9000 + b"}"), "cannot be understood"),
        (lambda: _lacking("seed"), "cannot be understood"),
        (lambda: _broken(seed="7"), "cannot be understood"),
        (lambda: _broken(seed=True), "cannot be understood"),
        (lambda: _broken(seed=-1), "cannot be understood"),
        (lambda: _broken(index=10**12), "cannot be understood"),
        (lambda: _broken(product=["../.."]), "cannot be understood"),
        (lambda: _broken(severity="strong"), "cannot be understood"),
        (lambda: _broken(severity=10**400), "cannot be understood"),
        (lambda: _broken(product="../.."), "cannot be understood"),
        (lambda: _broken(defect="a/b"), "cannot be understood"),
        (lambda: _text(b" " * 20_000), "has 20017 bytes"),
        (_compressed, "does not say how it was drawn"),
        (lambda: _with(struct.pack(">I4s", 2**31 - 1, b"tEXt") + KEY.encode() + b"\0{"), "has 2147483647 bytes"),
        (lambda: _with(_chunk(b"tIME", b"") * 2000), "does not say how it was drawn"),
    ],
)
def test_hostile_files_get_one_line(tmp_path: Path, data: Callable[[], bytes], says: str) -> None:
    path = tmp_path / "theirs.png"
    path.write_bytes(data())
    with pytest.raises(DataError, match=says) as caught:
        read_imprint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and "theirs.png" in str(caught.value)


def test_a_file_that_is_far_larger_than_its_picture_is_not_read(tmp_path: Path) -> None:
    big, wide = tmp_path / "big.png", tmp_path / "wide.png"
    big.write_bytes(_with(SAID_CHUNK + _chunk(b"tEXt", b"note\0" + bytes(30_000_000))))
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    wide.write_bytes(encode_png(PICTURE)[:8] + _chunk(b"IHDR", head) + SAID_CHUNK)
    tracemalloc.start()
    try:
        for path in (big, wide):
            with pytest.raises(DataError, match="holds more than a picture of"):
                read_imprint(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


SAID_CHUNK = _chunk(b"tEXt", KEY.encode() + b"\0" + SAID.chunk()[KEY].encode())


def test_only_possible_numbers(tmp_path: Path) -> None:
    for other in ({"seed": 2**63}, {"attempt": -1}, {"index": -1}):
        with pytest.raises(DataError, match="expected whole numbers"):
            replace(SAID, **other)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        read_imprint(tmp_path / "gone.png")


@settings(max_examples=40, deadline=None)
@given(said=spoilt(json.loads(SAID.chunk()[KEY])))
def test_whatever_it_says_is_understood_or_one_line(tmp_path_factory: pytest.TempPathFactory, said: bytes) -> None:
    path = tmp_path_factory.mktemp("i") / "theirs.png"
    path.write_bytes(_text(said))
    told = refused(lambda: read_imprint(path))
    assert not told or "theirs.png" in told
