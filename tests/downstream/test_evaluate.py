"""The comparison trains, tests on held-out images only, and refuses leaks."""

import numpy as np
import pytest
import torch

from anomalydiffusion.core.errors import SplitError
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.core.types import Mask, Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from anomalydiffusion.downstream.detectors import image_score, predict, segmenter
from anomalydiffusion.downstream.evaluate import compare, train_segmenter, verdict


def _plate(random: np.random.Generator, defect: bool) -> tuple[np.ndarray, np.ndarray]:
    image = np.repeat(random.normal(120, 8, (128, 140, 1)), 3, axis=2)
    mask = np.zeros((128, 140), bool)
    if defect:
        y, x = random.integers(10, 100, 2)
        mask[y : y + 18, x : x + 18] = True
        image[mask] += 90
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    root = tmp_path_factory.mktemp("plates")
    random = np.random.default_rng(0)
    for part, count in (("train/good", 4), ("test/good", 2), ("test/spot", 6)):
        for index in range(count):
            image, mask = _plate(random, part == "test/spot")
            write_atomic(root / "plate" / part / f"{index}.png", encode_png(image))
            if mask.any():
                write_atomic(root / "plate" / "ground_truth" / "spot" / f"{index}_mask.png", encode_png(mask))
    return few_shot_split(read_folder(root))


def test_both_arms_are_trained_alike_and_reported(split: Split) -> None:
    random = np.random.default_rng(1)
    pairs = [(("plate", "spot"), *_plate(random, True)) for _ in range(3)]
    heard = []
    scores = compare(split, pairs, steps=3, seeds=(0,), batch_size=4, progress=lambda done, total, what: heard.append((done, total)))
    assert set(scores["arms"]) == {"real-only", "ours"} and scores["split_digest"] == split.digest
    assert heard[-1] == (6, 6)
    assert 0 <= scores["arms"]["ours"]["pixel_ap"]["mean"] <= 1 and "not a proof" in scores["verdict"]


def test_leaks_bite(split: Split) -> None:
    image, mask = _plate(np.random.default_rng(2), True)
    held = split.held_out[0]
    with pytest.raises(SplitError, match="held out"):
        compare(split, [(held.key, image, mask)], steps=1, lineage=[split.sha256[split.held_out_normals[0].path]])
    copied = read_image(held.path)
    with pytest.raises(SplitError, match="held out"):
        compare(split, [(held.key, copied, np.ones(copied.shape[:2], bool))], steps=1)


def test_verdicts() -> None:
    assert verdict([0.1, 0.1, 0.11], [0.5, 0.52, 0.51]).startswith("use it")
    assert verdict([0.5, 0.52, 0.51], [0.1, 0.1, 0.11]).startswith("do not use it")
    assert verdict([0.1, 0.5, 0.3], [0.2, 0.4, 0.3]).startswith("no measurable difference")


@pytest.mark.slow
def test_the_segmenter_learns_bright_squares() -> None:
    random = np.random.default_rng(3)
    marked = [(i, Mask(pixels_HW=m, origin="real")) for i, m in (_plate(random, True) for _ in range(4))]
    model = train_segmenter([marked], [_plate(random, False)[0]], steps=50, seed=0, batch_size=8)
    image, mask = _plate(np.random.default_rng(9), True)
    found = predict(model, image)
    assert found.shape == mask.shape and found[mask].mean() > found[~mask].mean() + 0.3
    assert image_score(found) > image_score(predict(model, _plate(np.random.default_rng(8), False)[0]))


def test_prediction_of_one_tile_is_the_networks_own() -> None:
    model = segmenter(0).eval()
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = torch.sigmoid(model(x))[0, 0].numpy()
    np.testing.assert_allclose(predict(model, image), expected, atol=1e-5)
    assert predict(model, image[:40, :300]).shape == (40, 128)
