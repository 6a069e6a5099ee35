"""Where no object is found, defects may lie anywhere, and that is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.app.grounds import tell_grounds
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split

KEY = ("plate", "hole")


def _split(folder: Path, *, object_: bool) -> Split:
    random = np.random.default_rng(0)
    for number, place in enumerate(["train/good", "test/good", "test/hole", "ground_truth/hole"] * 4):
        path = folder / "plate" / place / f"{number // 4}{'_mask' * place.startswith('ground')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = random.integers(150, 180, (90, 110))
        if object_:
            picture[:20], picture[70:], picture[:, :20], picture[:, 90:] = 20, 20, 20, 20
        if place.startswith("ground"):
            picture = np.zeros((90, 110))
            picture[40:50, 40:60] = 255
        Image.fromarray(picture.astype(np.uint8)).save(path)
    return few_shot_split(read_folder(folder))


def test_a_surface_is_told_of_once_and_an_object_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell_grounds(_split(tmp_path / "surface", object_=False), [KEY, KEY], None, quiet=False)
    said = capsys.readouterr().err
    assert said.count("plate: no object stands out") == 1 and "draw plate/roi.png" in said
    split = _split(tmp_path / "object", object_=True)
    tell_grounds(split, [KEY], None, quiet=False)
    assert capsys.readouterr().err == ""
    tell_grounds(split, [KEY], tmp_path / "surface" / "plate" / "train" / "good", quiet=False)
    assert "plate: no object stands out" in capsys.readouterr().err, "of the user's own normal images"


def test_where_a_region_is_drawn_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = _split(tmp_path / "surface", object_=False)
    (tmp_path / "surface" / "plate" / "roi.json").write_text("[[[0, 0], [1, 0], [1, 1]]]")
    tell_grounds(split, [KEY], None, quiet=False)
    assert capsys.readouterr().err == ""
