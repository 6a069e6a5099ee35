"""What a manifest names is moved and deleted by verdicts, so it must lie in the run."""

import json
from pathlib import Path

import pytest

from anomalydiffusion.app.curate import decide
from anomalydiffusion.core.errors import AnomalyDiffusionError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import digest_file
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
