"""Layouts whose readers are large: what is written, file by file; `test_consumers.py` lets the readers themselves read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image
from scipy import ndimage
from skimage.measure import points_in_poly

from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.report.export import export
from anomalydiffusion.report.formats.anomalib import SIDE, texture

from .test_export import files


def lineage(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()]


def rename(run: Path, old: str, new: str) -> None:
    """Call a product by another name wherever the run's files name it; the pictures stay where they are."""
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite([record | {"product": new if record["product"] == old else record["product"]} for record in manifest.records()])
    split = json.loads((run / "split.json").read_text())
    for row in split["files"]:
        row["product"] = new if row["product"] == old else row["product"]
    (run / "split.json").write_text(json.dumps(split))


def keep_one_source(run: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite([record | {"normal_sha256": manifest.records()[0]["normal_sha256"]} for record in manifest.records()])


def test_anomalib_finds_the_same_names_in_every_folder_and_nothing_else(run: Path, tmp_path: Path) -> None:
    summary = export(run, tmp_path / "out", "anomalib")
    written = files(tmp_path / "out")
    expected = {"lineage.jsonl", "tile/folder.yaml", "wood/folder.yaml"}
    expected |= {f"{product}/normal/{index:06d}.png" for product, count in summary.normals.items() for index in range(count)}
    for (product, defect), count in summary.counts.items():
        expected |= {f"{product}/{part}/{defect}/{i:06d}.png" for part in ("abnormal", "mask", "textures") for i in range(count)}
    assert set(written) == expected
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    rows = [line for line in lineage(tmp_path / "out") if "record" in line]
    assert [row["record"] for row in rows] == accepted(Manifest(run / "manifest.jsonl").records())
    for row in rows:
        assert written[row["exported_image"]] == (run / row["record"]["image"]).read_bytes()
        mask = Image.open(tmp_path / "out" / row["exported_mask"])
        assert mask.mode == "L" and mask.size == Image.open(tmp_path / "out" / row["exported_image"]).size
        assert np.array_equal(np.asarray(mask), (np.asarray(Image.open(run / row["record"]["mask"])) > 0) * 255)
        assert min(Image.open(tmp_path / "out" / row["exported_texture"]).size) >= SIDE
    about = yaml.safe_load(written["tile/folder.yaml"])
    assert about["class_path"] == "anomalib.data.Folder"
    folders = {key: value for key, value in about["init_args"].items() if key.endswith("dir") or key == "root"}
    assert folders == {"root": ".", "normal_dir": "normal", "abnormal_dir": "abnormal", "mask_dir": "mask"}


def test_anomalib_without_normal_images_says_what_to_name(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rename(run, "tile", "größe")
    with caplog.at_level(logging.WARNING):
        export(run, tmp_path / "out", "anomalib", normals=False)
    assert "größe: anomalib reads no folder whose name is not plain ASCII" in caplog.text and "wood" not in caplog.text
    text = (tmp_path / "out/größe/folder.yaml").read_text(encoding="utf-8")
    assert "let normal_dir name a folder of yours" in text and yaml.safe_load(text)["init_args"]["name"] == "größe"
    assert not list((tmp_path / "out").rglob("normal"))


@pytest.mark.parametrize("corner", [(0, 0), (0, 90), (70, 0), (70, 90), (30, 40)])
@pytest.mark.parametrize("colour", [(), (3,)])
def test_a_texture_is_all_defect_wherever_it_lies(corner: tuple[int, int], colour: tuple[int, ...]) -> None:
    marks = np.zeros((80, 100), bool)
    y, x = corner
    marks[y : y + 10, x : x + 10] = np.eye(10, dtype=bool)
    marks[25, 20] = True  # a smaller part
    image = np.where(marks.reshape(80, 100, *(1 for _ in colour)), 200, 10) * np.ones(colour, int)
    piece = texture(image.astype(np.uint8), marks)
    assert piece.shape == (SIDE, SIDE, *colour) and (piece == 200).all()


def test_a_texture_keeps_the_defect_s_own_pixels_and_a_small_image_s_size() -> None:
    rng = np.random.default_rng(0)
    image, marks = rng.integers(0, 255, (50, 60, 3), dtype=np.uint8), np.zeros((50, 60), bool)
    marks[4:44, 10:50] = True
    assert np.array_equal(texture(image, marks), image[4:44, 10:50])
    assert np.array_equal(texture(image[:5, :7], np.ones((5, 7), bool)), image[:5, :7])


def test_an_image_folder_lists_every_picture_once_in_columns_of_one_type(run: Path, tmp_path: Path) -> None:
    rename(run, "wood", "test")  # a folder of this name would be taken for a split
    summary = export(run, tmp_path / "out", "imagefolder")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "lineage.jsonl", "train", "validation"}
    records = {row["exported_image"]: row.get("record") for row in lineage(tmp_path / "out") if "exported_image" in row}
    types, sides = set(), {}
    for split in ("train", "validation"):
        folder = tmp_path / "out" / split
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        listed = [row[name] for row in rows for name in ("file_name", "mask_file_name")]
        assert sorted([*listed, "metadata.jsonl"]) == list(files(folder))
        assert any(row["generated"] for row in rows)
        for row in rows:
            types.add(tuple((name, type(value)) for name, value in row.items()))
            sides.setdefault(row["normal_sha256"], set()).add(split)
            mask, record = np.asarray(Image.open(folder / row["mask_file_name"])), records[f"{split}/{row['file_name']}"]
            assert mask.shape == np.asarray(Image.open(folder / row["file_name"])).shape[:2]
            assert row["generated"] == (record is not None)
            if record is None:
                assert row["defect"] == "good" and row["seed"] == row["severity"] == -1 and not mask.any()
                continue
            same = ("product", "defect", "seed", "severity", "normal_sha256", "mask_origin", "prior_digest", "adapter_digest", "version")
            assert {name: row[name] for name in same} == {name: record[name] for name in same}
            assert np.array_equal(mask, (np.asarray(Image.open(run / record["mask"])) > 0) * 255)
    assert len(types) == 1, "a column of two types is refused"
    assert all(len(own) == 1 for own in sides.values()) and len(records) == sum([*summary.counts.values(), *summary.normals.values()])


def test_the_card_says_what_this_is_and_leaves_the_licence_to_its_owner(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "imagefolder")
    card = DatasetCard((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    assert "synthetic" in card.data.tags and card.data.license is None and card.data.task_categories == ["image-segmentation"]
    paths = {row["split"]: row["path"] for config in card.data.configs for row in config["data_files"]}
    assert paths == {"train": "train/**", "validation": "validation/**"}
    for words in ("not photographed but generated", "`tile/crack`: 4", "`wood/scratch`: 3", "`9f02c4d1aa37be60`", "## Licence"):
        assert words in card.text


def test_a_pair_of_another_tool_is_none_that_was_photographed(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    kept = ("product", "defect", "image", "mask", "image_sha256", "mask_sha256", "accepted")
    (run / "manifest.jsonl").write_text("".join(json.dumps({name: line[name] for name in kept}) + "\n" for line in lines))
    export(run, tmp_path / "out", "imagefolder", normals=False)
    rows = [json.loads(line) for path in (tmp_path / "out").rglob("metadata.jsonl") for line in path.read_text().splitlines()]
    assert rows and all(row["generated"] and row["seed"] == -1 for row in rows)


def test_pairs_of_one_source_are_all_for_training(run: Path, tmp_path: Path) -> None:
    keep_one_source(run)
    export(run, tmp_path / "out", "imagefolder", normals=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "lineage.jsonl", "train"}
    assert "validation" not in DatasetCard((tmp_path / "out/README.md").read_text()).content.split("---")[1]
    export(run, tmp_path / "out", "imagefolder")
    rows = [json.loads(line) for line in (tmp_path / "out/validation/metadata.jsonl").read_text().splitlines()]
    assert rows and not any(row["generated"] for row in rows)


def test_label_studio_s_polygons_fill_the_masks_and_its_pictures_are_there(run: Path, tmp_path: Path) -> None:
    rename(run, "tile", 'ti"le & <co> 5')
    export(run, tmp_path / "out", "labelstudio")
    view = ElementTree.fromstring((tmp_path / "out/labels.xml").read_text())
    labels = [each.get("value") for each in view.iter("Label")]
    assert labels == ['ti"le & <co> 5/crack', 'ti"le & <co> 5/spot', "wood/scratch"]
    (tag,) = view.iter("PolygonLabels")
    records = {row["exported_image"]: row.get("record") for row in lineage(tmp_path / "out") if "exported_image" in row}
    tasks, seen = json.loads((tmp_path / "out/tasks.json").read_text()), []
    for task in tasks:
        address, name = task["data"]["image"].split("?d=")
        image = Image.open(tmp_path / "out" / unquote(name))
        record = records.pop(unquote(name))
        assert address == "/data/local-files/" and "&" not in name and " " not in name
        if record is None:
            assert task["predictions"] == [] and task["data"]["defect"] == "good"
            continue
        assert all(task["data"][field] == record[field] for field in ("product", "defect", "seed", "normal_sha256"))
        ((prediction,), filled) = (task["predictions"], np.zeros((image.height, image.width), bool))
        y, x = np.mgrid[: image.height, : image.width] + 0.5
        for region in prediction["result"]:
            seen.append(region["id"])
            assert (region["from_name"], region["to_name"], region["type"]) == (tag.get("name"), tag.get("toName"), "polygonlabels")
            assert (region["original_width"], region["original_height"]) == image.size
            assert region["value"]["polygonlabels"] == [f"{record['product']}/{record['defect']}"]
            points = np.array(region["value"]["points"])
            assert len(points) >= 4 and points.min() >= 0 and points.max() <= 100
            corners = points / 100 * [image.width, image.height]
            assert np.allclose(corners, corners.round(), atol=1e-9)
            filled |= points_in_poly(np.stack([x.ravel(), y.ravel()], 1), corners).reshape(filled.shape)
        assert np.array_equal(filled, ndimage.binary_fill_holes(np.asarray(Image.open(run / record["mask"])) > 0))
    assert not records and len(seen) == len(set(seen))
