"""Regions that a user draws: read, fitted to images, refused with their file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Mask
from anomalydiffusion.data.foreground import foreground
from anomalydiffusion.data.regions import copy_regions, digest_of, ground_of, grounds_of, read_regions, region_for
from tests.hostile import refused, spoilt

LEFT = [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]]


def _paint(path: Path, height: int = 20, width: int = 30) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 3] = 200
    Image.fromarray(pixels).save(path)
    return pixels > 0


def _write(path: Path, corners: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(corners))
    return path


def test_a_type_has_its_own_region_or_that_of_all(tmp_path: Path) -> None:
    painted = _paint(tmp_path / "roi.png")
    _write(tmp_path / "roi" / "crack.json", LEFT)
    (tmp_path / "roi" / "notes.txt").write_text("anything")
    regions = read_regions(tmp_path)
    assert sorted(regions) == ["", "crack"]
    image = np.zeros((20, 30, 3), np.uint8)
    assert (ground_of(regions, "hole", image) == painted).all()
    assert ground_of(regions, "crack", image)[:, :15].all() and not ground_of(regions, "crack", image)[:, 15:].any()
    assert region_for({}, "hole") is None


def test_without_a_region_the_object_is_found(tmp_path: Path) -> None:
    image = np.full((120, 120, 3), 20, np.uint8)
    image[30:90, 30:90] = 200
    assert read_regions(tmp_path) == {}
    assert (ground_of({}, "crack", image) == foreground(image)).all() and not foreground(image).all()


def test_outlines_fit_every_size_and_a_picture_only_its_own(tmp_path: Path) -> None:
    _paint(tmp_path / "roi.png")
    _write(tmp_path / "roi" / "crack.json", [*LEFT, [[0.9, 0.9], [1, 0.9], [1, 1], [0.9, 1]]])
    regions = read_regions(tmp_path)
    for height, width in ((20, 30), (50, 41), (100, 200)):
        assert abs(regions["crack"].on((height, width)).mean() - 0.51) < 0.03
    with pytest.raises(DataError, match=r"roi.png: 30 x 20 pixels, but an image has 31 x 20; .*roi.json"):
        regions[""].on((20, 31))


def test_of_a_shot_it_says_something_where_its_defect_lies_inside(tmp_path: Path) -> None:
    painted = _paint(tmp_path / "roi.png")
    _write(tmp_path / "roi" / "crack.json", LEFT)
    regions = read_regions(tmp_path)

    def shot(x: int, width: int) -> tuple[np.ndarray, Mask]:
        pixels = np.zeros((20, width), bool)
        pixels[5:9, x : x + 4] = True
        return np.zeros((20, width, 3), np.uint8), Mask(pixels_HW=pixels, origin="real")

    shots = [shot(2, 30), shot(25, 30), shot(2, 31)]
    inside, outside, larger = grounds_of(regions, "hole", shots)
    assert inside is not None and (inside == painted).all() and outside is None and larger is None
    assert [ground is not None for ground in grounds_of(regions, "crack", shots)] == [True, False, True]
    assert all(ground is not None and ground.all() for ground in grounds_of({}, "hole", shots))


@pytest.mark.parametrize(
    "corners",
    [{}, [], [[[0, 0], [1, 1]]], [[[0, 0], [1, 1], [1, 2, 3]]], [[0, 0, 1, 1]], [[[0, 0], [1, 1], ["a", 1]]], [[[0, 0], [1, 1], [30, 20]]],
     [[[0, 0], [1, 1], [0, -0.1]]], [[[0, 0], [1, 1], [0, float("nan")]]]],
)  # fmt: skip
def test_other_json_is_refused_with_its_file(tmp_path: Path, corners: object) -> None:
    path = _write(tmp_path / "roi.json", corners)
    with pytest.raises(DataError, match=str(path)):
        read_regions(tmp_path)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "roi.png")
    with pytest.raises(DataError, match=r"marks no pixel; paint white"):
        read_regions(tmp_path)
    _paint(tmp_path / "roi.png")
    _write(tmp_path / "roi.json", LEFT)
    with pytest.raises(DataError, match=r"roi.png: stands beside roi.json; keep one"):
        read_regions(tmp_path)
    (tmp_path / "roi.png").unlink()
    (tmp_path / "roi.json").write_text("[[[0, 0]")
    with pytest.raises(DataError, match="cannot be read"):
        read_regions(tmp_path)
    _write(tmp_path / "roi.json", [[[0.501, 0.501], [0.502, 0.501], [0.502, 0.502]]])
    with pytest.raises(DataError, match="marks no pixel of a 30 x 20 image"):
        read_regions(tmp_path)[""].on((20, 30))


def test_the_digest_is_that_of_what_is_drawn_and_a_copy_has_the_same(tmp_path: Path) -> None:
    assert digest_of({"tile": {}}) is None
    _paint(tmp_path / "a" / "roi.png")
    _write(tmp_path / "a" / "roi" / "crack.json", LEFT)
    first = digest_of({"tile": read_regions(tmp_path / "a")})
    copy_regions(read_regions(tmp_path / "a"), tmp_path / "b")
    assert first is not None and digest_of({"tile": read_regions(tmp_path / "b")}) == first
    _write(tmp_path / "b" / "roi" / "crack.json", [[[0, 0], [1, 0], [1, 1]]])
    assert digest_of({"tile": read_regions(tmp_path / "b")}) != first


@settings(max_examples=40, deadline=None)
@given(data=spoilt([[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], [[0, 0], [1, 0], [0, 1]]]))
def test_whatever_outlines_hold_is_a_region_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("r")
    (folder / "roi.json").write_bytes(data)
    said = refused(lambda: [region.on((12, 16)) for region in read_regions(folder).values()])
    assert not said or "roi.json" in said
