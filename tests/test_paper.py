"""What docs/paper.md names exists: every object of the code, every setting, and the defaults it states."""

import re
import tomllib
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from anomalydiffusion.app.settings import Settings, resolve
from anomalydiffusion.core.config import from_dict, merge, to_dict

PAGE = (Path(__file__).parents[1] / "docs" / "paper.md").read_text(encoding="utf-8")
TABLE = PAGE.split("## Values")[1].split("\n## ")[0]
OBJECTS = sorted(set(re.findall(r"`((?:core|data|priors|conditioning|training|generation|downstream)\.[\w.]+)`", PAGE)))
SETTING = r"`\[([a-z.]+)\] (\w+)(?: = ([^`]+))?`"
SETTINGS = sorted(set(re.findall(SETTING, PAGE)))


@pytest.mark.parametrize("name", OBJECTS)
def test_the_code_it_names_is_there(name: str) -> None:
    parts = name.split(".")
    assert resolve_name(f"anomalydiffusion.{'.'.join(parts[:2])}:{'.'.join(parts[2:])}") is not None


@pytest.mark.parametrize(("section", "name", "value"), SETTINGS)
def test_the_settings_it_names_can_be_set_so(section: str, name: str, value: str) -> None:
    held = reduce(getattr, section.split("."), resolve())
    assert is_dataclass(held) and name in [each.name for each in fields(held)]
    if value:
        given: Any = tomllib.loads(f"[{section}]\n{name} = {value}\n")
        changed = reduce(getattr, [*section.split("."), name], from_dict(Settings, merge(to_dict(resolve()), given)))
        assert changed != getattr(held, name)  # the paper's value is not the default's, or the table need not say it


@pytest.mark.parametrize(("section", "name", "value"), sorted({each for each in re.findall(SETTING, TABLE) if each[2]}))
def test_the_preset_sets_what_the_table_says_of_the_paper(section: str, name: str, value: str) -> None:
    assert reduce(getattr, [*section.split("."), name], resolve("paper")) == tomllib.loads(f"x = {value}")["x"]


def test_the_page_names_enough_to_be_tested() -> None:
    assert len(OBJECTS) > 10 and len(SETTINGS) > 12 and TABLE.count(" = ") > 18
