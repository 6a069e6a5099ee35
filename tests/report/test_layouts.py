"""Other tools' layouts are read back: by COCO's own reader, and by a strict one of YOLO's lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.measure import points_in_poly

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.report.export import export
from anomalydiffusion.report.layouts import FORMATS, outline, run_lengths

EIGHT = np.ones((3, 3))
MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def _filled(corners: list[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose middle lies within a polygon."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return points_in_poly(np.stack([x.ravel(), y.ravel()], 1), np.array(corners)).reshape(shape)


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_a_filled_outline_is_the_part_without_its_holes(marks: np.ndarray) -> None:
    labels, count = ndimage.label(marks, EIGHT)
    for label in range(1, count + 1):
        part = labels == label
        corners = outline(part)
        assert np.array_equal(_filled(corners, marks.shape), ndimage.binary_fill_holes(part))
        turns = np.diff(np.array([*corners, corners[0]]), axis=0)
        assert len(corners) >= 4 and ((turns != 0).sum(1) == 1).all(), "from corner to corner it goes straight, across or down"


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_run_lengths_are_the_mask(marks: np.ndarray) -> None:
    lengths = run_lengths(marks)
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert np.array_equal(flat.reshape(marks.shape, order="F") > 0, marks) and all(length > 0 for length in lengths[1:])


def test_coco_s_own_reader_finds_every_pair_and_its_exact_mask(run: Path, tmp_path: Path) -> None:
    summary = export(run, tmp_path / "out", "coco")
    read = COCO(str(tmp_path / "out" / "annotations.json"))
    names = {row["id"]: row["name"] for row in read.loadCats(read.getCatIds())}
    assert sorted(names.values()) == ["tile/crack", "tile/spot", "wood/scratch"]
    lineage = [json.loads(line) for line in (tmp_path / "out/lineage.jsonl").read_text().splitlines()]
    kept = {line["exported_image"].removeprefix("images/"): line["record"] for line in lineage if "record" in line}
    assert list(kept.values()) == accepted(Manifest(run / "manifest.jsonl").records()) and len(kept) == sum(summary.counts.values())
    for image in read.loadImgs(read.getImgIds()):
        own = read.loadAnns(read.getAnnIds(imgIds=[image["id"]]))
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
        if "/good/" in image["file_name"]:
            assert not own
            continue
        record = kept[image["file_name"]]
        mask = np.asarray(Image.open(run / record["mask"])) > 0
        assert np.array_equal(sum(read.annToMask(each) for each in own) > 0, mask)
        assert sum(each["area"] for each in own) == mask.sum() and len(own) == ndimage.label(mask, EIGHT)[1]
        for each in own:
            assert names[each["category_id"]] == f"{record['product']}/{record['defect']}"
            x, y, width, height = each["bbox"]
            part = read.annToMask(each) > 0
            assert part[y : y + height, x : x + width].sum() == part.sum() == each["area"]
            assert part[y].any() and part[:, x].any() and part[y + height - 1].any() and part[:, x + width - 1].any()


def test_yolo_s_yaml_names_a_side_to_validate_on_even_where_nothing_is_left(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "yolo", product=["wood"], normals=False)
    about = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert (tmp_path / "out" / about["val"]).is_dir() and (tmp_path / "out" / about["train"]).is_dir()


def test_yolo_s_lines_are_strict_and_fill_the_mask(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "yolo")
    about = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert about == {"train": "images/train", "val": "images/val",
                     "names": {0: "tile/crack", 1: "tile/spot", 2: "wood/scratch"}}  # fmt: skip
    lineage = [json.loads(line) for line in (tmp_path / "out/lineage.jsonl").read_text().splitlines()]
    side_of: dict[str, set[str]] = {}
    for line in lineage:
        if "exported_image" not in line:
            continue
        image, label = tmp_path / "out" / line["exported_image"], tmp_path / "out" / line["exported_label"]
        assert label.relative_to(tmp_path / "out/labels").with_suffix("") == image.relative_to(tmp_path / "out/images").with_suffix("")
        rows = [row.split(" ") for row in label.read_text().splitlines()]
        if "record" not in line:
            assert rows == []
            continue
        record = line["record"]
        side_of.setdefault(record["normal_sha256"], set()).add(line["exported_image"].split("/")[1])
        width, height = Image.open(image).size
        marked = np.zeros((height, width), bool)
        for kind, *numbers in rows:
            assert about["names"][int(kind)] == f"{record['product']}/{record['defect']}"
            values = np.array(numbers, float)
            assert len(values) % 2 == 0 and len(values) >= 8 and values.min() >= 0 and values.max() <= 1
            marked |= _filled([(x * width, y * height) for x, y in values.reshape(-1, 2)], (height, width))
        assert np.array_equal(marked, ndimage.binary_fill_holes(np.asarray(Image.open(run / record["mask"])) > 0))
    assert all(len(sides) == 1 for sides in side_of.values()) and set.union(*side_of.values()) == {"train", "val"}


@pytest.mark.parametrize("layout", [name for name in FORMATS if name != "mvtec"])
def test_an_older_export_is_replaced_and_anything_else_is_not(run: Path, tmp_path: Path, layout: str) -> None:
    def files() -> set[str]:
        paths = (path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
        return {path.replace("/val/", "/train/") for path in paths}  # fewer sources may be divided otherwise

    export(run, tmp_path / "out", layout)
    first = files()
    export(run, tmp_path / "out", layout, defect=["crack"], product=["tile"])
    assert files() < first
    folder = max(files() - {"lineage.jsonl"}, key=lambda name: name.endswith(".png")).rpartition("/")[0]
    (tmp_path / "out" / folder / "mine.png").write_bytes(b"x")
    with pytest.raises(RunError, match=r"mine\.png: is not of an export and would be lost"):
        export(run, tmp_path / "out", layout)
    assert (tmp_path / "out" / folder / "mine.png").exists()
    (tmp_path / "out" / folder / "mine.png").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    export(run, tmp_path / "out", layout, defect=["crack"], product=["tile"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before, "the same twice"


@pytest.mark.parametrize("layout", ["coco", "mvtec"])
def test_several_defects_of_one_normal_image_share_a_picture(run: Path, tmp_path: Path, layout: str) -> None:
    """Every pair is in one picture, whole, under its own type; all else of the picture is the normal image."""
    out = tmp_path / "out"
    summary = export(run, out, layout, together=3)
    pictures: dict[str, list[dict]] = {}
    for line in (out / "lineage.jsonl").read_text().splitlines():
        if "record" in (each := json.loads(line)):
            pictures.setdefault(each["exported_image"], []).append(each)
    names = [each["record"]["image"] for lines in pictures.values() for each in lines]
    assert sorted(names) == sorted(record["image"] for record in accepted(Manifest(run / "manifest.jsonl").records()))
    assert summary.pictures == len(pictures) < len(names) and max(map(len, pictures.values())) <= 3
    several = {name: {each["record"]["defect"] for each in lines} for name, lines in pictures.items() if len(lines) > 1}
    assert any(kinds == {"crack", "spot"} for kinds in several.values())
    read = COCO(str(out / "annotations.json")) if layout == "coco" else None
    for name, lines in pictures.items():
        records = [each["record"] for each in lines]
        image, normal = (np.asarray(Image.open(path)) for path in (out / name, records[0]["normal"]))
        drawn = {record["image"]: np.asarray(Image.open(run / record["image"])) for record in records}
        marks = [np.asarray(Image.open(run / record["mask"])) > 0 for record in records]
        for record in records:
            changed = (drawn[record["image"]] != normal).any(2)
            assert np.array_equal(image[changed], drawn[record["image"]][changed])
        assert np.array_equal((image != normal).any(2), np.any([(each != normal).any(2) for each in drawn.values()], axis=0))
        assert np.sum(marks, axis=0).max() == 1
        kinds = {record["defect"] for record in records}
        assert name.split("/")[-2] == (kinds.pop() if len(kinds) == 1 else "combined")
        if read is None:
            assert np.array_equal(np.asarray(Image.open(out / lines[0]["exported_mask"])) > 0, np.any(marks, axis=0))
            continue
        (number,) = [each["id"] for each in read.dataset["images"] if name == f"images/{each['file_name']}"]
        for record, own in zip(records, marks, strict=True):
            kind = read.getCatIds(catNms=[f"{record['product']}/{record['defect']}"])
            found = [read.annToMask(each) > 0 for each in read.loadAnns(read.getAnnIds(imgIds=[number], catIds=kind))]
            same = [each for each, other in zip(marks, records, strict=True) if other["defect"] == record["defect"]]
            assert np.array_equal(np.any(found, axis=0), np.any(same, axis=0)) and own.any()


def test_pictures_of_several_defects_need_the_normal_images_as_they_were(run: Path, tmp_path: Path) -> None:
    normal = Path(accepted(Manifest(run / "manifest.jsonl").records())[0]["normal"])
    Image.new("RGB", (260, 200)).save(normal)
    with pytest.raises(RunError, match=rf"{normal.name}: changed since .* put the normal images back"):
        export(run, tmp_path / "out", "coco", normals=False, together=2)
    normal.unlink()
    with pytest.raises(RunError, match=rf"{normal.name}: cannot be read"):
        export(run, tmp_path / "out", "coco", normals=False, together=2)
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out", "coco", normals=False)


def test_pairs_whose_normal_image_is_not_recorded_stay_single(run: Path, tmp_path: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite({name: value for name, value in record.items() if name != "normal_sha256"} for record in manifest.records())
    with pytest.raises(RunError, match="is not recorded; export each pair by itself"):
        export(run, tmp_path / "out", "coco", normals=False, together=2)


def test_no_folder_of_a_yolo_set_is_called_as_its_pictures_are(run: Path, tmp_path: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite(record | {"defect": "images"} for record in manifest.records())
    export(run, tmp_path / "out", "yolo", normals=False)
    pictures = list((tmp_path / "out" / "images").rglob("*.png"))
    assert pictures and "tile/images" in (tmp_path / "out" / "data.yaml").read_text()
    for path in pictures:
        head, _, tail = path.as_posix().rpartition("/images/")  # as trainers find labels
        assert Path(f"{head}/labels/{tail}").with_suffix(".txt").is_file()
