"""What was exported is read back file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.core.pixels import decode_png, digest_file
from anomalydiffusion.report.export import export
from anomalydiffusion.report.formats.common import _as_png as as_png
from anomalydiffusion.report.page import report


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change(run: Path, **values: object) -> None:
    """Change the manifest's first record."""
    manifest = Manifest(run / "manifest.jsonl")
    first, *others = manifest.records()
    manifest.rewrite([first | values, *others])


def test_a_picture_that_others_would_show_turned_is_written_as_it_is_read(tmp_path: Path) -> None:
    picture, exif = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 6
    for name, options in (("turned", {"exif": exif}), ("plain", {})):
        Image.fromarray(picture).save(tmp_path / f"{name}.png", **options)
        data = (tmp_path / f"{name}.png").read_bytes()
        written = as_png(tmp_path / f"{name}.png", data)
        assert (written == data) == (name == "plain") and b"eXIf" not in written and np.array_equal(decode_png(written), picture)
    assert as_png(tmp_path / "cut.png", data[:-40]) == data[:-40], "what cannot be read is handed on, as it was recorded"


def test_mvtec_layout_holds_exactly_the_accepted_pairs(run: Path, tmp_path: Path) -> None:
    summary = export(run, tmp_path / "out")
    assert summary.counts == {("tile", "crack"): 4, ("tile", "spot"): 2, ("wood", "scratch"): 3}
    assert summary.normals == {"tile": 3, "wood": 3}
    expected = {"lineage.jsonl"}
    for (product, defect), count in summary.counts.items():
        for index in range(count):
            expected |= {f"{product}/test/{defect}/{index:06d}.png", f"{product}/ground_truth/{defect}/{index:06d}_mask.png"}
    expected |= {f"{product}/train/good/{index:06d}.png" for product in ("tile", "wood") for index in range(3)}
    assert set(files(tmp_path / "out")) == expected
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert not list(tmp_path.glob(".part-*"))


def test_pairs_are_the_run_s_own_bytes_in_a_fixed_order_with_their_lineage(run: Path, tmp_path: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    kept = accepted(manifest.records())
    manifest.rewrite(reversed(manifest.records()))
    export(run, tmp_path / "out")
    lineage = [json.loads(line) for line in (tmp_path / "out/lineage.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lineage] == kept
    for line in lineage:
        image, mask = tmp_path / "out" / line["exported_image"], tmp_path / "out" / line["exported_mask"]
        assert digest_file(image) == line["record"]["image_sha256"]
        with Image.open(mask) as opened:
            pixels = np.asarray(opened)
            assert opened.mode == "L" and opened.size == Image.open(image).size
        assert set(np.unique(pixels)) == {0, 255}
        assert np.array_equal(pixels, np.asarray(Image.open(run / line["record"]["mask"])))


def test_normals_are_copies_and_held_out_images_stay_out(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    split = json.loads((run / "split.json").read_text())
    root, written = Path(split["root"]), files(tmp_path / "out")
    assert written["tile/train/good/000000.png"] == (root / "tile/train/good/0.png").read_bytes()
    jpeg = np.asarray(Image.open(root / "tile/train/good/1.jpg"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/tile/train/good/000001.png")), jpeg)
    held = {(root / row["path"]).read_bytes() for row in split["files"] if row["role"] != "normal"}
    assert held and not held & set(written.values())


@pytest.mark.parametrize("name", ["a\0b.png", 300 * "x"])
def test_a_normal_image_of_an_impossible_name_is_one_line(run: Path, tmp_path: Path, name: str) -> None:
    said = json.loads((run / "split.json").read_text())
    for row in said["files"]:
        if row["role"] == "normal":
            row["path"] = name
    (run / "split.json").write_text(json.dumps(said))
    with pytest.raises(RunError, match=r"cannot be read .*put the data set back"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_normals_the_data_set_need_not_be_there(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    assert export(run, tmp_path / "out", normals=False).normals == {}
    assert not list((tmp_path / "out").rglob("good"))
    with pytest.raises(RunError, match=r"tile/train/good/0\.png: cannot be read .*put the data set back.*--no-normals"):
        export(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_export_is_the_same_twice_and_replaces_the_older_one(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    first = files(tmp_path / "out")
    export(run, tmp_path / "out")
    assert files(tmp_path / "out") == first
    export(run, tmp_path / "out", product=["wood"], defect=["scratch"])
    assert {name.split("/")[0] for name in files(tmp_path / "out")} == {"wood", "lineage.jsonl"}


@pytest.mark.parametrize("strange", ["notes.txt", "tile/test/good/000000.png", "other/train/good/000000.png"])
def test_a_folder_with_anything_else_is_refused_untouched(run: Path, tmp_path: Path, strange: str) -> None:
    out = tmp_path / "out"
    (out / strange).parent.mkdir(parents=True)
    (out / strange).write_text("mine")
    with pytest.raises(RunError, match="not an export of ours"):
        export(run, out)
    shutil.rmtree(out)
    export(run, out)
    (out / strange).parent.mkdir(parents=True, exist_ok=True)
    (out / strange).write_text("mine")
    with pytest.raises(RunError, match="would be lost"):
        export(run, out)
    assert (out / strange).read_text() == "mine"


def test_an_empty_folder_is_taken_and_a_file_is_not(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        export(run, tmp_path / "file")


@pytest.mark.parametrize(("field", "word"), [("image", "images"), ("mask", "masks")])
def test_a_changed_or_missing_file_is_named(run: Path, tmp_path: Path, field: str, word: str) -> None:
    path = run / f"generated/tile/crack/{word}/000000.png"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RunError, match=rf"{word}/000000\.png: changed .*anomalydiffusion generate"):
        export(run, tmp_path / "out")
    path.unlink()
    with pytest.raises(RunError, match=rf"{word}/000000\.png: cannot be read"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".part-*"))


def test_a_mask_that_does_not_fit_is_named(run: Path, tmp_path: Path) -> None:
    path = run / "generated/tile/crack/masks/000000.png"
    cases = {"marks no pixel": np.zeros((200, 260), np.uint8), "8 x 9, but its image is 260 x 200": np.ones((9, 8), np.uint8)}
    for message, array in cases.items():
        Image.fromarray(array).save(path)
        change(run, mask_sha256=digest_file(path))
        with pytest.raises(RunError, match=message):
            export(run, tmp_path / "out")


def test_foreign_picture_kinds_are_written_as_eight_bit_png(run: Path, tmp_path: Path) -> None:
    image, mask = run / "generated/tile/crack/images/a.tiff", run / "generated/tile/crack/masks/a.png"
    Image.fromarray(np.full((20, 30), 65535, np.uint16)).save(image)
    Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(mask)  # 0 and 1
    change(run, image="generated/tile/crack/images/a.tiff", image_sha256=digest_file(image),
           mask="generated/tile/crack/masks/a.png", mask_sha256=digest_file(mask))  # fmt: skip
    export(run, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/lineage.jsonl").read_text().splitlines()]
    [line] = [line for line in lines if line["record"]["image"].endswith(".tiff")]
    assert np.asarray(Image.open(tmp_path / "out" / line["exported_image"])).tolist() == np.full((20, 30, 3), 255).tolist()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / line["exported_mask"])), np.eye(20, 30, dtype=np.uint8) * 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"product": "../evil"}, "cannot be a folder's name"), ({"defect": ".."}, "cannot be a folder's name"),
     ({"image": "../../x/000000.png"}, "may lie outside"), ({"mask": "/etc/hostname"}, "may lie outside"), ({"image": ["a"]}, "lacks"),
     ({"defect": "good"}, "no defect"), ({"image_sha256": None}, "lacks 'image_sha256'")],
)  # fmt: skip
def test_a_record_that_would_mislead_is_refused(run: Path, tmp_path: Path, values: dict[str, object], message: str) -> None:
    change(run, **values)
    with pytest.raises(RunError, match=message):
        export(run, tmp_path / "out")


def test_wrong_wishes_say_what_there_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'zip' is not known; known: mvtec, anomalib, coco, yolo, imagefolder, labelstudio"):
        export(run, tmp_path / "out", "zip")
    with pytest.raises(RunError, match="no accepted pair of product car; there are: tile, wood"):
        export(run, tmp_path / "out", product=["tile", "car"])
    with pytest.raises(RunError, match=r"no accepted pairs to export; .*generate"):
        export(run, tmp_path / "out", product=["wood"], defect=["crack"])
    (run / "split.json").write_text("{}")
    with pytest.raises(RunError, match=r"split\.json: cannot be read .*--no-normals"):
        export(run, tmp_path / "out")
    (run / "split.json").unlink()
    with pytest.raises(RunError, match=r"split\.json: no such file; .*--no-normals"):
        export(run, tmp_path / "out")
    Manifest(run / "manifest.jsonl").rewrite([])
    with pytest.raises(RunError, match="no accepted pairs to export; make some with: anomalydiffusion generate"):
        export(run, tmp_path / "out")
    (run / "manifest.jsonl").unlink()
    with pytest.raises(RunError, match=r"manifest\.jsonl: no such file"):
        export(run, tmp_path / "out")


def test_the_last_line_about_an_image_counts(run: Path, tmp_path: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    manifest.append(manifest.records()[0] | {"accepted": False})
    assert export(run, tmp_path / "out").counts["tile", "crack"] == 3


def test_damaged_lines_leave_the_rest(run: Path, tmp_path: Path) -> None:
    whole = export(run, tmp_path / "whole").counts
    lines = (run / "manifest.jsonl").read_bytes()
    (run / "manifest.jsonl").write_bytes(b'{"product": "ti\n[1]\n' + lines + b'"x"\n{"accepted": false, "image": ["a"]}\n\xff\xfe')
    assert export(run, tmp_path / "out").counts == whole


def test_pairs_that_are_being_judged_are_not_left_out_in_silence(run: Path, tmp_path: Path) -> None:
    lines = (run / "manifest.jsonl").read_text().splitlines()
    parked = {**json.loads(lines[0]), "accepted": False, "reasons": ["is being judged anew"]}
    (run / "manifest.jsonl").write_text("\n".join([json.dumps(parked), *lines[1:]]) + "\n")
    with pytest.raises(RunError, match=r"were being judged when that was cut short; run 'anomalydiffusion curate"):
        export(run, tmp_path / "out", "coco")
    with pytest.raises(RunError, match="were being judged"):
        report(run)
    assert not (tmp_path / "out").exists()
