"""What a user draws as legal is kept to: by masks, pairs and pipelines; and what was drawn under other regions is not mixed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.core.errors import DataError, RunError

TOP = [[[0, 0], [1, 0], [1, 0.4], [0, 0.4]]]


@pytest.fixture
def ruled(made: Path, tmp_path: Path) -> Path:
    """A run of its own whose product has a region for one of its two types."""
    run, data = shutil.copytree(made / "run", tmp_path / "run"), shutil.copytree(made / "data", tmp_path / "data")
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "root": str(data)}))
    (data / "plate" / "roi").mkdir()
    (data / "plate" / "roi" / "hole.json").write_text(json.dumps(TOP))
    return run


def _rows(path: Path) -> np.ndarray:
    return np.flatnonzero(np.asarray(Image.open(path)).any(1))


def test_masks_and_pairs_keep_to_the_region_of_their_type(ruled: Path) -> None:
    ad.masks(ruled, num=12, quiet=True)
    height = 150
    lowest = {defect: max(_rows(path).max() for path in (ruled / "masks" / "plate" / defect).glob("*.png")) for defect in ("hole", "stain")}
    assert lowest["hole"] < 0.4 * height < lowest["stain"]
    assert ad.check(ruled.parent / "data").ok
    with pytest.raises(RunError, match="made with other settings"):
        ad.generate(ruled, 3, quiet=True)
    ad.generate(ruled, 3, resume=False, quiet=True)
    records = [json.loads(line) for line in (ruled / "manifest.jsonl").read_text().splitlines()]
    assert all(_rows(ruled / each["mask"]).max() < 0.4 * height for each in records if each["defect"] == "hole")
    like = ruled / next(each["image"] for each in records if each["defect"] == "hole")
    (again,) = ad.generate(ruled, like=like, output=ruled / "again.png", quiet=True)
    assert again["identical"]
    (ruled.parent / "data" / "plate" / "roi" / "hole.json").write_text(json.dumps([[[0, 0], [1, 0], [1, 1]]]))
    with pytest.raises(RunError, match="its drawn regions differ"):
        ad.generate(ruled, like=like, quiet=True)


def test_a_pipeline_keeps_to_it_too_and_so_does_a_saved_one(ruled: Path, tmp_path: Path) -> None:
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(ruled)
    pipe.save_pretrained(tmp_path / "saved")
    normal = next((ruled.parent / "data" / "plate" / "train" / "good").iterdir())
    for each in (pipe, ad.AnomalyDiffusionPipeline.from_pretrained(tmp_path / "saved")):
        each.set_progress_bar_config(disable=True)
        drawn = [np.asarray(each(normal, defect="hole", seed=seed).mask) for seed in range(4)]
        assert all(np.flatnonzero(mask.any(1)).max() < 0.4 * len(mask) for mask in drawn)


def test_a_region_that_fits_no_image_stops_and_says_why(ruled: Path) -> None:
    painted = ruled.parent / "data" / "plate" / "roi" / "stain.png"
    Image.new("L", (40, 30), 255).save(painted)
    assert any(p.file == "plate/roi/stain.png" and p.level == "error" for p in ad.check(ruled.parent / "data").problems)
    with pytest.raises(DataError, match=r"stain.png: 40 x 30 pixels, but an image has 170 x 150"):
        ad.masks(ruled, defect=["stain"], quiet=True)
    ad.masks(ruled, defect=["hole"], quiet=True)
