"""The doctor says what is well, what is broken and how to mend it; of a run also what comes next."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import anomalydiffusion as ad
from anomalydiffusion.app import doctor as machine
from anomalydiffusion.app.cli import app
from anomalydiffusion.app.doctor_run import examine
from anomalydiffusion.app.findings import Finding, Health, broken, doubtful, well
from anomalydiffusion.app.main import ALLOCATOR, MARK
from anomalydiffusion.priors.files import BUNDLED, SUMS, changed_files
from tests.app.conftest import Spoken

Change = Callable[[Path], object]


def _named(health: Health) -> dict[str, Finding]:
    return {finding.name: finding for finding in health.findings}


def test_this_machine_is_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    health = ad.doctor()
    found = _named(health)
    assert health.ok and health.finished is None and not health.next and not list(tmp_path.iterdir())
    assert {"python", "packages", "processor", "graphics", "memory", "disk", "writing", "allocator", "bundled prior"} <= set(found)
    assert "torch 2" in found["packages"].found and "native bfloat16" in found["processor"].found
    assert all(finding.remedy for finding in health.findings if finding.level != "ok")


def test_a_run_is_counted_and_told_what_comes_next(made: Path) -> None:
    out = CliRunner().invoke(app, ["doctor", str(made / "run"), "--json"])
    said = json.loads(out.stdout)
    assert out.exit_code == 0 and said["ok"] and said["finished"]
    assert said["counts"]["accepted"] == 4 and said["counts"]["plate/hole"] == 2
    assert said["next"] == f"anomalydiffusion evaluate {made / 'run'} --seeds 3"
    out = CliRunner().invoke(app, ["doctor", str(made / "run")])
    assert out.exit_code == 0 and "4 shot, 8 held out, 4 normal" in out.stdout and "next: anomalydiffusion evaluate" in out.stdout
    assert out.stdout.rstrip().endswith("ready")


def _line(run: Path, old: str, new: str) -> None:
    lines = (run / "manifest.jsonl").read_text()
    assert old in lines
    (run / "manifest.jsonl").write_text(lines.replace(old, new, 1))


def _moved(run: Path, root: str = "/no/such/place") -> None:
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "root": root}))


def _noted(**facts: str) -> Change:
    def change(run: Path) -> None:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, **facts}))

    return change


@pytest.mark.parametrize(
    ("change", "name", "level", "says", "follows"),
    [
        (lambda run: (run / "adapter" / "adapter.safetensors").unlink(), "adapter", "warning", "not learned yet", "train"),
        (lambda run: (run / "adapter" / "adapter.safetensors").write_bytes(b"cut"), "adapter", "error", "damaged", "train"),
        (lambda run: (run / "split.json").write_text("{"), "split", "error", "missing or damaged", "evaluate"),
        (_noted(prior="/no/such/prior"), "prior", "warning", "is not there any more", "evaluate"),
        (_noted(prior="tiny", prior_digest="0"), "prior", "error", "another bundled prior (0, here is ", "evaluate"),
        (_moved, "split", "error", "30 files are gone, the first is /no/such/place", "evaluate"),
        (lambda run: _moved(run, 300 * "x"), "split", "error", "30 files are gone, the first is xxx", "evaluate"),
        (lambda run: (run / "config.toml").write_text("= 3"), "settings", "error", "not a TOML file", "evaluate"),
        (lambda run: next(run.rglob("images/*.png")).unlink(), "pairs", "error", "of which 1 are gone", "evaluate"),
        (
            lambda run: (run / "generated" / "plate" / "hole" / "images" / "9.png").touch(),
            "pairs",
            "warning",
            "1 files that no",
            "evaluate",
        ),
        (lambda run: _line(run, '"product"', '"prod'), "pairs", "warning", "1 lines cannot be read", "evaluate"),
        (lambda run: _line(run, '"reasons": []', '"reasons": ["is being judged anew"]'), "pairs", "error", "cut short", "curate"),
        (lambda run: (run / "manifest.jsonl").unlink(), "pairs", "warning", "0 lines, 0 accepted", "generate"),
        (lambda run: (run / "scores.json").write_text('{"localization": {}}'), "run", "ok", "generated; finished", "export"),
        (lambda run: (run / "scores.json").write_text('{"quality": {"pairs_digest": "of others"}}'), "run", "ok", "finished", "evaluate"),
        (lambda run: (run / "run.json").write_text('{"format": 99}'), "run", "error", "format 99", ""),
    ],
)
def test_what_is_broken_in_a_run_is_named(
    made: Path, tmp_path: Path, change: Change, name: str, level: str, says: str, follows: str
) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run", ignore=shutil.ignore_patterns("again"))
    change(run)
    health = examine(run)
    finding = _named(health)[name]
    assert finding.level == level and says in finding.found and (finding.remedy or level == "ok")
    assert health.ok is (level != "error") and (f"anomalydiffusion {follows} " in health.next if follows else not health.next)
    assert [each for each in health.findings if each.level == "error"] == ([finding] if level == "error" else [])


def test_what_is_broken_ends_with_1(tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["doctor", str(tmp_path / "nothing")])
    assert out.exit_code == 1 and "run.json is missing" in out.stdout and "not ready: mend the errors above" in out.stdout


def test_a_training_that_was_cut_short_goes_on(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    (run / "adapter" / "adapter.safetensors").unlink()
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    (run / "checkpoints" / "step-000002" / "state.json").write_text("{}")
    record = json.loads((run / "run.json").read_text())
    words = "anomalydiffusion train D --output run --preset fast"
    (run / "run.json").write_text(json.dumps({**record, "status": "training", "commands": [words]}))
    health = examine(run)
    assert "step-00000" in _named(health)["adapter"].found and health.next == words and not health.finished


def test_packages_are_held_against_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2.0", "torch>=99", "no-such-package>=1", "gradio<1; extra == 'studio'", "ruff>=99; extra == 'dev'"]
    monkeypatch.setattr(machine, "requires", lambda name: asked)
    needed, studio = machine._packages()
    assert needed.level == "error" and "torch 2" in needed.found and "no-such-package is missing" in needed.found
    assert needed.remedy == "pip install 'torch>=99' 'no-such-package>=1'"
    assert studio.level == "warning" and studio.remedy == "pip install 'anomalydiffusion[studio]'"


def test_the_allocator_is_left_to_who_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert machine._allocator().level == "ok"
    monkeypatch.setenv(MARK, "1")
    if "sets" not in machine._allocator().found:  # glibc alone has these settings
        assert machine._allocator() == doubtful("allocator", machine._allocator().found, f"unset {MARK}")
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    assert machine._allocator().level == "ok"


def test_a_place_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert machine._writable(tmp_path / "not" / "there").level == "ok" and not list(tmp_path.glob("not"))
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert machine._writable(tmp_path).level == "error"


def test_the_bundled_prior_is_the_one_that_was_written(tmp_path: Path) -> None:
    assert changed_files(BUNDLED) == []
    summed = {line.split("  ", 1)[1] for line in (BUNDLED / SUMS).read_text().splitlines()}
    assert summed == {path.relative_to(BUNDLED).as_posix() for path in BUNDLED.rglob("*") if path.suffix in (".json", ".safetensors")}
    copy = shutil.copytree(BUNDLED, tmp_path / "tiny")
    (copy / "vae" / "config.json").write_text("{}")
    (copy / "unet" / "config.json").unlink()
    assert changed_files(copy) == ["unet/config.json", "vae/config.json"]
    for damaged in ("x", "0" * 64 + "  ../../etc/hostname", "0" * 64 + "  /etc/hostname", "0" * 64 + " " + "x" * 5000, "\0"):
        (copy / SUMS).write_text(damaged)
        assert changed_files(copy) == [SUMS]
    (copy / SUMS).unlink()
    assert changed_files(copy) == [SUMS]


def test_a_health_is_as_good_as_its_worst() -> None:
    fine, doubt, bad = well("a", "b"), doubtful("a", "b", "c"), broken("a", "b", "c")
    assert Health(findings=(fine, doubt)).ok and not Health(findings=(fine, bad)).ok


def test_what_cannot_be_proved_is_not_proposed_and_blanks_are_quoted(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "a run")
    assert examine(run).next == f"anomalydiffusion evaluate '{run}' --seeds 3"
    split = json.loads((run / "split.json").read_text())
    alone = [file for file in split["files"] if file["role"] != "held_out"]
    (run / "split.json").write_text(json.dumps({**split, "files": alone}))
    assert examine(run).next == f"anomalydiffusion export '{run}' --output OUT"


def test_a_run_whose_training_never_began_says_so_in_every_command(made: Path, tmp_path: Path, spoken: Spoken) -> None:
    run = tmp_path / "run"
    code, said = spoken("train", made / "data", "--output", run, "--prior", "no-such-prior", "--quiet")
    assert code == 1 and "no such prior" in said and run.is_dir()
    for command in ("generate", "masks", "evaluate", "curate"):
        code, said = spoken(command, run, *(["--num", 1] if command == "generate" else []))
        assert code == 1 and "nothing was learned here yet; type its train command again" in said
    health = examine(run)
    assert health.ok and health.next == f"anomalydiffusion train DATA --output {run}"
