"""Every block of code in README.md and docs/ is run, as a new user would, in an empty folder.

What is made small, and how: `SMALL` are other defaults (what a page's own files or options say goes before them), and numbers of
pairs, seeds and steps (`NUMBERS`, `steps = ..` in a file, 10, 40 and 60 in Python) are replaced. `sh` and `python` blocks run page by
page in their order; `toml` blocks are read by the program's own loader, and saved where their first line names a file. In a page's
folder lie `DATA` (the demo data without gravel), `normal.png`, `mask.png` and `MODEL`, a small random Stable Diffusion of the real
classes. `text` blocks are not run: where one holds a command, the text beside it must say why.
"""

import copy
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from anomalydiffusion.app import settings
from anomalydiffusion.app.cli import app
from anomalydiffusion.core.config import merge
from anomalydiffusion.data import demo as demo_data
from anomalydiffusion.downstream import detectors
from tests.conftest import build_prior_folder

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted(path for path in (TOP / "docs").rglob("*.md") if "generated" not in path.parts)]
RUN, SHOWN = {"sh", "python", "toml"}, {"text"}
NUMBERS = {"--num": 2, "--seeds": 1, "--steps": 4, "--max-train-steps": 2}
SMALL = {
    "train": {"batch_size": 2, "pool": {"crops": 8}, "loop": {"steps": 4}},
    "masks": {"train": {"batch_size": 2, "pool": {"crops": 8}, "loop": {"steps": 2}},
              "learned": {"steps": 2, "threshold": 0.5, "frame": "image", "area": [0.0, float("inf")], "border": 1.0, "tries": 40}},
    "generate": {"steps": 4},
    "gate": {"visible": 0.1, "change": 0.1, "strict": 0.0},  # four steps of training draw faint defects
    "detector": {"steps": 4, "width": 4, "batch_size": 2}, "classifier": {"steps": 4, "batch_size": 2},
}  # fmt: skip
DEMO = {"num": 1, "max_train_steps": 2, "evaluate_steps": 2}
COMMAND = re.compile(r"^\s*(anomalydiffusion|make|pip|python3?|import|from) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block, and the paragraph before it."""

    language: str
    text: str
    line: int
    before: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; MyST's directives, in braces, are none."""
    found: list[Block] = []
    lines, at = page.read_text(encoding="utf-8").splitlines(), 0
    while at < len(lines):
        if opened := re.fullmatch(r"(`{3,}|:{3,}|~{3,})\s*(\S*)(.*)", lines[at]):
            end = next(row for row in range(at + 1, len(lines)) if lines[row].strip() == opened[1])
            if not opened[2].startswith("{"):
                assert not opened[3], f"{page.name}:{at + 1}: says more than the language"
                before = "\n".join(lines[:at]).rstrip().rpartition("\n\n")[2]
                found.append(Block(opened[2], "\n".join(lines[at + 1 : end]), at + 1, before))
            at = end
        at += 1
    return found


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Smaller defaults, for as long as this file's tests last."""
    from anomalydiffusion.app.demo import demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "PRESETS", {name: merge(copy.deepcopy(own), SMALL) for name, own in settings.PRESETS.items()})
        patch.setattr(demo_data, "DEFECTS", {"brick": demo_data.DEFECTS["brick"]})
        patch.setattr(demo_data, "TRAIN_GOOD", 6)
        patch.setattr(demo_data, "TEST_GOOD", 3)
        for name, preset in detectors.PRESETS.items():  # for --detector
            patch.setitem(detectors.PRESETS, name, replace(preset, steps=4))
        patch.setattr(demo, "__kwdefaults__", {**demo.__kwdefaults__, **DEMO})
        yield


@pytest.fixture(scope="module")
def shared(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages begin with, and one trained run: a page that types the same command is told that this was done."""
    base = tmp_path_factory.mktemp("docs")
    data = demo_data.make_demo(base / "DATA")
    shutil.copy(data / "brick" / "train" / "good" / "000.png", base / "normal.png")
    with Image.open(data / "brick" / "ground_truth" / "crack" / "000_mask.png") as mask:
        mask.save(base / "mask.png")
    build_prior_folder(base / "MODEL")
    typed = CliRunner().invoke(app, ["train", str(data), "--output", str(base / "RUN"), "--quiet"])
    assert typed.exit_code == 0, typed.output
    return base


def _shell(text: str) -> Iterator[list[str]]:
    """The commands of a block as words, numbers replaced."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for row, word in enumerate(words[:-1]):
            if word in NUMBERS and words[0] == "anomalydiffusion":
                words[row + 1] = str(min(int(words[row + 1]), NUMBERS[word]))
        if words:
            yield words


def _type(words: list[str]) -> None:
    """Run one command in this process; `> FILE` takes what it prints."""
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], Path(words[-1])
    if words[0] == "cp":
        assert words[1] == "-r"
        shutil.copytree(words[2], words[3])
    elif words[0] == "rm":
        for name in words[1:]:
            Path(name).unlink()
    else:
        assert words[0] == "anomalydiffusion", f"{words[0]}: a page may type anomalydiffusion, cp and rm; or say why a block is not run"
        typed = CliRunner().invoke(app, words[1:])
        assert typed.exit_code == 0, f"{shlex.join(words)}\n{typed.output}\n{typed.exception!r}"
        if target:
            target.write_text(typed.stdout, encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language in RUN for b in blocks(page))],
                         ids=lambda page: page.relative_to(TOP).as_posix())  # fmt: skip
def test_every_block_runs(page: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anomalydiffusion", "docs"])  # for the record that a run keeps of its commands
    for name in ("DATA", "MODEL", "normal.png", "mask.png"):
        (tmp_path / name).symlink_to(shared / name)
    shutil.copytree(shared / "RUN", tmp_path / "RUN")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.relative_to(TOP)}:{block.line}"
        if block.language == "sh":
            for words in _shell(block.text):
                try:
                    _type(words)
                except AssertionError as error:
                    raise AssertionError(f"{where}: {error}") from error
        elif block.language == "python":
            exec(compile(re.sub(r"\b(10|40|60)\b", "3", block.text), where, "exec"), names)  # as many pairs
        elif block.language == "toml":
            named = re.match(r"# ([\w-]+\.toml)", block.text)
            path = tmp_path / (named[1] if named else "block.toml")
            path.write_text(block.text, encoding="utf-8")
            settings.resolve(None, path)  # an unknown key is an error
            path.write_text(re.sub(r"^steps = \d+", "steps = 2", block.text, flags=re.MULTILINE), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(TOP).as_posix())
def test_what_is_not_run_says_so(page: Path) -> None:
    indented = re.findall(r"\n\n {4}\S", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))
    assert not indented, "code belongs into fences, whose language says whether it is run"
    for block in blocks(page):
        where = f"{page.relative_to(TOP)}:{block.line}"
        assert block.language in RUN | SHOWN, f"{where}: language '{block.language}'"
        if block.language in SHOWN and COMMAND.search(block.text):
            after = page.read_text(encoding="utf-8").splitlines()[block.line + block.text.count("\n") + 2 :][:2]
            assert "ot run by the tests" in block.before + "".join(after), f"{where}: holds a command, and no reason why it is not run"


def test_each_command_has_its_page_in_the_reference() -> None:
    import typer

    sys.path.insert(0, str(TOP / "docs" / "_ext"))
    try:
        import generated
    finally:
        sys.path.pop(0)
    page = generated.command_page()
    for words in generated.commands(typer.main.get_command(app)):
        assert f"Usage: {' '.join(['anomalydiffusion', *words])} " in page
    assert "--max-train-steps" in page and "…" not in page
    options = generated.settings_page()
    assert {"## [masks.matched]", "## [adapt]"} < set(options.splitlines())  # not there by default
    assert "## [train.loop]" in options and '| `seam` | `"membrane"` |' in options and "half of the masks" in options
    import anomalydiffusion

    assert all(f"## {name}\n" in generated.python_page() for name in anomalydiffusion.__all__ if not name.startswith("_"))


def test_python_takes_a_path_as_text_wherever_it_takes_one() -> None:
    import inspect

    import anomalydiffusion

    functions = [each for name in anomalydiffusion.__all__ if inspect.isfunction(each := getattr(anomalydiffusion, name))]
    taken = {f"{each.__name__}({own})": str(own.annotation) for each in functions for own in inspect.signature(each).parameters.values()}
    assert sum("Path" in said for said in taken.values()) > 20
    assert not {name: said for name, said in taken.items() if "Path" in said and "str" not in said}


def test_pages_name_only_options_that_exist() -> None:
    import typer

    given = [each for command in _all(typer.main.get_command(app)) for each in command.params]
    known = {option for each in given for option in (*each.opts, *each.secondary_opts)}
    others = {"--help", "--version", "--work", "--times", "--multi", "--nproc"}  # launchers write the rest of theirs with "_"
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        assert not named - known - others, page.name


def _all(command):
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all(below)
