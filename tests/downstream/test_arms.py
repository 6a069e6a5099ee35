"""Each arm is trained on what its name says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.polygons import Outline
from anomalydiffusion.data.regions import Region
from anomalydiffusion.downstream.arms import arms, baseline_samples, pools
from anomalydiffusion.downstream.samples import Generated, gather


def test_arms_come_in_an_order_that_serves_the_last() -> None:
    assert arms() == ["real-only", "ours"]
    assert arms(controls=True) == ["real-only", "ours", "more-real", "garbage"]
    assert arms(baselines=True) == ["real-only", "perlin", "cutpaste", "poisson", "ours", "ours+best"]


def test_pools(split: Split, pairs: list[Generated]) -> None:
    (material,) = gather(split, pairs)
    fitted, extra = material.shots[:2], material.tests[:3]
    found = {arm: pools(arm, material, fitted, extra, seed=1, best="cutpaste") for arm in arms(baselines=True, controls=True)}
    sizes = {arm: [len(pool) for pool in own] for arm, own in found.items()}
    assert sizes == {"real-only": [2], "perlin": [2, 6], "cutpaste": [2, 6], "poisson": [2, 6], "ours": [2, 6],
                     "ours+best": [2, 6, 6], "more-real": [5], "garbage": [2, 6]}  # fmt: skip
    (image, mask), (wrong_image, wrong) = (found[arm][1][0].read() for arm in ("ours", "garbage"))
    assert np.array_equal(image, wrong_image) and mask is not None and wrong is not None
    assert wrong.pixels_HW.sum() == mask.pixels_HW.sum() and (wrong.pixels_HW & mask.pixels_HW).sum() <= 0.05 * mask.pixels_HW.sum()
    moved = [
        [sample.read()[1].pixels_HW for sample in pools("garbage", replace(material, generated=own), fitted, extra, seed=1)[1]]
        for own in (material.generated, [replace(pair, name=f"elsewhere/{pair.name}") for pair in material.generated])
    ]
    assert np.array_equal(*moved)  # wherever the run lies
    assert len({mask.tobytes() for mask in moved[0]}) == len(moved[0])


def test_baselines_are_made_of_training_images_and_a_seed(split: Split, pairs: list[Generated]) -> None:
    (material,) = gather(split, pairs)
    first, again, other = (baseline_samples("cutpaste", material, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0].read()[0], again[0].read()[0]) and not np.array_equal(first[0].read()[0], other[0].read()[0])
    assert [sample.defect for sample in first] == ["spot"] * 6
    region = Region(path=Path("roi.json"), outlines=(Outline.of([0, 0, 0.5, 0, 0.5, 1, 0, 1], "roi", shares=True),))
    ruled = baseline_samples("cutpaste", replace(material, regions={"": region}), seed=1)
    assert all(mask.box[2] <= image.shape[1] // 2 for image, mask in (sample.read() for sample in ruled))
    with pytest.raises(DataError, match="plate/spot: no shot of this type"):
        baseline_samples("cutpaste", replace(material, shots=[]), seed=1)


def test_a_pair_whose_mask_does_not_fit_is_named(split: Split, pairs: list[Generated], tmp_path: Path) -> None:
    Image.new("L", (9, 9), 255).save(tmp_path / "small.png")
    (material,) = gather(split, [replace(pairs[0], mask=tmp_path / "small.png")])
    with pytest.raises(DataError, match=r"small\.png"):
        material.generated[0].read()
