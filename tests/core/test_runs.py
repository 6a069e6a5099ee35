"""A write is whole or absent; a run folder says what is wrong with it."""

import json
import os
from pathlib import Path

import pytest

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.runs import Run, replace_folder, write_atomic


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a" / "x.json"
    write_atomic(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old" and _names(file.parent) == ["x.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replace_folder(target) as part:
        (part / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), replace_folder(target) as part:
        (part / "two").write_text("2")
        raise KeyboardInterrupt
    assert _names(tmp_path) == ["out"] and _names(target) == ["one"]
    with replace_folder(target) as part:
        (part / "three").write_text("3")
    assert _names(target) == ["three"]


def test_a_run_is_opened_again_with_its_facts(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", command="train", data="d")
    Run.create(run.folder, command="train")
    Run.create(run.folder, command="generate")
    assert Run.open(run.folder).record["commands"] == ["train", "generate"] and Run.open(run.folder).record["data"] == "d"


def test_refusals_name_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no run here .*train DATA --output"):
        Run.open(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="in the way"):
        Run.create(file)
    run = Run.create(tmp_path / "r")
    for content, says in (("{", "cannot be read"), ("[]", "not a run's record")):
        (run.folder / "run.json").write_text(content)
        with pytest.raises(RunError, match=says):
            Run.open(run.folder)
    (run.folder / "run.json").write_text(json.dumps({"format": Run.FORMAT + 1, "version": "9.9"}))
    with pytest.raises(RunError, match=r"version 9\.9.*upgrade"):
        Run.open(run.folder)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r")
    with run.lock(), pytest.raises(RunError, match="another command"), Run.open(run.folder).lock():
        pass
    with run.lock():
        pass
