"""The demo data is sound, leak-free and the same every time."""

import hashlib
from pathlib import Path

from anomalydiffusion.data.check import check
from anomalydiffusion.data.demo import make_demo
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
