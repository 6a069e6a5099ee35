"""Exports of pairs, of the real defects behind them, and of both: each is told from the other, and held-out ones stay out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.pixels import digest_file
from anomalydiffusion.report.export import export
from anomalydiffusion.report.formats.common import Goods, validation
from anomalydiffusion.report.layouts import FORMATS

from .conftest import SIZES, defect_mask, save, texture
from .test_export import files


@pytest.fixture
def learned(run: Path) -> Path:
    """The run, with four real cracks in tiles; the first two show one part, which is also on a normal image."""
    path, tile = run / "split.json", run.parent / "data" / "tile"
    split = json.loads(path.read_text())
    rows = [row for row in split["files"] if row["role"] != "shot"]
    for index in range(4):
        image, mask = texture("tile", 70 + index).copy(), defect_mask("crack", SIZES["tile"], 90 + index)
        image[mask] //= 3
        sha256 = save(tile / f"test/crack/{index}.png", image)
        masked = save(tile / f"ground_truth/crack/{index}_mask.png", mask)
        rows.append({
            "path": f"tile/test/crack/{index}.png", "sha256": sha256, "role": "shot", "product": "tile", "defect": "crack",
            "mask": f"tile/ground_truth/crack/{index}_mask.png", "mask_sha256": masked, "group": f"part {max(index, 1)}",
        })  # fmt: skip
    next(row for row in rows if row["path"] == "tile/train/good/1.jpg")["group"] = "part 1"
    path.write_text(json.dumps({**split, "files": rows}))
    return run


def _shots(run: Path) -> dict[str, np.ndarray]:
    """Each real defect's mask by its image's SHA-256."""
    split = json.loads((run / "split.json").read_text())
    root = Path(split["root"])
    return {row["sha256"]: np.asarray(Image.open(root / row["mask"])) > 0 for row in split["files"] if row["role"] == "shot"}


def _lineage(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "lineage.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", FORMATS)
def test_each_layout_takes_both_and_tells_them_apart(learned: Path, tmp_path: Path, layout: str) -> None:
    alone, mixed, real = (export(learned, tmp_path / name, layout, contents=name) for name in ("synthetic", "mixed", "real"))
    assert mixed.counts == alone.counts and mixed.real == real.real == {("tile", "crack"): 4}
    assert alone.real == real.counts == {} and mixed.pictures == alone.pictures + real.pictures == 13
    for name, shots, pairs in (("synthetic", 0, 9), ("mixed", 4, 9), ("real", 4, 0)):
        own = _lineage(tmp_path / name)
        assert (sum("real" in row for row in own), sum("record" in row for row in own)) == (shots, pairs)
        for row in (row for row in own if "real" in row):
            assert digest_file(tmp_path / name / row["exported_image"]) == row["real"]["image_sha256"] in _shots(learned)
    split = json.loads((learned / "split.json").read_text())
    held = {(Path(split["root"]) / row["path"]).read_bytes() for row in split["files"] if row["role"].startswith("held_out")}
    assert len(held) == 4 and not held & set(files(tmp_path / "mixed").values())
    first = files(tmp_path / "mixed")
    export(learned, tmp_path / "mixed", layout, contents="mixed")
    assert files(tmp_path / "mixed") == first, "the same twice, in place of the first"


@pytest.mark.parametrize(("layout", "held_out"), [("yolo", "/val/"), ("imagefolder", "validation/")])
def test_what_shows_one_part_is_on_one_side(learned: Path, tmp_path: Path, layout: str, held_out: str) -> None:
    split = json.loads((learned / "split.json").read_text())
    part = {row["sha256"]: f"{row['product']}/{row['group']}" for row in split["files"]}
    for contents in ("mixed", "real"):
        export(learned, tmp_path / contents, layout, contents=contents)
        sides: dict[str, set[bool]] = {}
        for row in _lineage(tmp_path / contents):
            if name := row.get("exported_image"):
                sha256 = row["record"]["normal_sha256"] if "record" in row else digest_file(tmp_path / contents / name)
                if sha256 in part:  # a normal JPEG is a PNG by now
                    sides.setdefault(part[sha256], set()).add(held_out in name)
        assert all(len(own) == 1 for own in sides.values()) and {True} in sides.values() and {False} in sides.values()
        reals = [held_out in row["exported_image"] for row in _lineage(tmp_path / contents) if "real" in row]
        assert len(reals) == 4 and any(reals) is (contents == "real"), "pairs were begun from them"
        jpeg = np.asarray(Image.open(learned.parent / "data/tile/train/good/1.jpg"))
        rows = _lineage(tmp_path / contents)
        normals = [row["exported_image"] for row in rows if "exported_image" in row and not {"record", "real"} & set(row)]
        (name,) = [each for each in normals if np.array_equal(np.asarray(Image.open(tmp_path / contents / each)), jpeg)]
        assert sides["tile/part 1"] == {held_out in name}


@pytest.mark.parametrize("number", range(20))
def test_a_part_with_a_real_defect_is_trained_on_where_there_are_pairs(number: int) -> None:
    parts = {f"{letter}{number}": f"part {letter if letter != 'n' else 'a'} {number}" for letter in "abcdn"}  # n: a normal image
    pairs = [({"normal_sha256": f"{letter}{number}"},) for letter in "bcd"]
    shots = [({"image_sha256": f"{letter}{number}", "role": "shot"},) for letter in "ab"]
    goods = Goods(files={"tile": [(Path("n.png"), f"n{number}")]}, parts=parts)
    held = validation([*pairs, *shots], goods)
    assert len(held) == 1 and held < {f"part c {number}", f"part d {number}"}
    assert len(validation(shots, goods)) == 1


def test_coco_s_own_reader_finds_the_real_masks(learned: Path, tmp_path: Path) -> None:
    export(learned, tmp_path / "out", "coco", contents="real")
    read = COCO(str(tmp_path / "out" / "annotations.json"))
    masks = _shots(learned)
    for row in (row for row in _lineage(tmp_path / "out") if "real" in row):
        (number,) = [each["id"] for each in read.dataset["images"] if f"images/{each['file_name']}" == row["exported_image"]]
        found = sum(read.annToMask(each) for each in read.loadAnns(read.getAnnIds(imgIds=[number])))
        assert np.array_equal(found > 0, masks.pop(row["real"]["image_sha256"]))
    assert not masks


def test_datasets_reads_both_and_the_card_says_what_they_are(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from datasets import load_dataset

    export(learned, tmp_path / "out", "imagefolder", contents="mixed")
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = [row for part in found.values() for row in part]
    real = [row for row in rows if not row["generated"] and row["defect"] != "good"]
    assert len(real) == 4 and all(np.asarray(row["mask"]).max() == 255 and row["seed"] == -1 for row in real)
    card = (tmp_path / "out/README.md").read_text()
    assert "some photographed, most generated" in card and "`tile/crack`: 8" in card and "## How it was made" in card
    export(learned, tmp_path / "real", "imagefolder", contents="real")
    card = (tmp_path / "real/README.md").read_text()
    assert "Nothing of it was generated" in card and "synthetic" not in card and "How it was made" not in card


def test_label_studio_has_real_labels_as_answers_which_are_read_back(learned: Path, tmp_path: Path) -> None:
    export(learned, tmp_path / "out", "labelstudio", contents="mixed")
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    assert sum("annotations" in task for task in tasks) == 4 and sum(bool(task["predictions"]) for task in tasks) == 9
    (tmp_path / "answered.json").write_text(json.dumps([task for task in tasks if "annotations" in task]))
    ad.import_data(tmp_path / "answered.json", tmp_path / "back", "labelstudio", images=tmp_path / "out")
    masks = [np.asarray(Image.open(path)) > 0 for path in sorted((tmp_path / "back").rglob("*_mask.png"))]
    assert sorted(int(mask.sum()) for mask in masks) == sorted(int(mask.sum()) for mask in _shots(learned).values())


@pytest.mark.slow
def test_anomalib_reads_the_folders_of_mvtec(learned: Path, tmp_path: Path) -> None:
    from anomalib.data import MVTecAD

    summary = export(learned, tmp_path / "out", "mvtec", contents="mixed")
    module = MVTecAD(root=tmp_path / "out", category="tile", train_batch_size=2, eval_batch_size=2, num_workers=0)
    module.setup()
    defects = sum(count for own in (summary.counts, summary.real) for (product, _), count in own.items() if product == "tile")
    assert len(module.train_data) == summary.normals["tile"] and len(module.test_data) == defects
    masks = {str(tmp_path / "out" / row["exported_image"]): tmp_path / "out" / row["exported_mask"] for row in _lineage(tmp_path / "out")}
    for item in module.test_data:
        assert np.array_equal(item.gt_mask.numpy().astype(bool), np.asarray(Image.open(masks[item.image_path])) > 0)


def test_wrong_wishes_say_what_there_is(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contents 'all': known are synthetic, mixed, real"):
        export(learned, tmp_path / "out", contents="all")
    with pytest.raises(RunError, match="no real defects of these names were learned from; there are: tile/crack"):
        export(learned, tmp_path / "out", contents="real", defect=["spot"])
    with pytest.raises(ConfigError, match="leave out together and contents"):
        ad.export(learned, tmp_path / "out", "embeddings", contents="real")
    export(learned, tmp_path / "yolo", "yolo", contents="real", normals=False)
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"] == {0: "tile/crack"}
    shot = learned.parent / "data/tile/test/crack/2.png"
    shot.write_bytes(shot.read_bytes() + b"x")
    with pytest.raises(RunError, match=r"2\.png: changed since .*put the data set back"):
        export(learned, tmp_path / "out", contents="real")
    split = json.loads((learned / "split.json").read_text())
    split["files"][-1]["mask"] = "../../secret.png"
    (learned / "split.json").write_text(json.dumps(split))
    with pytest.raises(RunError, match="may lie outside"):
        export(learned, tmp_path / "out", contents="mixed")
    assert not (tmp_path / "out").exists()
