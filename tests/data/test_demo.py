"""The demo data is sound, leak-free and the same every time."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.data import demo
from anomalydiffusion.data.check import check
from anomalydiffusion.data.demo import DEFECTS, SIDE, draw, make_demo
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split


def _hashes(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.png")}


def test_demo_data(tmp_path: Path) -> None:
    data = make_demo(tmp_path / "a")
    report = check(data)
    assert report.ok and not [p for p in report.problems if p.level == "warning"]
    split = few_shot_split(read_folder(data))
    assert {sum(s.key == key for s in split.shots) for key in {s.key for s in split.shots}} == {4}
    assert _hashes(make_demo(tmp_path / "b")) == _hashes(data)
    assert _hashes(make_demo(tmp_path / "c", seed=1)) != _hashes(data)


def test_learned_and_tested_images_come_from_different_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_sided = np.repeat([[60.0] * 256 + [180.0] * 256], 512, axis=0)
    monkeypatch.setattr(demo, "_photograph", lambda product: two_sided)
    split = few_shot_split(read_folder(make_demo(tmp_path / "a")))
    for items, is_left in (((*split.shots, *split.normals), True), ((*split.held_out, *split.held_out_normals), False)):
        for item in items:
            image = read_image(item.path)
            assert (np.median(image) < 120) == is_left
            if "good" in item.path.parts:  # no defect drawn: every pixel tells its half
                assert ((image < 120) == is_left).all()


@pytest.mark.parametrize(("product", "defect"), [(product, defect) for product, kinds in DEFECTS.items() for defect in kinds])
def test_masks_are_exact(product: str, defect: str) -> None:
    for seed in range(8):
        grey = np.random.default_rng(seed).normal(110, 15, (SIDE, SIDE))
        drawn, mask = draw(np.random.default_rng(seed), grey, product, defect)
        assert mask.any() and (drawn[~mask] == grey[~mask]).all()
        assert (np.abs(drawn - grey)[mask] > 2).mean() > 0.9


def test_what_is_not_demo_data_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="holds something else"):
        make_demo(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    data = make_demo(tmp_path / "new")
    (data / "brick" / "train" / "good" / "stray.png").write_bytes(b"")
    assert not (make_demo(data) / "brick" / "train" / "good" / "stray.png").exists()
