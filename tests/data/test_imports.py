"""Other tools' labelled data: exact masks, whose names, which side, and one line for everything that is wrong."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as pycoco
from scipy import ndimage
from skimage.measure import points_in_poly

from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError, DataError
from anomalydiffusion.core.pixels import read_mask
from anomalydiffusion.data.arrange import clean
from anomalydiffusion.data.check import check
from anomalydiffusion.data.folders import load, read_folder
from anomalydiffusion.data.imports import import_data
from anomalydiffusion.data.polygons import Outline, Runs, decode_counts, fill
from anomalydiffusion.report.export import export
from anomalydiffusion.report.layouts import outline, run_lengths
from tests.hostile import ODD, damaged, refused, spoilt
from tests.report.conftest import make_run

H, W = 24, 32
MASKS = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))
SQUARE = [6.0, 4.0, 12.0, 4.0, 12.0, 9.0, 6.0, 9.0]  # marks [4:9, 6:12]


def save(path: Path, array: np.ndarray | None = None, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.random.default_rng([seed, *"/".join(path.parts[-3:]).encode()]).integers(0, 255, (H, W, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


def square(value: int = 255, h: int = H, w: int = W) -> np.ndarray:
    array = np.zeros((h, w), dtype=np.uint8)
    array[4:9, 6:12] = value
    return array


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.name != "imported.csv")


# --- drawing


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_runs_in_each_form_are_the_mask(marks: np.ndarray) -> None:
    packed = pycoco.encode(np.asfortranarray(marks.astype(np.uint8)))["counts"].decode()
    assert decode_counts(packed, "x") == run_lengths(marks)
    for counts in (packed, run_lengths(marks)):
        canvas = np.zeros_like(marks)
        Runs(counts=counts, size=marks.shape, where="x").draw(canvas)
        assert np.array_equal(canvas, marks)


@pytest.mark.parametrize("counts", [[768 * 10**9], "o" * 10**5, "0", "P", "~", "\x00", [0, -768, 1536], [1.5, 766.5], [None], [10**400]])
def test_runs_that_do_not_fit_are_refused_before_anything_is_allocated(counts: Any) -> None:
    with pytest.raises(DataError, match=r"^here: "):
        Runs(counts=counts, size=(H, W), where="here").draw(np.zeros((H, W), bool))
    with pytest.raises(DataError, match="900000 x 900000 pixels, but the picture is 32 x 24"):
        Runs(counts=[900000**2], size=(900000, 900000), where="here").draw(np.zeros((H, W), bool))


def test_long_runs_are_decoded() -> None:
    marks = np.zeros((700, 900), bool)
    marks[100:650, 50:800] = np.random.default_rng(0).random((550, 750)) > 0.999
    packed = pycoco.encode(np.asfortranarray(marks.astype(np.uint8)))["counts"].decode()
    assert decode_counts(packed, "x") == run_lengths(marks)


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_an_outline_along_pixels_is_filled_as_it_was(marks: np.ndarray) -> None:
    labels, count = ndimage.label(marks, np.ones((3, 3)))
    for label in range(1, count + 1):
        canvas = np.zeros_like(marks)
        fill(canvas, np.array(outline(labels == label), float))
        assert np.array_equal(canvas, ndimage.binary_fill_holes(labels == label))


def to_edges(points: np.ndarray, h: int, w: int) -> np.ndarray:
    """How far each pixel's middle is from the outline."""
    y, x = np.mgrid[:h, :w] + 0.5
    away = np.full((h, w), np.inf)
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        along = np.clip(((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / max(((b - a) ** 2).sum(), 1e-12), 0, 1)
        away = np.minimum(away, np.hypot(x - a[0] - along * (b[0] - a[0]), y - a[1] - along * (b[1] - a[1])))
    return away


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 50), st.floats(-20, 40)), min_size=3, max_size=9))
def test_a_polygon_marks_the_pixels_whose_middle_is_within(corners: list[tuple[float, float]]) -> None:
    points, canvas = np.array(corners), np.zeros((H, W), bool)
    fill(canvas, points)
    y, x = np.mgrid[:H, :W] + 0.5
    expected = points_in_poly(np.stack([x.ravel(), y.ravel()], 1), points).reshape(H, W)
    clear = to_edges(points, H, W) > 1e-6  # where an edge runs through a middle, either is right
    assert np.array_equal(canvas[clear], expected[clear])


@pytest.mark.parametrize("seed", range(20))
def test_pycocotools_draws_the_same_but_for_pixels_that_an_edge_all_but_halves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turns, radius = np.sort(rng.uniform(0, 2 * np.pi, 12)), rng.uniform(20, 55, 12)
    points = np.stack([70 + radius * np.cos(turns), 60 + radius * np.sin(turns)], 1)
    canvas = np.zeros((120, 140), bool)
    Outline.of(points.ravel().tolist(), "x").draw(canvas)
    theirs = pycoco.decode(pycoco.merge(pycoco.frPyObjects([points.ravel().tolist()], 120, 140))) > 0
    differ = canvas ^ theirs  # theirs goes by fifths of a pixel
    assert to_edges(points, 120, 140)[differ].max(initial=0) < 0.3


def test_what_pycocotools_draws_of_rectangles_is_exactly_the_same() -> None:
    for flat in (SQUARE, [0, 0, 32, 0, 32, 24, 0, 24], [31, 23, 32, 23, 32, 24, 31, 24]):
        canvas = np.zeros((H, W), bool)
        Outline.of(flat, "x").draw(canvas)
        assert np.array_equal(canvas, pycoco.decode(pycoco.merge(pycoco.frPyObjects([[float(v) for v in flat]], H, W))) > 0)


def test_neighbours_share_no_pixel() -> None:
    canvases = [np.zeros((H, W), bool) for _ in range(2)]
    fill(canvases[0], np.array([[0, 0], [20.3, 0], [9.1, 24], [0, 24]]))
    fill(canvases[1], np.array([[20.3, 0], [32, 0], [32, 24], [9.1, 24]]))
    assert (canvases[0] ^ canvases[1]).all()


# --- VisA


def visa(root: Path, table: str = "split_csv/1cls.csv") -> Path:
    lines = ["object,split,label,image,mask"]
    for split, names in (("train", "012"), ("test", "34")):
        for name in names:
            save(root / f"candle/Data/Images/Normal/{name}.JPG")
            lines.append(f"candle,{split},normal,candle/Data/Images/Normal/{name}.JPG,")
    for index, name in enumerate("01"):
        save(root / f"candle/Data/Images/Anomaly/{name}.JPG")
        save(root / f"candle/Data/Masks/Anomaly/{name}.png", square(index + 1))
        lines.append(f"candle,test,anomaly,candle/Data/Images/Anomaly/{name}.JPG,candle/Data/Masks/Anomaly/{name}.png")
    save(root / "pcb1/Data/Images/Normal/0.JPG")
    lines.append("pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,")
    (root / table).parent.mkdir(exist_ok=True)
    (root / table).write_text("\n".join(lines) + "\n")
    return root


def test_visa_keeps_its_split_and_its_classes_of_pixels_are_one_defect(tmp_path: Path) -> None:
    source = visa(tmp_path / "VisA")
    (source / "split_csv/2cls_fewshot.csv").write_text((source / "split_csv/1cls.csv").read_text())
    summary = import_data(source, tmp_path / "out")
    assert summary.format == "visa"
    assert summary.counts == {"candle": {"train/good": 3, "test/good": 2, "test/anomaly": 2}, "pcb1": {"train/good": 1}}
    assert list(summary.counts["candle"]) == ["train/good", "test/good", "test/anomaly"]
    product = read_folder(tmp_path / "out").products["candle"]
    for shot in product.defects["anomaly"]:
        image, mask = load(shot)
        assert np.array_equal(mask.pixels_HW, square() > 0) and image.shape == (H, W, 3)
        assert set(np.unique(np.asarray(Image.open(shot.mask_path)))) == {0, 255} and Image.open(shot.mask_path).mode == "L"
    assert not any(problem.level == "error" and problem.file.startswith("candle") for problem in check(tmp_path / "out").problems)


def test_visa_of_one_product_from_its_table(tmp_path: Path) -> None:
    source = visa(tmp_path / "VisA", "mine.csv")
    for place in (source, source / "mine.csv"):
        assert list(import_data(place, tmp_path / (place.suffix + "out"), product="candle").counts) == ["candle"]
    with pytest.raises(ConfigError, match="known there: candle, pcb1"):
        import_data(source, tmp_path / "no", product="fuse")


def test_files_are_hard_links_or_copies_but_never_symbolic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = visa(tmp_path / "VisA")
    moved = (source / "candle/Data/Images/Normal/0.JPG").rename(tmp_path / "elsewhere.JPG")
    (source / "candle/Data/Images/Normal/0.JPG").symlink_to(moved)
    import_data(source, tmp_path / "out")
    placed = tmp_path / "out/candle/train/good/0.JPG"
    assert placed.samefile(moved) and not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    import_data(source, tmp_path / "out2")
    copied = tmp_path / "out2/candle/train/good/0.JPG"
    assert copied.read_bytes() == moved.read_bytes() and not copied.samefile(moved) and not copied.is_symlink()
    assert (tmp_path / "out/imported.csv").read_text().splitlines()[:2] == [
        "file,source", "candle/test/anomaly/0.JPG,candle/Data/Images/Anomaly/0.JPG",
    ]  # fmt: skip


# --- COCO


def coco(folder: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.png", "b.png"), **change: Any) -> Path:
    """A COCO file beside its pictures; annotation ids and the first image are filled in."""
    for name in names:
        save(folder / name)
    whole = {
        "images": [{"id": index + 1, "file_name": name, "width": W, "height": H} for index, name in enumerate(names)],
        "annotations": [{"id": index + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **each} for index, each in enumerate(annotations)],
        "categories": [{"id": 1, "name": "crack"}, {"id": 2, "name": "spot"}],
    } | change  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(whole))
    return folder / "labels.json"


def test_coco_in_each_form(tmp_path: Path) -> None:
    marks = square() > 0
    packed = pycoco.encode(np.asfortranarray(marks.astype(np.uint8)))["counts"].decode()
    names = ("poly.png", "runs.png", "packed.png", "crowd.png", "two.png", "out.png", *(f"n{i}.png" for i in range(10)))
    forms = [
        {"segmentation": [SQUARE]}, {"segmentation": {"size": [H, W], "counts": run_lengths(marks)}},
        {"segmentation": {"size": [H, W], "counts": packed}}, {"segmentation": {"size": [H, W], "counts": packed}, "iscrowd": 1},
        {"segmentation": [[6, 4, 9, 4, 9, 9, 6, 9], [9, 4, 12, 4, 12, 9, 9, 9]]}, {"segmentation": [[-500, -9, 5, -9, 5, 6, -500, 6]]},
    ]  # fmt: skip
    file = coco(tmp_path / "ring", [{**form, "image_id": index + 1} for index, form in enumerate(forms)], names)
    summary = import_data(file, tmp_path / "out")
    assert summary.counts == {"ring": {"test/good": 2, "train/good": 8, "test/crack": 6}}
    found = {shot.path.stem: load(shot)[1].pixels_HW for shot in read_folder(tmp_path / "out").products["ring"].defects["crack"]}
    clipped = np.zeros((H, W), bool)
    clipped[:6, :5] = True
    assert np.array_equal(found.pop("out"), clipped)
    assert len(found) == 5 and all(np.array_equal(each, marks) for each in found.values())
    assert [n.path.name for n in read_folder(tmp_path / "out").products["ring"].normals if n.part == "test"] == ["n8.png", "n9.png"]


def test_an_image_of_several_types_goes_to_the_largest_with_all_its_marks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = [20.0, 10.0, 22.0, 10.0, 22.0, 12.0, 20.0, 12.0]
    file = coco(tmp_path / "p", [{"segmentation": [small]}, {"segmentation": [SQUARE], "category_id": 2}])
    with caplog.at_level(logging.WARNING):
        summary = import_data(file, tmp_path / "out", product="ring")
    assert summary.counts == {"ring": {"train/good": 1, "test/spot": 1}}
    assert "a.png (crack, spot: spot)" in caplog.text
    marks = square() > 0
    marks[10:12, 20:22] = True
    assert np.array_equal(read_mask(tmp_path / "out/ring/ground_truth/spot/a_mask.png"), marks)


def test_pictures_are_found_around_the_file_or_where_is_said(tmp_path: Path) -> None:
    file = coco(tmp_path / "set/images", [{"segmentation": [SQUARE]}])
    for place in ("set/annotations", "set", "else"):
        moved = tmp_path / place / "labels.json"
        moved.parent.mkdir(exist_ok=True)
        moved.write_text(file.read_text())
    file.unlink()
    out = iter("abc")
    assert list(import_data(tmp_path / "set/annotations/labels.json", tmp_path / next(out)).counts) == ["set"]
    (tmp_path / "set/annotations/labels.json").unlink()
    assert list(import_data(tmp_path / "set", tmp_path / next(out)).counts) == ["set"]
    with pytest.raises(DataError, match=r"'a\.png' is not in .*; .*--images"):
        import_data(tmp_path / "else/labels.json", tmp_path / "no")
    import_data(tmp_path / "else/labels.json", tmp_path / next(out), images=tmp_path / "set/images")


def test_names_that_collide_are_told_apart_and_traced(tmp_path: Path) -> None:
    names = ("x/1.png", "y/1.png", "y/1.jpg", "x_1.png", ".hid.png", "a b?.png")
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE], "image_id": index + 1} for index in range(6)], names)
    import_data(file, tmp_path / "out", product="p")
    shots = read_folder(tmp_path / "out").products["p"].defects["crack"]
    assert sorted(shot.path.name for shot in shots) == ["1.png", "1_2.png", "a b_.png", "hid.png", "x_1.png", "y_1.jpg"]
    lines = dict(line.split(",") for line in (tmp_path / "out/imported.csv").read_text().splitlines()[1:])
    assert sorted(lines.values()) == sorted(names) and len({name.casefold() for name in lines}) == 6
    for placed, source in lines.items():
        assert (tmp_path / "out" / placed).samefile(tmp_path / "p" / source)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("crack", "crack"), ("a/b\\c", "a_b_c"), ("../../x", "_.._x"), ("..", ""), (" . ", ""), ("/etc", "_etc"), ("a\nb", "a_b"),
     ("C:x", "C_x"), ("\ud800", "_"), ("e\u0301", "é"), ("é" * 300, "é" * 100), ("con.", "con")],
)  # fmt: skip
def test_names_are_cleaned(name: str, expected: str) -> None:
    assert clean(name) == expected


def change(key: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda whole: whole[key][index].update(values)


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda whole: whole.pop(key)


RUNS = {"size": [H, W], "counts": [H * W + 1]}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change("images", 0, file_name="../a.png"), r"image 1: '../a\.png' may lie outside"),
        (change("images", 0, file_name="/etc/passwd"), "may lie outside"),
        (change("images", 0, file_name="..\\a.png"), "may lie outside"),
        (change("images", 0, file_name="C:\\a.png"), "may lie outside"),
        (change("images", 0, file_name="a\0.png"), "may lie outside"),
        (change("images", 0, file_name="\ud800.png"), "is not in"),
        (change("images", 0, file_name="x" * 5000 + ".png"), "is not in"),
        (change("images", 0, file_name=None), "names no file"),
        (change("images", 0, file_name="gone.png"), r"'gone\.png' is not in .*add it"),
        (change("images", 0, file_name="b.png"), r"image 2: b\.png stands there twice"),
        (change("images", 0, file_name="labels.json"), "not a kind of picture"),
        (change("images", 0, width=10**9, height=10**9), r"says 1000000000 x 1000000000 pixels, but .*a\.png is 32 x 24"),
        (change("images", 0, width=H, height=W), "save it upright"),
        (change("images", 0, width="wide"), "no size"),
        (change("images", 0, id=2), "two images have the id 2"),
        (change("images", 0, id=[1]), "id is"),
        (change("annotations", 0, image_id=7), "annotation 1: no image has the id 7"),
        (change("annotations", 0, category_id=7), "annotation 1: no category has the id 7"),
        (change("annotations", 0, segmentation=[]), "only a box"),
        (change("annotations", 0, segmentation={"size": [H, W]}), "without size and counts"),
        (change("annotations", 0, segmentation={"size": [10**6, 10**6], "counts": [10**12]}), "but the picture is 32 x 24"),
        (change("annotations", 0, segmentation=RUNS), "do not add up"),
        (change("annotations", 0, segmentation=[[1, 2, 3]]), "3 numbers"),
        (change("annotations", 0, segmentation=[[1, 2, "x", 4]]), "list of numbers"),
        (change("annotations", 0, segmentation=[[1, 2, float("nan"), 4, 5, 6]]), "list of numbers"),
        (change("annotations", 0, segmentation=[[1, 2, 1e300, 4, 5, 6]]), "list of numbers"),
        (change("annotations", 0, segmentation=[[90, 90, 99, 90, 99, 99]]), r"a\.png: what is drawn on it marks no pixel"),
        (change("categories", 0, name=".."), "'..' is no name for a folder"),
        (change("categories", 0, name="Good"), "'Good' is what the folder of normal images is called"),
        (change("categories", 0, name="SPOT"), "'SPOT' and 'spot' would both be the folder|'spot' and 'SPOT'"),
        (change("categories", 0, name=None), "category 1 has no name"),
        (lambda whole: whole.update(images=[1]), "no list of images"),
        (lambda whole: whole.update(images=[], annotations=[]), "names no picture"),
        (drop("categories"), "no list of categories"),
    ],
)  # fmt: skip
def test_a_spoilt_coco_file_is_one_line_and_leaves_nothing(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], words: str) -> None:
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}, {"segmentation": [SQUARE], "image_id": 2, "category_id": 2}])
    whole = json.loads(file.read_text())
    spoil(whole)
    file.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=words) as caught:
        import_data(file, tmp_path / "out", "coco")
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}])
    (tmp_path / "p/b.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(DataError, match=r"b\.png: cannot be read as a picture"):
        import_data(file, tmp_path / "out")
    for name, text in (("cut.json", file.read_text()[:-9]), ("deep.json", "[" * 10**5), ("bad.yaml", "names: [a"), ("bad.csv", "a,b\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: (cannot be read|no column)"):
            import_data(tmp_path / name, tmp_path / "out")


# --- round trips


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_what_we_export_is_read_back(tmp_path: Path, layout: str) -> None:
    export(make_run(tmp_path / "work"), tmp_path / "sent", layout)
    export(tmp_path / "work/run", tmp_path / "ours", "mvtec")
    summary = import_data(tmp_path / "sent", tmp_path / "back")
    ours, back = (read_folder(tmp_path / name).products for name in ("ours", "back"))
    assert summary.format == layout and list(back) == list(ours)
    for name, product in ours.items():
        assert {kind: len(shots) for kind, shots in back[name].defects.items()} == {k: len(s) for k, s in product.defects.items()}
        assert len(back[name].normals) == len(product.normals) > 0
        for kind, shots in product.defects.items():
            sent = {load(shot)[0].tobytes(): load(shot)[1].pixels_HW for shot in shots}
            for shot in back[name].defects[kind]:
                image, mask = load(shot)
                expected = sent[image.tobytes()]
                if layout == "yolo":  # its polygons have no holes
                    expected = ndimage.binary_fill_holes(expected)
                assert np.array_equal(mask.pixels_HW, expected)


# --- YOLO


def yolo(root: Path, about: dict[str, Any] | None = None, line: str = "1 0.1875 0.16667 0.375 0.16667 0.375 0.375 0.1875 0.375") -> Path:
    for side, names in (("train", "abc"), ("val", "de")):
        for name in names:
            save(root / f"images/{side}/{name}.jpg")
    for place, text in (("train/a", line + "\n\n"), ("val/d", line), ("train/b", "")):
        path = root / f"labels/{place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "labels/train/classes.txt").write_text("hole\nscratch")
    (root / "data.yaml").write_text(
        yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["hole", "scratch"]} | (about or {}))
    )
    return root


@pytest.mark.parametrize(
    "about",
    [{}, {"path": "."}, {"path": "/somewhere/else"}, {"train": "../images/train", "val": ["./images/val"]},
     {"train": None, "val": None}, {"names": {1: "scratch"}}],
)  # fmt: skip
def test_yolo_keeps_its_sides(tmp_path: Path, about: dict[str, Any]) -> None:
    summary = import_data(yolo(tmp_path / "wheel", about), tmp_path / "out")
    assert summary.format == "yolo" and summary.counts == {"wheel": {"test/good": 1, "train/good": 2, "test/scratch": 2}}
    for shot in read_folder(tmp_path / "out").products["wheel"].defects["scratch"]:
        assert np.array_equal(load(shot)[1].pixels_HW, square() > 0)


@pytest.mark.parametrize("way", [3, 6])
def test_what_was_drawn_on_a_picture_that_is_shown_turned_is_refused(tmp_path: Path, way: int) -> None:
    source, exif = yolo(tmp_path / "wheel"), Image.Exif()
    exif[0x0112] = way
    picture = Image.open(source / "images/train/a.jpg")
    picture.load()
    picture.save(source / "images/train/a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"a\.jpg: its EXIF data ask to turn it.*; save it upright and label it again"):
        import_data(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_yolo_of_one_side_is_divided(tmp_path: Path) -> None:
    source = yolo(tmp_path / "wheel", {"val": None})
    for index in range(8):
        save(source / f"images/train/n{index}.jpg")
    assert import_data(source, tmp_path / "out").counts["wheel"] == {"test/good": 2, "train/good": 8, "test/scratch": 1}


@pytest.mark.parametrize(
    ("about", "line", "words"),
    [
        ({}, "7 0 0 1 0 1 1", r"labels/train/a\.txt: line 1: class '7'"),
        ({}, "x 0 0 1 0 1 1", "class 'x'"),
        ({}, "1 0.5 0.5 0.1 0.1", "a box, no outline"),
        ({}, "1 0 0 1 0 1", "5 numbers"),
        ({}, "1 0 0 1 0 1 inf", "list of numbers"),
        ({}, "1 40 40 50 40 50 50", r"a\.jpg: what is drawn on it marks no pixel"),
        ({"train": "../../outside"}, "", "no folder in"),
        ({"train": "/etc"}, "", "no folder in"),
        ({"train": "x" * 5000}, "", "no folder in"),
        ({"names": "crack"}, "", "no names"),
        ({"names": {"a": "b"}}, "", "no names"),
        ({"names": [["hole"]]}, "", "no names"),
        ({"train": {"a": "b"}}, "", "no folder in"),
    ],
)  # fmt: skip
def test_a_spoilt_yolo_set_is_one_line(tmp_path: Path, about: dict[str, Any], line: str, words: str) -> None:
    source = yolo(tmp_path / "wheel", about, line or "1 0 0 1 0 1 1")
    with pytest.raises(DataError, match=words):
        import_data(source / "data.yaml", tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()


def test_a_yolo_class_named_like_a_path_is_cleaned_and_not_followed(tmp_path: Path) -> None:
    source = yolo(tmp_path / "wheel", {"names": ["hole", "../.."]}, "1 0 0 1 0 1 1")
    assert set(import_data(source, tmp_path / "out", "yolo").counts["wheel"]) == {"test/good", "train/good", "test/_"}


def test_a_yaml_that_unfolds_without_end_is_refused_at_once(tmp_path: Path) -> None:
    source = yolo(tmp_path / "wheel")
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    for last in ("names: *a29\n", "names: [hole, scratch]\ntrain: *a29\n", "names: {0: *a29}\n"):
        (source / "data.yaml").write_text(bomb + last)
        with pytest.raises(DataError, match=r"no names|no folder in"):
            import_data(source / "data.yaml", tmp_path / "out")


def test_labels_without_a_picture_are_refused(tmp_path: Path) -> None:
    source = yolo(tmp_path / "wheel")
    (source / "images/train/a.jpg").unlink()
    with pytest.raises(DataError, match=r"labels/train/a\.txt: no picture of its name"):
        import_data(source, tmp_path / "out")


# --- folders


def test_plain_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1", "2", "3"):
        save(tmp_path / f"pictures/{name}.bmp")
    save(tmp_path / "masks/1_mask.png", square(1))
    save(tmp_path / "masks/2.png", square())
    save(tmp_path / "masks/3.png", square(0))
    save(tmp_path / "masks/9.png", square())
    for index in range(5):
        save(tmp_path / f"fine/{index}.png")
    options = {"masks": tmp_path / "masks", "normals": tmp_path / "fine", "product": "tile", "defect": "hole"}
    summary = import_data(None, tmp_path / "out", images=tmp_path / "pictures", **options)
    assert summary.counts == {"tile": {"test/good": 1, "train/good": 5, "test/hole": 2}} and summary.format == "folders"
    assert "1 masks mark nothing: taken for normal, first 3.bmp" in caplog.text and "first 9.png" in caplog.text
    assert import_data(tmp_path / "pictures", tmp_path / "out2", **options).counts == summary.counts
    assert tree(tmp_path / "out") == tree(tmp_path / "out2")
    for name in ("1", "2"):
        assert np.array_equal(read_mask(tmp_path / f"out/tile/ground_truth/hole/{name}_mask.png"), square() > 0)


def test_pictures_and_masks_in_one_folder(tmp_path: Path) -> None:
    save(tmp_path / "all/1.png")
    save(tmp_path / "all/1_mask.png", square())
    options: dict[str, Any] = {"masks": tmp_path / "all", "product": "tile", "defect": "hole"}
    assert import_data(tmp_path / "all", tmp_path / "out", **options).counts == {"tile": {"test/hole": 1}}
    save(tmp_path / "all/2.png")
    with pytest.raises(DataError, match=r"2\.png: no mask of its name .*2_mask\.png"):
        import_data(tmp_path / "all", tmp_path / "out2", **options)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "pictures/1.png")
    save(tmp_path / "masks/1.png", square(255, 30, 40))
    with pytest.raises(DataError, match=r"masks/1\.png: says 40 x 30 pixels, but .*1\.png is 32 x 24"):
        import_data(tmp_path / "pictures", tmp_path / "out", masks=tmp_path / "masks", product="p", defect="d")


# --- Label Studio


def task(name: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    sized = [{"original_width": W, "original_height": H, "image_rotation": 0, **each} for each in results]
    return {"id": 5, "data": {"image": name}, "annotations": [{"result": sized}]} | more


def polygon(label: str = "crack", points: Any = None) -> dict[str, Any]:
    percent = [[100 * x / W, 100 * y / H] for x, y in np.reshape(SQUARE, (4, 2)).tolist()]
    return {"type": "polygonlabels", "value": {"points": points or percent, "polygonlabels": [label]}}


def rectangle(rotation: float = 0.0, x: float = 6, y: float = 4, w: float = 6, h: float = 5) -> dict[str, Any]:
    value = {"x": 100 * x / W, "y": 100 * y / H, "width": 100 * w / W, "height": 100 * h / H, "rotation": rotation}
    return {"type": "rectanglelabels", "value": {**value, "rectanglelabels": ["crack"]}}


def studio(folder: Path, tasks: list[Any], names: tuple[str, ...] = ("a.png",)) -> Path:
    for name in names:
        save(folder / name)
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


@pytest.mark.parametrize(
    ("address", "name"),
    [("a.png", "a.png"), ("/data/upload/3/0123abcd-a.png", "0123abcd-a.png"), ("/data/upload/3/0123abcd-a.png", "a.png"),
     ("/data/local-files/?d=some/where/a%20b.png", "where/a b.png"), ("s3://bucket/deep/a.png", "a.png"),
     ("https://x.org/p/a.png?key=1", "p/a.png"), ("/data/local-files/?d=../../etc/a.png", "a.png")],
)  # fmt: skip
def test_label_studio_finds_its_pictures(tmp_path: Path, address: str, name: str) -> None:
    file = studio(tmp_path / "ls", [task(address, polygon())], (name,))
    summary = import_data(file, tmp_path / "out", product="ring")
    assert summary.format == "labelstudio" and summary.counts == {"ring": {"test/crack": 1}}
    (shot,) = read_folder(tmp_path / "out").products["ring"].defects["crack"]
    assert np.array_equal(load(shot)[1].pixels_HW, square() > 0)


@pytest.mark.parametrize("drawn", [rectangle(), rectangle(90, x=12, y=4, w=5, h=6), rectangle(180, x=12, y=9)])
def test_rectangles_turn_clockwise_about_their_corner(tmp_path: Path, drawn: dict[str, Any]) -> None:
    import_data(studio(tmp_path / "ls", [task("a.png", drawn)]), tmp_path / "out", product="p")
    assert np.array_equal(read_mask(tmp_path / "out/p/ground_truth/crack/a_mask.png"), square() > 0)


def test_who_answered_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full, empty = task("x", polygon())["annotations"][0], {"result": []}
    tasks = [
        task("a.png"), task("b.png", annotations=[]), task("c.png", annotations=[{**full, "was_cancelled": True}, empty]),
        task("d.png", annotations=[{**full, "ground_truth": True}, empty]), task("e.png", annotations=[full, empty]),
        task("f.png", polygon(), {"type": "choices", "value": {"choices": ["bad"]}}),
    ]  # fmt: skip
    file = studio(tmp_path / "ls", tasks, tuple(f"{name}.png" for name in "abcdef"))
    assert import_data(file, tmp_path / "out", product="p").counts == {"p": {"test/good": 1, "train/good": 2, "test/crack": 2}}
    assert "without an answer are left out, first b.png" in caplog.text and "first e.png" in caplog.text
    assert [line for line in tree(tmp_path / "out") if "crack" in line and "mask" not in line] == [
        "p/test/crack/d.png",
        "p/test/crack/f.png",
    ]


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (task("a.png", {"type": "brushlabels", "value": {"format": "rle", "rle": [1], "brushlabels": ["x"]}}), "as PNG, then: .*folders"),
        (task("a.png", {"type": "ellipselabels", "value": {"x": 1, "ellipselabels": ["x"]}}), "draw polygons"),
        (task("a.png", {**polygon(), "image_rotation": 90}), "turned picture"),
        (task("a.png", {**polygon(), "original_width": 99}), "says 99 x 24 pixels"),
        (task("a.png", {**polygon(), "original_width": None}), "not one size"),
        (task("a.png", {**rectangle(), "original_width": 10**400}), "not one size"),
        (task("a.png", {"type": "polygonlabels", "value": {"points": [[1, 2]]}}), "without a label"),
        (task("a.png", polygon(points=[[1, 2], "x", [3]])), "3 numbers"),
        (task("a.png", polygon(points={"x": 1})), "list of numbers"),
        (task("a.png", {"type": "rectanglelabels", "value": {"x": "far", "rectanglelabels": ["c"]}}), "list of numbers"),
        (task("gone.png", polygon()), r"task 5: 'gone\.png' is not in"),
        (task("a.mp4", polygon()), "names no picture"),
        (task("a.png", annotations=[{"result": None}]), "list of results"),
        ({"image": "a.png", "label": []}, "not as JSON-MIN"),
    ],
)  # fmt: skip
def test_a_spoilt_export_of_label_studio_is_one_line(tmp_path: Path, spoilt: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        import_data(studio(tmp_path / "ls", [spoilt]), tmp_path / "out", "labelstudio")
    assert not (tmp_path / "out").exists()


# --- what is asked for


def test_what_was_asked_for_is_checked(tmp_path: Path) -> None:
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}])
    ours = save(tmp_path / "ours/tile/train/good/1.png").parents[3]
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"source": file, "format": "pascal"}, "'pascal' is not known; known: visa"),
        ({"source": None}, "nothing to import"),
        ({"source": file, "defect": "crack"}, "--defect says nothing about a COCO file"),
        ({"source": file, "masks": file.parent}, "--product is missing"),
        ({"source": file.parent, "masks": file.parent, "images": file.parent, "product": "p", "defect": "d"}, "both name the pictures"),
        ({"source": ours}, "in MVTec AD layout already; type: anomalydiffusion check"),
        ({"source": tmp_path / "empty"}, "not recognised"),
    ]
    for options, words in wrong:
        with pytest.raises(ConfigError, match=words):
            import_data(output=tmp_path / "out", **options)
    (file.parent / "more.json").write_text(file.read_text())
    with pytest.raises(ConfigError, match=r"labels\.json \(coco\), more\.json \(coco\); name one"):
        import_data(file.parent, tmp_path / "out")
    for options in (
        {"source": tmp_path / "none"},
        {"source": tmp_path / "empty", "format": "yolo"},
        {"source": file, "images": tmp_path / "none"},
    ):
        with pytest.raises(DataError, match=r"; "):
            import_data(output=tmp_path / "out", **options)


def test_an_output_that_holds_something_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}])
    (tmp_path / "out").mkdir()
    import_data(file, tmp_path / "out")
    before = tree(tmp_path / "out")
    for place in (tmp_path / "out", file):
        with pytest.raises(DataError, match="exists already"):
            import_data(file, place)
    assert tree(tmp_path / "out") == before and len(before) == 3


def test_check_says_which_import_to_type(tmp_path: Path) -> None:
    file = coco(tmp_path / "a set", [{"segmentation": [SQUARE]}])
    sources = {
        file: "a COCO file",
        file.parent: "a COCO file",
        visa(tmp_path / "VisA"): "VisA's layout",
        yolo(tmp_path / "y"): "YOLO's layout",
    }
    for source, words in sources.items():
        with pytest.raises(DataError, match=f"{words}, not MVTec AD's; type: anomalydiffusion import .* --output DATA"):
            check(source)
    with pytest.raises(DataError, match=r"import '.*a set/labels\.json' --output"):
        read_folder(file)


def test_a_product_of_normal_images_must_be_known(tmp_path: Path) -> None:
    kinds = [{"id": 1, "name": "tile/crack"}, {"id": 2, "name": "wood/hole"}]
    marks = [{"segmentation": [SQUARE]}, {"segmentation": [SQUARE], "image_id": 2, "category_id": 2}]
    file = coco(tmp_path / "p", marks, ("1.png", "2.png", "tile/3.png"), categories=kinds)
    assert import_data(file, tmp_path / "out").counts == {"tile": {"train/good": 1, "test/crack": 1}, "wood": {"test/hole": 1}}
    file = coco(tmp_path / "p", marks, ("1.png", "2.png", "3.png"), categories=kinds)
    with pytest.raises(DataError, match=r"3\.png is normal, but of which product\?"):
        import_data(file, tmp_path / "no")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalydiffusion.app.main import main

    file = coco(tmp_path / "ring", [{"segmentation": [SQUARE]}])
    for words, code, said in (
        ([str(file)], 0, "ring: train/good 1, test/crack 1"), ([str(file)], 1, "error: .*exists already"),
        ([str(file), "--format", "x"], 1, "exists already"), (["--format", "x", "--output", str(tmp_path / "new")], 2, "error: format 'x'"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["anomalydiffusion", "import", "--output", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        assert ended.value.code == code
        assert re.search(said, out.out + out.err)


def test_every_error_is_ours(tmp_path: Path) -> None:
    """Whatever a file of labels holds in a place, the answer is a data set or one of our lines."""
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}])
    whole = json.loads(file.read_text())
    odd: list[Any] = [None, True, -1, 10**30, 1.5, "", "../x", "\n", [], [[]], {}, [None], {"a": 1}]
    for key, row in ((key, row) for key in ("images", "annotations", "categories") for row in range(1)):
        for name in whole[key][row]:
            for value in odd:
                spoilt = json.loads(file.read_text())
                spoilt[key][row][name] = value
                (tmp_path / "p/odd.json").write_text(json.dumps(spoilt))
                try:
                    import_data(tmp_path / "p/odd.json", tmp_path / "out", "coco")
                except AnomalyDiffusionError as error:
                    assert "; " in str(error) and "Error" not in str(error)
                else:
                    shutil.rmtree(tmp_path / "out")


# --- hostile files


def _hostile(tmp_path_factory: pytest.TempPathFactory, layout: str, name: str, data: bytes) -> None:
    """What is imported lies in the new folder, what is refused leaves nothing; either way nothing else changes."""
    top = tmp_path_factory.mktemp("h")
    for picture in ("a.png", "b.png"):
        save(top / "p" / picture)
    save(top / "p" / "b_mask.png", square())
    (top / "p" / name).write_bytes(data)
    before = sorted(top.rglob("*"))
    said = refused(lambda: import_data(top / "p" / name, top / "out", layout))
    assert [path for path in sorted(top.rglob("*")) if "out" not in path.relative_to(top).parts] == before
    assert not said or not (top / "out").exists()


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": W, "height": H}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "crack"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]},
                    {"id": 2, "image_id": 2, "category_id": 1, "segmentation": {"size": [H, W], "counts": [100, 50, H * W - 150]}}],
}  # fmt: skip
TASKS = [{"id": 1, "data": {"image": "/data/upload/a.png"}, "annotations": [{"result": [{
    "type": "polygonlabels", "original_width": W, "original_height": H,
    "value": {"points": [[10, 10], [60, 10], [60, 60]], "polygonlabels": ["crack"]}}]}]}]  # fmt: skip
TABLE = b"object,split,label,image,mask\ntile,train,normal,a.png,\ntile,test,crack,b.png,b_mask.png\n"


@settings(max_examples=30, deadline=None)
@given(data=spoilt(COCO))
def test_whatever_a_coco_file_holds(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _hostile(tmp_path_factory, "coco", "labels.json", data)


@settings(max_examples=30, deadline=None)
@given(data=spoilt(TASKS))
def test_whatever_an_export_of_label_studio_holds(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _hostile(tmp_path_factory, "labelstudio", "tasks.json", data)


@settings(max_examples=30, deadline=None)
@given(data=damaged(TABLE))
def test_whatever_a_table_of_visa_holds(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _hostile(tmp_path_factory, "visa", "1cls.csv", data)


@settings(max_examples=30, deadline=None)
@given(about=damaged(b"path: .\ntrain: images\nnames: {0: crack, 1: hole}\n"), labels=damaged(b"0 0.1 0.1 0.9 0.1 0.9 0.9\n"))
def test_whatever_a_yolo_set_holds(tmp_path_factory: pytest.TempPathFactory, about: bytes, labels: bytes) -> None:
    for yaml_of, text in ((about, b"0 0.1 0.1 0.9 0.1 0.9 0.9\n"), (b"train: images\nnames: [crack, hole]\n", labels)):
        top = tmp_path_factory.mktemp("y")
        save(top / "images" / "a.png")
        (top / "labels").mkdir()
        (top / "labels" / "a.txt").write_bytes(text)
        (top / "data.yaml").write_bytes(yaml_of)
        refused(lambda top=top: import_data(top / "data.yaml", top / "out", "yolo", product="tile"))


@pytest.mark.parametrize("value", [value for value in ODD if not isinstance(value, int)])
def test_sizes_and_kinds_of_label_studio_may_be_anything(tmp_path: Path, value: Any) -> None:
    save(tmp_path / "a.png")
    for name in ("original_width", "type"):
        tasks = json.loads(json.dumps(TASKS))
        tasks[0]["annotations"][0]["result"] += [{**tasks[0]["annotations"][0]["result"][0], name: value}]
        (tmp_path / "tasks.json").write_text(json.dumps(tasks))
        said = refused(lambda: import_data(tmp_path / "tasks.json", tmp_path / "out", "labelstudio"))
        assert said or name == "type"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("text", ["<<: {a: b}", "a: !!bool maybe", "a: !!timestamp x", "a: " + "1:" * 300 + "1.5"])
def test_a_yaml_of_tags_that_mean_nothing_is_one_line(tmp_path: Path, text: str) -> None:
    source = yolo(tmp_path / "wheel")
    (source / "data.yaml").write_text(f"names: [hole, scratch]\n{text}\n")
    with pytest.raises(DataError, match=r"data\.yaml: cannot be read as YAML"):
        import_data(source / "data.yaml", tmp_path / "out", "yolo")


def test_no_cell_of_the_lineage_is_a_formula(tmp_path: Path) -> None:
    names = ("=HYPERLINK(1).png", "+1.png", "-1.png", "@SUM(1).png", "plain.png")
    file = coco(tmp_path / "p", [{"segmentation": [SQUARE]}], names=names)
    import_data(file, tmp_path / "out", "coco", product="=1+1")
    with (tmp_path / "out" / "imported.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert sorted(row[1] for row in rows[1:]) == sorted(name if name == "plain.png" else f"./{name}" for name in names)
    assert all((tmp_path / "out" / row[0]).samefile(tmp_path / "p" / row[1]) for row in rows[1:])  # the same places all the same


def test_yolo_labels_that_lie_elsewhere_are_not_taken_for_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = yolo(tmp_path / "wheel")
    for side in ("train", "val"):
        own = Path(shutil.copytree(source, tmp_path / side))
        for path in (own / "labels" / side).glob("*.txt"):
            path.rename(own / "labels" / path.name)
        with pytest.raises(DataError, match=rf"labels of a picture in .*{side} are looked for in .*; move them there"):
            import_data(own, tmp_path / "out")
    shutil.copytree(source, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "labels")
    with pytest.raises(DataError, match="nothing is marked on any of its 5 pictures"):
        import_data(tmp_path / "lost", tmp_path / "out")
    import_data(source, tmp_path / "out")
    assert "pictures have no label file: taken for normal" in caplog.text


def test_yolo_is_read_by_a_relative_path_and_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = yolo(tmp_path / "wheel")
    (source / "images").rename(tmp_path / "elsewhere")
    (source / "images").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for number, named in enumerate((Path("wheel"), Path("wheel/data.yaml"))):
        assert import_data(named, tmp_path / f"out{number}").counts["wheel"]["test/scratch"] == 2


def test_yolo_may_validate_on_what_it_learns_from(tmp_path: Path) -> None:
    source = yolo(tmp_path / "wheel", {"val": "images/train"})
    assert import_data(source, tmp_path / "out").counts == {"wheel": {"train/good": 1, "test/good": 1, "test/scratch": 1}}
