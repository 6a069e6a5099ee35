"""The reference pages, written from the code each time the pages are built: commands, settings, Python."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import tokenize
import typing
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "reference" / "generated"
WIDTH = "100"


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command of an app, in its own order; a group comes before its commands."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def _plain(command: Any) -> None:
    """Help without frames and colours, which cut long names."""
    command.rich_markup_mode = None
    for below in getattr(command, "commands", {}).values():
        _plain(below)


def help_of(words: tuple[str, ...]) -> str:
    """What `anomalydiffusion WORDS --help` prints on a terminal of `WIDTH` columns."""
    from anomalydiffusion.app.cli import app

    whole = typer.main.get_command(app)
    _plain(whole)
    env = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb", "_TYPER_STANDARD_TRACEBACK": "1"}
    runner = CliRunner()
    with runner.isolation(env=env) as streams:
        with suppress(SystemExit, click.exceptions.Exit):
            whole.main(args=[*words, "--help"], prog_name="anomalydiffusion", standalone_mode=False, terminal_width=int(WIDTH))
        text = streams[0].getvalue().decode()
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def command_page() -> str:
    from anomalydiffusion.app.cli import app

    out = ["# Commands", "", "What each command's `--help` says."]
    for words in commands(typer.main.get_command(app)):
        out += ["", f"## {' '.join(words) or 'anomalydiffusion'}", "", "```text", help_of(words), "```"]
    return "\n".join(out) + "\n"


def remarks(cls: type) -> dict[str, str]:
    """The comment beside each field of a dataclass."""
    source = inspect.getsource(cls)
    lines = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# fmt", "# type", "# noqa")):
            lines[token.start[0]] = token.string.lstrip("# ")
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for item in body.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            own = [lines[row] for row in range(item.lineno, (item.end_lineno or item.lineno) + 1) if row in lines]
            found[item.target.id] = " ".join(own)
    return found


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}`"


def _tables(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tables that there may be; one that is not there by default, as it would be."""
    yield name, config
    types = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None:
            value = next((kind() for kind in typing.get_args(types[item.name]) if dataclasses.is_dataclass(kind)), None)
        if dataclasses.is_dataclass(value):
            yield from _tables(value, f"{name}.{item.name}".lstrip("."))


def settings_page() -> str:
    from anomalydiffusion.app.settings import PRESETS, resolve

    others = [name for name in PRESETS if name != "default"]
    presets = {name: dict(_tables(resolve(name))) for name in others}
    out = [
        "# Settings", "",
        "What a `--config` file may hold and a run's `config.toml` does hold, with the defaults and what the other presets say.",
        "The presets' columns are empty where they say the same.",
    ]  # fmt: skip
    for name, config in _tables(resolve()):
        plain = [item for item in dataclasses.fields(config) if not dataclasses.is_dataclass(getattr(config, item.name))]
        if not plain:
            continue
        says = (inspect.getdoc(type(config)) or "").splitlines()[0]
        heads = ["name", "default", *others, "meaning"]
        out += ["", f"## {f'[{name}]' if name else 'At the top'}", "", says, ""]
        out += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        known = remarks(type(config))
        for item in plain:
            value = getattr(config, item.name)
            cells = [f"`{item.name}`", _text(value)]
            for preset in others:
                held = getattr(presets[preset][name], item.name)
                cells.append("" if held == value else _text(held))
            out.append("| " + " | ".join([*cells, known.get(item.name, "").replace("|", "\\|")]) + " |")
    return "\n".join(out) + "\n"


def python_page() -> str:
    import anomalydiffusion

    out = [
        "# Python", "",
        "Every public name of `anomalydiffusion`. Each command is a function with the same options; `prior train`, `info` and `convert`",
        "are `prior_train`, `prior_info` and `prior_convert`, and `import`, a word of Python's own, is `import_data`.", "",
    ]  # fmt: skip
    for name in anomalydiffusion.__all__:
        place = anomalydiffusion._DOOR.get(name)
        if place is None:
            continue  # the version
        kind = "autoclass" if inspect.isclass(getattr(import_module(place), name)) else "autofunction"
        options = ["   :members:", "   :special-members: __call__"] if kind == "autoclass" else []
        out += [f"## {name}", "", "```{eval-rst}", f".. {kind}:: {place}.{name}", *options, "```", ""]
    return "\n".join(out)


def write(app: Any = None) -> None:
    """Write the pages; what has not changed is left, so that a second build is quick."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in (("commands", command_page()), ("settings", settings_page()), ("python", python_page())):
        path = FOLDER / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented lines of a docstring are code."""
    out: list[str] = []
    for line in lines:
        if line.startswith("    ") and (not out or not out[-1].strip()) and not any(each == "::" for each in out[-2:]):
            inside = next((each for each in reversed(out) if each.strip()), "").startswith("    ")
            out += [] if inside else ["::", ""]
        out.append(line)
    lines[:] = out


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", _literal)
    return {"parallel_read_safe": True, "version": "1"}
