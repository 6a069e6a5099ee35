"""What earlier versions left on the disk is read, each format of it from a fixture; what later ones leave is refused in words."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from anomalydiffusion.app.dataset import DefectDataset
from anomalydiffusion.app.export import export
from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.pipeline import FORMAT as PIPELINE
from anomalydiffusion.app.pipeline import INDEX, AnomalyDiffusionPipeline
from anomalydiffusion.app.source import shots_of
from anomalydiffusion.conditioning.adapter import FORMAT, OLDEST, Adapter
from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.core.runs import Run
from anomalydiffusion.report.export import FORMATS
from anomalydiffusion.report.page import report
from tests.fixtures.write import ADAPTER, ANSWER, HERE, KEYS, NAME, answer, build_known_prior, load_known_prior

KEPT = sorted(path.name for path in HERE.glob("format-*"))


@pytest.fixture(scope="module")
def known_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_known_prior(tmp_path_factory.mktemp("known"))


def _unpacked(name: str, folder: Path) -> Path:
    """A fixture as it lay on the disk once: its run; the data set beside it."""
    here = shutil.copytree(HERE / name, folder / "kept")
    for path in here.glob("run/*.*"):
        if path.name != ADAPTER:
            path.write_text(path.read_text().replace("@HERE@", str(here)))
    run = Run(here / "run", {})
    run.adapter.parent.mkdir()
    run.adapter.write_bytes(gzip.decompress((run.folder / ADAPTER).read_bytes()))
    (run.folder / ADAPTER).unlink()
    return run.folder


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return _unpacked(request.param, tmp_path)


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    return _unpacked(NAME, tmp_path)


def _noted(path: Path, **facts: object) -> None:
    """Another record in a JSON file; a fact that is None is taken out."""
    record = {**json.loads(path.read_text()), **facts}
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))


def _renumbered(path: Path, number: int | None) -> None:
    """The same adapter's file, told to be of another format."""
    with safe_open(path, "pt") as file:
        record = {**json.loads(file.metadata()["anomalydiffusion"]), "format": number}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    if number is None:
        del record["format"]
    save_file(tensors, path, {"anomalydiffusion": json.dumps(record)})


def test_a_fixture_keeps_todays_formats() -> None:
    """After a new number: `python -m tests.fixtures.write`, and what reads the numbers before it."""
    assert NAME in KEPT
    read = {name.removeprefix("format-").split(".")[0] for name in KEPT}
    assert read == {str(number) for number in range(Run.OLDEST, Run.FORMAT + 1)}
    assert {name.split(".")[1] for name in KEPT} == {str(number) for number in range(OLDEST, FORMAT + 1)}


def test_a_kept_run_is_read_shown_and_exported(kept: Path) -> None:
    run = Run.open(kept)
    assert run.record["status"] == "generated" and run_settings(run).train.adapter.lora_rank == 1
    split = run_split(run)
    assert split.digest == run.record["split_digest"]
    assert [len(part) for part in (split.shots, split.held_out, split.normals, split.held_out_normals)] == [1, 2, 2, 1]
    assert len(accepted(Manifest(run.manifest).records())) == 2
    pairs = DefectDataset(kept)
    assert [(each["image"].size, each["mask"].size, each["mask"].getextrema()) for each in pairs] == [((64, 64), (64, 64), (0, 255))] * 2
    page = report(kept).read_text()
    assert "plate" in page and "hole" in page
    for format in FORMATS:
        assert export(kept, kept.parent / format, format).counts == {KEYS[0]: 2}


def test_a_kept_adapter_answers_as_it_did(kept: Path, known_folder: Path) -> None:
    run = Run.open(kept)
    prior = load_known_prior(known_folder, run.record["prior_digest"])
    adapter = Adapter.load(run.adapter, prior)
    assert adapter.keys == KEYS == list(Adapter.vectors_of(run.adapter))
    assert {record["adapter_digest"] for record in Manifest(run.manifest).records()} == {adapter.digest}
    expected = json.loads((kept.parent / ANSWER).read_text())
    assert answer(adapter) == pytest.approx(expected, abs=1e-3)
    for part in adapter.trainable().values():  # each of them is heard
        before = [value.clone() for value in part.parameters()]
        with torch.no_grad():
            for value in part.parameters():
                value.mul_(-2)
            assert answer(adapter) != pytest.approx(expected, abs=1e-3)
            for value, old in zip(part.parameters(), before, strict=True):
                value.copy_(old)


def test_a_kept_run_still_draws(kept: Path, known_folder: Path) -> None:
    run = Run.open(kept)
    prior = load_known_prior(known_folder, run.record["prior_digest"])
    split = run_split(run)
    pipe = AnomalyDiffusionPipeline(prior, Adapter.load(run.adapter, prior), shots_of(split), run_settings(run))
    assert pipe(split.normals[0].path, seed=3).image.size == (64, 64)


def test_a_newer_run_is_refused_by_all_that_read_it(newest: Path) -> None:
    # whatever else has changed in it
    _noted(newest / "run.json", format=Run.FORMAT + 1, version="9.9")
    (newest / "config.toml").write_text("of_a_later_version = 1\n")
    for read in (Run.open, report, DefectDataset, AnomalyDiffusionPipeline.from_pretrained, lambda run: export(run, newest.parent / "out")):
        with pytest.raises(RunError, match=r"version 9\.9 \(format \d+, this one reads \d+\); upgrade anomalydiffusion"):
            read(newest)
    assert not (newest / "report").exists() and not (newest.parent / "out").exists()


def test_an_earlier_run_than_is_kept_says_to_train_again_but_its_pairs_can_be_had(newest: Path) -> None:
    _noted(newest / "run.json", format=Run.OLDEST - 1)
    with pytest.raises(RunError, match=r"earlier version \(format 1, this one reads 2\); train again into another folder"):
        Run.open(newest)
    assert report(newest).is_file() and export(newest, newest.parent / "out").counts == {KEYS[0]: 2}


@pytest.mark.parametrize(
    ("number", "says"),
    [(FORMAT + 1, "newer version .*upgrade anomalydiffusion"), (OLDEST - 1, "earlier version .*train again"), (None, "names no format")],
)
def test_an_adapter_of_another_format_is_refused(newest: Path, small_prior, number: int | None, says: str) -> None:
    path = Run(newest, {}).adapter
    _renumbered(path, number)
    for read in (Adapter.vectors_of, lambda path: Adapter.load(path, small_prior)):
        with pytest.raises(RunError, match=rf"adapter\.safetensors: .*{says}"):
            read(path)


@pytest.mark.parametrize(
    ("number", "says"), [(PIPELINE + 1, "upgrade anomalydiffusion"), (PIPELINE - 1, "earlier version"), (None, "save the pipeline again")]
)
def test_a_saved_pipeline_of_another_format_is_refused(newest: Path, number: int | None, says: str) -> None:
    (newest / INDEX).write_text(json.dumps({"shots": []}))
    _noted(newest / INDEX, format=number)
    (newest / "config.toml").write_text("of_another_version = 1\n")
    with pytest.raises(RunError, match=rf"pipeline\.json: .*{says}"):
        AnomalyDiffusionPipeline.from_pretrained(newest)
