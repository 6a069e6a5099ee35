"""What a manifest names is moved and deleted by verdicts, so it must lie in the run."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.app.curate import decide
from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.verdicts import suggest
from anomalydiffusion.core.errors import AnomalyDiffusionError, DataError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import digest_file, read_image
from anomalydiffusion.core.runs import Run
from anomalydiffusion.generation.shards import Slot, files_of


def _run(folder: Path, **other: object) -> Run:
    """A run of one pair, whose record says something else than it should."""
    run = Run.create(folder)
    paths = files_of(Slot(key=("tile", "crack"), index=0), 0, keep=True, refitted=False)
    for name in ("image", "mask"):
        (run.folder / paths[name]).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / paths[name]).write_bytes(name.encode())
    record = {
        "product": "tile", "defect": "crack", "seed": 0, "attempt": 0, "normal": "n.png", "normal_sha256": "", "mask_origin": "warped",
        "touched_box": [0, 0, 1, 1], "config_digest": "", "accepted": True, "reasons": [], **paths,
        "image_sha256": digest_file(run.folder / paths["image"]), "mask_sha256": digest_file(run.folder / paths["mask"]),
    }  # fmt: skip
    Manifest(run.manifest).append({**record, **other})
    return run


def test_a_verdict_moves_a_pair(tmp_path: Path) -> None:
    [record] = decide(_run(tmp_path / "run").folder, {"generated/tile/crack/images/000000.png": False})
    assert record["image"] == "generated/tile/crack/rejected/000000-0.png" and (tmp_path / "run" / record["image"]).read_bytes() == b"image"


@pytest.mark.parametrize("name", ["image", "requested_mask"])
def test_a_verdict_on_a_pair_without_its_files_is_one_line_and_changes_nothing(tmp_path: Path, name: str) -> None:
    run = _run(tmp_path / "run")
    [good] = Manifest(run.manifest).pairs()
    broken = {**good, "image": "generated/tile/crack/rejected/000000-1.png", "attempt": 1, "accepted": False}
    (run.folder / broken["image"]).parent.mkdir(parents=True)
    (run.folder / broken["image"]).write_bytes(b"image")
    broken[name] = f"generated/tile/crack/{name}s/000009.png"
    Manifest(run.manifest).append(broken)
    before, files = run.manifest.read_bytes(), sorted(path for path in run.folder.rglob("*") if path.name != ".lock")
    with pytest.raises(RunError, match=rf"{name}s/000009\.png: gone or changed since it was made; restore it"):
        decide(run.folder, {good["image"]: False, broken["image"]: True})
    assert run.manifest.read_bytes() == before and sorted(path for path in run.folder.rglob("*") if path.name != ".lock") == files


def test_a_damaged_pair_may_be_rejected(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    (run.folder / "generated/tile/crack/images/000000.png").write_bytes(b"scratched")
    [record] = decide(run.folder, {"generated/tile/crack/images/000000.png": False})
    assert (run.folder / record["image"]).read_bytes() == b"scratched"


@pytest.mark.parametrize(
    "other",
    [{"requested_mask": "../victim.png"}, {"mask": "../victim.png"}, {"product": ".."}, {"product": "../../.."}, {"defect": "../../../.."},
     {"image": "../a/000000.png"}, {"reasons": 5}, {"attempt": None}],
)  # fmt: skip
def test_a_record_that_leads_out_of_the_run_deletes_and_writes_nothing(tmp_path: Path, other: dict) -> None:
    (tmp_path / "victim.png").write_bytes(b"precious")
    run = _run(tmp_path / "run", **other)
    before = sorted(path for path in tmp_path.rglob("*") if path.name not in (".lock",))
    with pytest.raises(AnomalyDiffusionError, match="is not in the manifest"):
        decide(run.folder, {str(other.get("image", "generated/tile/crack/images/000000.png")): False})
    assert (tmp_path / "victim.png").read_bytes() == b"precious"
    assert sorted(path for path in tmp_path.rglob("*") if path.name not in (".lock",)) == before
    assert json.loads(run.manifest.read_text())["seed"] == 0


def test_pairs_are_judged_again_by_the_limits_of_the_normal_images_that_they_were_drawn_on(made: Path, tmp_path: Path) -> None:
    def real() -> dict[str, object]:
        return dict(json.loads((run / "gate.json").read_text())["real"])

    run, own = shutil.copytree(made / "run", tmp_path / "run"), tmp_path / "own"
    own.mkdir()
    for path in (made / "data" / "plate" / "train" / "good").iterdir():
        Image.fromarray(255 - read_image(path)).save(own / path.name)
    ad.curate(run, strict=100.0, quiet=True)  # limits that nothing falls below
    of_run = real()
    ad.generate(run, 2, defect=["hole"], normals=own, resume=False, quiet=True)
    of_own = real()
    assert of_own["plate/hole"] != of_run["plate/hole"]
    ad.curate(run, quiet=True)
    assert real() == {**of_run, "plate/hole": of_own["plate/hole"]}, "each type by its own"
    others = [key.split("/")[1] for key in of_run if key != "plate/hole"]
    ad.generate(run, 2, defect=others, normals=own, resume=False, quiet=True)
    before = (run / "gate.json").read_bytes()
    ad.curate(run, quiet=True)
    assert (run / "gate.json").read_bytes() == before and real() == of_own
    own.rename(tmp_path / "gone")
    with pytest.raises(RunError, match="gone or changed since it was made"):
        ad.curate(run, quiet=True)


def test_masks_that_were_given_and_are_gone_do_not_end_the_judging(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, masks = shutil.copytree(made / "run", tmp_path / "run"), tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((60, 70), (60, 90)))).save(masks / "0.png")
    ad.generate(run, 2, masks=masks, resume=False, quiet=True)
    (masks / "0.png").unlink()
    ad.curate(run, change=0.0, quiet=True)
    assert "cannot be used any more" in caplog.text and "no masks found" in caplog.text


def test_limits_cannot_be_suggested_without_pairs(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    (run / "manifest.jsonl").write_text("")
    with pytest.raises(RunError, match="no pairs to judge"):
        suggest(run)


def test_a_pair_is_shown_without_a_normal_image_that_is_another_by_now(made: Path, tmp_path: Path) -> None:
    run, other = shutil.copytree(made / "run", tmp_path / "run"), tmp_path / "other.png"
    record = Manifest(run / "manifest.jsonl").pairs()[0]
    normal = read_image(run / record["normal"])
    labels = [label for _, label in Desk(run).show(record)]
    for changed in (255 - normal, normal[:40, :40]):
        Image.fromarray(changed).save(other)
        fewer = [label for _, label in Desk(run).show({**record, "normal": str(other)})]
        assert "normal" in labels and fewer == [label for label in labels if label not in ("normal", labels[-1])]


def test_limits_follow_verdicts_by_hand(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    ad.generate(run, 3, quiet=True)
    with pytest.raises(DataError, match="0 kept and 0 rejected by hand; limits are drawn from 3 of each"):
        ad.curate(run, from_verdicts=True, quiet=True)
    lines = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    for row, line in enumerate(lines):
        line["measures"] |= {"change": 10.0 if row % 2 else 5.1, "variation": 4.0}
    (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    decide(run, {line["image"]: bool(row % 2) for row, line in enumerate(lines)})

    def visible() -> float:
        return float(tomllib.loads((run / "config.toml").read_text())["gate"]["visible"])

    ad.curate(run, from_verdicts=True, dry_run=True, quiet=True)
    assert visible() == 0.0
    ad.curate(run, from_verdicts=True, visible=0.5, quiet=True)
    assert visible() == 0.5, "what is given wins"
    before = [line["measures"] for line in map(json.loads, (run / "manifest.jsonl").read_text().splitlines())]
    assert all(each["change"] not in (5.1, 10.0) for each in before), "all are measured anew"
    fresh = shutil.copytree(made / "run", tmp_path / "fresh")
    ad.generate(fresh, 3, quiet=True)
    (fresh / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    decide(fresh, {line["image"]: bool(row % 2) for row, line in enumerate(lines)})
    ad.curate(fresh, from_verdicts=True, quiet=True)
    assert tomllib.loads((fresh / "config.toml").read_text())["gate"]["visible"] == 1.3, "5.1 / 4 no longer passes, 10 / 4 does"
    records = [json.loads(line) for line in (fresh / "manifest.jsonl").read_text().splitlines()]
    assert sorted(record["reasons"][0] for record in records) == ["kept by hand"] * 3 + ["rejected by hand"] * 3
