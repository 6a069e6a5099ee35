"""Every example script does what its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def _typed(name: str, *words: object, cwd: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_severities_stand_side_by_side(made: Path, tmp_path: Path) -> None:
    normal = next((made / "data" / "plate" / "train" / "good").iterdir())
    _typed("severities.py", made / "run", normal, "sheet.png", "--defect", "hole", cwd=tmp_path)
    with Image.open(normal) as one, Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * one.width, one.height)


def test_a_segmenter_learns_from_the_pairs(made: Path, tmp_path: Path) -> None:
    said = _typed("train_segmenter.py", made / "run", "net.pt", "--steps", 2, cwd=tmp_path)
    assert "step 2: loss" in said and (tmp_path / "net.pt").stat().st_size > 10**6


@pytest.mark.slow
def test_anomalib_takes_its_thresholds_from_them(made: Path, tmp_path: Path) -> None:
    said = _typed("anomalib_thresholds.py", made / "run", made / "data", "plate", "--no-weights", cwd=tmp_path)
    assert "pixel_AUROC" in said


def test_each_example_is_run_here() -> None:
    own = Path(__file__).read_text()
    assert all(f'"{path.name}"' in own for path in EXAMPLES.glob("*.py"))
