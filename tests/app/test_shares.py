"""Several commands fill one run together, and end with the pairs that one alone would have made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError
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


def test_what_shards_cannot_do_is_said(run: Path, spoken: Spoken) -> None:
    for words, says in ((("--shard", "4/3"), "1 <= i <= n"), (("--shard", "1/2", "--no-resume"), "once, without --shard")):
        code, said = spoken("generate", run, "--num", 2, *words)
        assert code == 2 and says in said and said.count("\n") == 1
    with pytest.raises(ConfigError, match="leave --shard away"):
        ad.generate(run, like=run / "x.png", shard="1/2", quiet=True)
    assert not (run / "manifest.jsonl").exists()
