"""A run that has learned a little and has pairs, for tests that look at one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import anomalydiffusion as ad
from anomalydiffusion.app.main import main
from tests.conftest import build_prior_folder
from tests.flows.test_flow import _data

Spoken = Callable[..., tuple[int, str]]
# a gate that refuses nothing: four steps of training cannot make visible defects
SMALL = """
train = {pool = {crops = 16}, loop = {steps = 4}}
gate = {visible = 0.0, change = 0.0, strict = 0.0}
generate = {steps = 3, batch_size = 3}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, `prior`, `small.toml` and `run`; the run is not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "small.toml").write_text(SMALL)
    prior = build_prior_folder(folder / "prior")
    ad.train(_data(folder / "data"), folder / "run", prior=str(prior), config=folder / "small.toml", quiet=True)
    ad.generate(folder / "run", 2, quiet=True)
    return folder


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Spoken:
    """Type a command; its exit code, and what it says on stderr."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")  # else the command would start itself anew, with these settings

    def speak(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anomalydiffusion", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return speak
