"""Reading a data set: the layout, the names, the groups, the depths."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from anomalydiffusion.app.opened import chosen
from anomalydiffusion.core.errors import DataError, MaskError
from anomalydiffusion.data.check import check
from anomalydiffusion.data.folders import load, load_normal, read_folder, read_groups
from anomalydiffusion.data.regions import region_for, regions_of
from anomalydiffusion.data.split import few_shot_split
from tests.hostile import damaged, refused


def save(path: Path, array: np.ndarray | None = None, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


def mask(h: int = 24, w: int = 32) -> np.ndarray:
    array = np.zeros((h, w), dtype=np.uint8)
    array[4:9, 6:12] = 255
    return array


def test_reads_the_layout_in_natural_order(tmp_path: Path) -> None:
    tile = tmp_path / "tile"
    for name in ("10.png", "2.PNG", "1.jpg", "01.jpg"):
        save(tile / "train" / "good" / name)
    for name in ("b 10.tiff", "b 9.bmp", "é.x.y.jpeg", ".hidden.png"):
        save(tile / "test" / "crack" / name)
        save(tile / "ground_truth" / "crack" / (Path(name).stem + "_mask.png"), mask())
    save(tile / "test" / "good" / "0.tif")
    (tile / "SOURCE.txt").write_text("who made it")
    (tmp_path / "LICENSE").write_text("whose it is")
    (tmp_path / ".cache" / "train").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    data = read_folder(tmp_path)
    assert list(data.products) == ["tile"] and data.root == tmp_path
    product = data.products["tile"]
    names = [(n.part, n.path.name) for n in product.normals]
    assert names == [("train", "01.jpg"), ("train", "1.jpg"), ("train", "2.PNG"), ("train", "10.png"), ("test", "0.tif")]
    assert [s.path.name for s in product.defects["crack"]] == ["b 9.bmp", "b 10.tiff", "é.x.y.jpeg"]
    assert [s.mask_path.name for s in product.defects["crack"]] == ["b 9_mask.png", "b 10_mask.png", "é.x.y_mask.png"]
    assert product.defects["crack"][0].group == "test/crack/b 9.bmp"
    assert product.defects["crack"][0].key == ("tile", "crack")


def test_order_does_not_come_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.png", "01.png", "001.png", "2.png"):
        save(tmp_path / "p" / "train" / "good" / name)
    straight = [n.path for n in read_folder(tmp_path).products["p"].normals]
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(iterdir(self), reverse=True))
    assert [n.path for n in read_folder(tmp_path).products["p"].normals] == straight


@pytest.mark.parametrize("name", ["7_mask.png", "7.png", "7_mask.BMP", "7.tif"])
def test_a_mask_may_be_named_in_two_ways(tmp_path: Path, name: str) -> None:
    save(tmp_path / "p" / "test" / "d" / "7.jpg")
    save(tmp_path / "p" / "ground_truth" / "d" / name, mask())
    (shot,) = read_folder(tmp_path).products["p"].defects["d"]
    assert shot.mask_path.name == name


def test_a_lossless_mask_is_taken_before_a_jpeg(tmp_path: Path) -> None:
    save(tmp_path / "p" / "test" / "d" / "7.png")
    for name in ("7_mask.jpg", "7_mask.png", "7.png"):
        save(tmp_path / "p" / "ground_truth" / "d" / name, mask())
    assert read_folder(tmp_path).products["p"].defects["d"][0].mask_path.name == "7_mask.png"


def test_a_decomposed_accent_finds_its_mask_and_group(tmp_path: Path) -> None:
    save(tmp_path / "p" / "test" / "d" / unicodedata.normalize("NFD", "é.png"))
    save(tmp_path / "p" / "ground_truth" / "d" / unicodedata.normalize("NFC", "é_mask.png"), mask())
    (tmp_path / "p" / "groups.csv").write_text("file,group\ntest/d/é.png,part 1\n", encoding="utf-8")
    assert read_folder(tmp_path).products["p"].defects["d"][0].group == "part 1"


def test_a_defect_type_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "Öl") for form in ("NFD", "NFC"))
    for index in range(6):
        save(tmp_path / "p" / "test" / apart / f"{index}.png", seed=index)
        save(tmp_path / "p" / "ground_truth" / whole / f"{index}_mask.png", mask())
        save(tmp_path / "p" / "train" / "good" / f"{index}.png", seed=10 + index)
    save(tmp_path / "p" / "roi" / f"{whole}.png", mask())
    data = read_folder(tmp_path)
    assert len(data.products["p"].defects[apart]) == 6
    for asked in (apart, whole):
        split = few_shot_split(data, defects=[asked])
        assert {shot.defect for shot in split.shots} == {apart} and chosen(split, None, [asked]) == [("p", apart)]
    assert region_for(regions_of(split)["p"], apart) is not None
    assert not [p for p in check(tmp_path).problems if "mask" in p.message or "no images of a defect type" in p.message]


def test_an_image_without_a_mask_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "p" / "test" / "d" / "1.png")
    save(tmp_path / "p" / "test" / "e" / "1.png")
    save(tmp_path / "p" / "test" / "e" / "2.png")
    save(tmp_path / "p" / "ground_truth" / "e" / "2_mask.png", mask())
    defects = read_folder(tmp_path).products["p"].defects
    assert list(defects) == ["e"] and [s.path.name for s in defects["e"]] == ["2.png"]


def test_root_may_be_one_product(tmp_path: Path) -> None:
    save(tmp_path / "tile" / "train" / "good" / "1.png")
    data = read_folder(tmp_path / "tile")
    assert list(data.products) == ["tile"] and data.products["tile"].normals[0].group == "train/good/1.png"


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder", "other folders"])
def test_no_product_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "data"
    if kind == "file":
        place.write_text("x")
    elif kind != "nothing":
        (place / "a" / "b" if kind == "other folders" else place).mkdir(parents=True)
    with pytest.raises(DataError, match="data: ") as caught:
        read_folder(place)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_groups_are_read_from_the_table(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        save(tmp_path / "p" / "train" / "good" / name)
    table = "\ufefffile,group,by\ntrain/good/1.png,a,me\ntrain\\good\\2.png, a ,me\n"
    (tmp_path / "p" / "groups.csv").write_text(table, encoding="utf-8")
    assert [n.group for n in read_folder(tmp_path).products["p"].normals] == ["a", "a", "train/good/3.png"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"name,group\nx,1\n", "no column file"),
        (b"", "no column file and group"),
        (b"file,group\nx.png,1\nx.png,2\n", "two groups"),
        (b"file,group\nx.png\n", "no group"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_broken_table_is_refused_but_does_not_stop_the_listing(tmp_path: Path, table: bytes, words: str) -> None:
    save(tmp_path / "p" / "train" / "good" / "1.png")
    (tmp_path / "p" / "groups.csv").write_bytes(table)
    with pytest.raises(DataError, match=words):
        read_groups(tmp_path / "p")
    assert read_folder(tmp_path).products["p"].normals[0].group == "train/good/1.png"


def test_load_reads_pixels_of_every_depth(tmp_path: Path) -> None:
    wide = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    save(tmp_path / "p" / "test" / "d" / "1.png", wide)
    save(tmp_path / "p" / "ground_truth" / "d" / "1_mask.png", mask())
    (shot,) = read_folder(tmp_path).products["p"].defects["d"]
    image, found = load(shot)
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8 and abs(int(image[-1, -1, 0]) - 767 * 80 / 257) < 1
    assert found.origin == "real" and found.pixels_HW.sum() == 30 and found.box == (6, 4, 12, 9)
    normal = save(tmp_path / "p" / "train" / "good" / "1.png", np.full((8, 8), 7, np.uint8))
    grey = load_normal(read_folder(tmp_path).products["p"].normals[0])
    assert normal.exists() and grey.shape == (8, 8, 3) and (grey == 7).all()


def test_load_refuses_a_mask_that_does_not_fit(tmp_path: Path) -> None:
    for name, array in (("1", mask(24, 31)), ("2", mask() * 0)):
        save(tmp_path / "p" / "test" / "d" / f"{name}.png")
        save(tmp_path / "p" / "ground_truth" / "d" / f"{name}_mask.png", array)
    other, empty = read_folder(tmp_path).products["p"].defects["d"]
    with pytest.raises(MaskError, match=r"1_mask\.png: 31 x 24, but .*d/1\.png is 32 x 24"):
        load(other)
    with pytest.raises(MaskError, match=r"2_mask\.png: marks no pixel"):
        load(empty)


@settings(max_examples=40, deadline=None)
@given(data=damaged(b"file,group\ntrain/good/0.png,a\ntest/d/0.png,b\n"))
def test_a_damaged_table_is_groups_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("p")
    (folder / "groups.csv").write_bytes(data)
    said = refused(lambda: read_groups(folder))
    assert not said or "groups.csv" in said


def test_a_table_from_which_reading_would_not_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "groups.csv")
    with pytest.raises(DataError, match=r"groups\.csv: is no file; "):
        read_groups(tmp_path)
    (tmp_path / "groups.csv").unlink()
    (tmp_path / "groups.csv").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"groups\.csv: is no file; "):
        read_groups(tmp_path)


def test_links_that_leave_the_data_set_or_go_round_are_read_and_never_followed_for_ever(tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere" / "0.png")
    good = tmp_path / "data" / "p" / "train" / "good"
    good.mkdir(parents=True)
    (good / "0.png").symlink_to(outside)  # data sets are often farms of links
    (good / "1.png").symlink_to("/dev/zero")
    (good / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "p" / "test").symlink_to(tmp_path / "data" / "p" / "train")
    normals = read_folder(tmp_path / "data").products["p"].normals
    assert [normal.path.name for normal in normals if normal.part == "train"] == ["0.png", "1.png"]
    assert load_normal(normals[0]).shape[2] == 3
    with pytest.raises(DataError, match=r"1\.png: the file is empty"):
        load_normal(normals[1])
