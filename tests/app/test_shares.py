"""Several commands fill one run together, and end with the pairs that one alone would have made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import read_image
from tests.app.conftest import Spoken


def _kept(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A trained run of its own, without pairs."""
    copy = tmp_path / "run"
    shutil.copytree(made / "run", copy, ignore=shutil.ignore_patterns("generated", "manifest.jsonl"))
    return copy


def test_two_at_once_make_what_one_makes(made: Path, run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "whole")
    ad.generate(whole, 5, quiet=True)
    words = [sys.executable, "-m", "anomalydiffusion", "generate", run, "--num", "5", "--quiet", "--shard"]
    both = [subprocess.Popen([*words, f"{number}/2"], stderr=subprocess.PIPE, text=True) for number in (1, 2)]
    said = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert _kept(run) == _kept(whole) and len(_kept(run)) == 10
    for path in (whole / "generated").rglob("*.png"):
        assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert json.loads((run / "run.json").read_text())["status"] == "generated"


def test_one_shard_after_the_other_and_what_is_missing_is_made_by_a_command_without(run: Path) -> None:
    first = ad.generate(run, 4, shard="2/3", quiet=True)
    assert len(first) == 3 and len(_kept(run)) == 3
    assert ad.generate(run, 4, shard="2/3", quiet=True) == first
    ad.generate(run, 4, quiet=True)
    assert len(_kept(run)) == 8


def test_that_no_object_is_found_the_first_shard_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ad.generate(run, 2, shard="1/2")
    assert capsys.readouterr().err.count("no object stands out") == 1
    ad.generate(run, 2, shard="2/2")
    assert "no object stands out" not in capsys.readouterr().err


def test_workers_make_the_same_pairs_within_a_grey_level(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "whole")
    ad.generate(whole, 4, quiet=True)
    ad.generate(run, 4, workers=2, quiet=True)
    named = ("product", "defect", "seed", "attempt", "normal_sha256", "mask_sha256", "accepted", "image", "mask")
    one, two = ([{name: each[name] for name in named} for each in _kept(folder)] for folder in (whole, run))
    assert one == two
    for each in one:
        pictures = [read_image(folder / str(each["image"])).astype(int) for folder in (whole, run)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert (run / "gate.json").read_text() == (whole / "gate.json").read_text()
    before = _kept(run)
    with pytest.raises(ConfigError, match="steps at most"):
        ad.generate(run, 4, workers=2, steps=100_000, resume=False, quiet=True)
    assert _kept(run) == before


def test_what_shards_cannot_do_is_said(run: Path, spoken: Spoken) -> None:
    for words, says in ((("--shard", "4/3"), "1 <= i <= n"), (("--shard", "1/2", "--no-resume"), "once, without --shard"),
                        (("--shard", "1/2", "--workers", 2), "share out the work"), (("--workers", 0), "at least 1")):  # fmt: skip
        code, said = spoken("generate", run, "--num", 2, *words)
        assert code == 2 and says in said and said.count("\n") == 1
    with pytest.raises(ConfigError, match="leave --shard away"):
        ad.generate(run, like=run / "x.png", shard="1/2", quiet=True)
    assert not (run / "manifest.jsonl").exists()
