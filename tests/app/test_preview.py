"""What is drawn while it is learned shows what was learned by then, and changes nothing of it."""

import shutil
from pathlib import Path

import pytest
import torch

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.core.runs import Run

SMALL = """
train = {pool = {crops = 16}, loop = {steps = 20, log_every = 5, checkpointing_steps = 10}}
generate = {steps = 2}
"""


def _learned(made: Path, folder: Path, every: int | None) -> tuple[Run, torch.Tensor]:
    """A run, and the state of torch's random numbers after it."""
    (folder.parent / "preview.toml").write_text(SMALL)
    torch.manual_seed(5)
    run = ad.train(made / "data", folder, prior=str(made / "prior"), config=folder.parent / "preview.toml", preview_steps=every, quiet=True)
    return run, torch.random.get_rng_state()


def test_previews_change_nothing_and_survive_a_resume(made: Path, tmp_path: Path) -> None:
    plain, after = _learned(made, tmp_path / "plain", None)
    assert not plain.previews.exists()
    watched, seen = _learned(made, tmp_path / "watched", 8)
    assert watched.adapter.read_bytes() == plain.adapter.read_bytes() and torch.equal(after, seen)
    sheets = {path.name: path.read_bytes() for path in watched.previews.iterdir()}
    assert sorted(sheets) == ["step-000010.png", "step-000020.png"]  # the reports after 8 and 16, and the last one
    height, width = read_image(watched.previews / "step-000020.png").shape[:2]
    assert height > 2 * 128 and width > 5 * 128 and len(set(sheets.values())) == 2  # a line for each type, five pictures
    watched.adapter.unlink()  # as if it was killed after step 10, with a sheet of a step that is not kept
    shutil.rmtree(watched.checkpoints / "step-000020")
    (watched.previews / "step-000015.png").write_bytes(b"of what was lost")
    again, _ = _learned(made, tmp_path / "watched", 8)
    assert again.adapter.read_bytes() == plain.adapter.read_bytes()
    assert {path.name: path.read_bytes() for path in watched.previews.iterdir()} == sheets


def test_a_wrong_number_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preview_steps = 0: expected at least 1"):
        _learned(made, tmp_path / "run", 0)
