"""Several processes train what one process trains, and one of them writes the run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import anomalydiffusion as ad
from anomalydiffusion.app.launched import Launched
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run

CONFIG = """
report_to = "none"
train = {batch_size = 2, pool = {crops = 16}, loop = {steps = 4, gradient_accumulation_steps = 2, log_every = 1, mixed_precision = "no"}}
[masks]
source = "learned"
train = {batch_size = 2, pool = {crops = 8}, loop = {steps = 2, gradient_accumulation_steps = 2, log_every = 1, mixed_precision = "no"}}
"""


def _launched(*words: object) -> str:
    """Run a command by two processes; what they say on stderr."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "anomalydiffusion"]
    done = subprocess.run([sys.executable, *launcher, *map(str, words)], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _same(alone: Run, both: Path) -> None:
    """Whether two processes learned what one did."""
    for learned in (alone.adapter, alone.mask_adapter):
        one, two = load_file(learned), load_file(both / learned.relative_to(alone.folder))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            far = (two[name] - tensor).abs()
            assert far.max() <= 1e-4, name  # Adam makes whole steps of gradients that are nothing but the order of a sum
            assert (far > 1e-5).float().mean() < 0.02, name


def test_two_processes_train_the_same_adapter_and_one_run(made: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(CONFIG)
    given = {"prior": str(made / "prior"), "config": tmp_path / "two.toml", "quiet": True}
    alone, both = ad.train(made / "data", tmp_path / "alone", **given), tmp_path / "both"
    said = _launched("train", made / "data", "--output", both, "--prior", made / "prior", "--config", tmp_path / "two.toml")
    assert said.count("shots: plate") == 1  # only one of them speaks
    _same(alone, both)
    assert json.loads((both / "run.json").read_text())["status"] == "trained"
    said = [[json.loads(line)["loss"] for line in (run / "train_log.jsonl").read_text().splitlines()] for run in (alone.folder, both)]
    assert len(said[1]) == 4 and said[1] == pytest.approx(said[0], abs=1e-4)


def test_two_processes_extend_what_an_earlier_run_knows_of_masks_too(made: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(CONFIG)
    given = {"prior": str(made / "prior"), "config": tmp_path / "two.toml", "quiet": True}
    first = ad.train(made / "data", tmp_path / "first", defect=["hole"], **given)
    alone, both = ad.train(made / "data", tmp_path / "alone", extend=first.folder, quiet=True), tmp_path / "both"
    _launched("train", made / "data", "--output", both, "--extend", first.folder)
    _same(alone, both)
    assert set(Adapter.vectors_of(both / "adapter" / "masks.safetensors")) == {("plate", "hole"), ("plate", "stain")}


def test_a_prior_is_adapted_by_one_process(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--adapt-prior: is for one process"):
        ad.train(made / "data", tmp_path / "run", prior=str(made / "prior"), adapt_prior=True, quiet=True)
    assert not (tmp_path / "run").exists()


def test_launched_processes_draw_a_part_each(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = (shutil.copytree(made / "run", tmp_path / name) for name in ("alone", "together"))
    ad.generate(alone, 4, quiet=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in ({"workers": 2}, {"shard": "1/2"}, {"ray": "local"}, {"like": "x.png"}):
        with pytest.raises(ConfigError, match="are not for several processes that a launcher began"):
            ad.generate(together, 4, quiet=True, **words)  # type: ignore[arg-type]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        before = len(Manifest(together / "manifest.jsonl").pairs())
        ad.generate(together, 4, quiet=True)
        assert len(Manifest(together / "manifest.jsonl").pairs()) - before == 2
    drawn, wanted = ([(record["image"], record["mask_sha256"]) for record in Manifest(run / "manifest.jsonl").pairs()]
                     for run in (together, alone))  # fmt: skip
    assert drawn == wanted


def test_each_has_the_card_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Launched.here().own("cuda") == "cuda"
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert [Launched.here().own(device) for device in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]
    assert Launched.here().shard == "6/8"
