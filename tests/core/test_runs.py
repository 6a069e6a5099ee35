"""A write is whole or absent; a run folder says what is wrong with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.runs import Run, replace_folder, write_atomic
from tests.hostile import refused, spoilt


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


def test_what_is_written_is_on_the_disk_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def noted(handle: int) -> None:
        real(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((str(path.relative_to(tmp_path)), sorted(_names(path)) if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(os, "fsync", noted)
    write_atomic(tmp_path / "a" / "b" / "x.json", b"new")
    assert synced[:2] == [(".", ["a"]), ("a", ["b"])]  # folders that lacked: each one's name
    assert synced[2][1] == b"new" and synced[3] == ("a/b", ["x.json"])  # the content, then after the renaming the name
    synced.clear()
    with replace_folder(tmp_path / "out") as part:
        (part / "one").write_text("1")
    assert [content for _, content in synced] == [b"1", ["one"], ["a", "out"]]


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


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from anomalydiffusion.core.runs import replace_folder

calls = int(sys.argv[2])

def count(real):
    def counted(*arguments, **options):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return counted

Path.rename, shutil.rmtree = count(Path.rename), count(shutil.rmtree)
with replace_folder(Path(sys.argv[1])) as part:
    for name in ("a", "b"):
        (part / name).write_text("new")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(("calls", "whole"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_folder_survives_a_kill_at_any_step(tmp_path: Path, calls: int, whole: str) -> None:
    target = tmp_path / "out"
    with replace_folder(target) as part:
        for name in ("a", "b"):
            (part / name).write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(calls)], check=False)
    assert done.returncode == -signal.SIGKILL and len(_names(tmp_path)) == 2  # the kill did leave something beside it
    (tmp_path / ".part-out-more-12345678").mkdir()  # of the target "out-more"
    with pytest.raises(ValueError, match="no"), replace_folder(target):
        raise ValueError("no")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": whole, "b": whole}
    assert sorted(_names(tmp_path)) == [".part-out-more-12345678", "out"]


def test_two_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replace_folder(target) as first:
        (first / "one").write_text("1")
        with replace_folder(target) as second:
            (second / "two").write_text("2")
        assert _names(target) == ["two"]
    assert _names(tmp_path) == ["out"] and _names(target) == ["one"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "out", Path.rename
    with replace_folder(target) as part:
        (part / "one").write_text("1")

    def fail(self: Path, to: Path) -> Path:
        if self.name.startswith(".part-"):
            raise OSError(5, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), replace_folder(target):
        pass
    assert _names(tmp_path) == ["out"] and _names(target) == ["one"]


def test_a_link_stays_and_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    with replace_folder(tmp_path / "link") as part:
        (part / "one").write_text("1")
    assert (tmp_path / "link").is_symlink() and _names(tmp_path / "disk" / "real") == ["one"]
    file = tmp_path / "disk" / "file"
    file.write_text("mine")
    with pytest.raises(OSError), replace_folder(file):
        pass
    assert file.read_text() == "mine" and sorted(_names(tmp_path / "disk")) == ["file", "real"]


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
    (run.folder / "run.json").write_text(json.dumps({"format": Run.FORMAT - 1, "version": "0.0"}))
    with pytest.raises(RunError, match=r"earlier version.*train again into another folder"):
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


@settings(max_examples=40, deadline=None)
@given(data=spoilt({"format": 2, "version": "1", "status": "done", "commands": ["a"], "prior": "tiny"}))
def test_whatever_its_record_holds_a_run_is_opened_and_noted_in_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("r")
    (folder / "run.json").write_bytes(data)
    refused(lambda: Run.open(folder).update(command="x"))


@pytest.mark.parametrize(
    "content", ["[" * 5000, '{"format": 2, "commands": 5}', '{"format": 2, "commands": [5]}', '{"format": ' + "9" * 5000 + "}"]
)
def test_a_hostile_record_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json: .*; "):
        Run.open(tmp_path)


def test_a_word_that_no_text_can_hold_is_noted_all_the_same(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", command="train data\udcff")  # a folder's name that is no UTF-8
    assert Run.open(tmp_path / "r").record["commands"] == ["train data?"]


def test_files_are_as_open_as_the_user_s_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a.txt", b"x")
        with replace_folder(tmp_path / "folder") as part:
            (part / "b").write_text("x")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "folder")] == [0o640, 0o750]


def test_the_folder_that_one_works_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "below").mkdir(parents=True)
    for place in (tmp_path / "out", tmp_path / "out" / "below"):
        monkeypatch.chdir(place)
        with pytest.raises(RunError, match="name a new folder inside it"), replace_folder(tmp_path / "out"):
            pass
    with replace_folder(Path("new")) as part:
        (part / "a").touch()
    assert [path.name for path in Path.cwd().iterdir()] == ["new"]
