"""Options as other trainers spell them, and what the shell's completion offers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import typer
from typer.testing import CliRunner

from anomalydiffusion.app import bench, evaluate, settings
from anomalydiffusion.app.cli import app
from anomalydiffusion.app.export import EMBEDDINGS
from anomalydiffusion.app.main import main
from anomalydiffusion.app.trackers import Tracker
from anomalydiffusion.data.imports import OPTIONS
from anomalydiffusion.downstream import detectors
from anomalydiffusion.report.layouts import FORMATS


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if below := getattr(command, "commands", None):
        for name, each in below.items():
            yield from _commands(each, (*words, name))
    else:
        yield words, command


def _completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell offers for the last word of a line, in a process of its own, as it asks for it."""
    words = line.split(" ")
    asked = {"_ANOMALYDIFFUSION_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell != "bash":
        asked = {"_ANOMALYDIFFUSION_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    if shell == "fish":
        asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    program = [sys.executable, "-m", "anomalydiffusion"]
    told = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert not told.stderr, told.stderr
    return told.stdout.splitlines()


def test_every_option_may_be_spelled_with_underscores() -> None:
    """With `--help` behind it, an option is parsed and nothing is done; one that is not known ends with 2."""
    tried = 0
    for words, command in _commands(typer.main.get_command(app)):
        for each in command.params:
            for name in (*each.opts, *each.secondary_opts):
                if name.startswith("--") and "-" in name[2:]:
                    value = [] if each.is_flag else ["1"]
                    typed = CliRunner().invoke(app, [*words, "--" + name[2:].replace("-", "_"), *value, "--help"])
                    assert typed.exit_code == 0, (words, name, typed.output)
                    tried += 1
    assert tried >= 20
    assert CliRunner().invoke(app, ["train", "--max_train_stepz", "1", "--help"]).exit_code == 2


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
], ids=["card", "python", "processor"])  # fmt: skip
def test_memory_that_ran_out_and_a_fault_are_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: Any) -> None:
        raise error

    monkeypatch.setattr("anomalydiffusion.app.cli.app", fails)
    monkeypatch.setattr(sys, "argv", ["anomalydiffusion", "check", "DATA"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and capsys.readouterr().err.startswith("error: memory ran out; draw fewer at once (--batch-size)")
    error = RuntimeError("shapes\ndiffer")
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (
        ended.value.code == 1 and said.startswith("error: a fault of this program, RuntimeError: shapes differ;") and said.count("\n") == 1
    )
    monkeypatch.setattr(sys, "argv", ["anomalydiffusion", "check", "DATA", "--debug"])
    with pytest.raises(RuntimeError, match="differ"):
        main()


def test_names_of_ones_own_keep_their_underscores(tmp_path: Any) -> None:
    typed = CliRunner().invoke(app, ["demo", "--data_only", "--output", str(tmp_path / "my_data")])
    assert typed.exit_code == 0 and (tmp_path / "my_data" / "brick").is_dir()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_offered_commands_and_options(shell: str) -> None:
    assert "evaluate" in " ".join(_completed("anomalydiffusion eva", shell))
    assert "--max-train-steps" in " ".join(_completed("anomalydiffusion train --max-t", shell))


def test_values_are_offered_as_the_program_knows_them() -> None:
    known = {
        "train --preset ": settings.PRESETS, "train --report-to ": get_args(Tracker), "export --format ": [*FORMATS, EMBEDDINGS],
        "import --format ": OPTIONS, "evaluate --detector ": detectors.PRESETS, "evaluate --task ": evaluate.TASKS,
        "bench --what ": bench.WHAT,
    }  # fmt: skip
    for words, values in known.items():
        assert sorted(_completed(f"anomalydiffusion {words}")) == sorted(values), words
    assert _completed("anomalydiffusion export --format c") == ["coco"]


def test_the_studios_password_may_come_from_the_environment(tmp_path: Any) -> None:
    typed = CliRunner().invoke(app, ["studio", str(tmp_path)], env={"ANOMALYDIFFUSION_AUTH": "nobody"})
    assert "expected USER:PASSWORD" in str(typed.exception), "it is read, and as it is no login, refused before anything is served"
