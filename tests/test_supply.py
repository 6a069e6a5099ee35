"""What comes with the package: versions, licences, and that nothing is fetched unasked."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from packaging.version import Version

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def packages():
    sys.path.insert(0, str(TOP / "requirements"))
    try:
        import packages
    finally:
        sys.path.pop(0)
    return packages


def test_the_lock_has_one_exact_version_of_all_that_is_asked_for(packages) -> None:
    lines = [line for line in packages.LOCK.read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names)) and all(line.count("==") == 1 and not set(line) & set("/@;+ *") for line in lines)
    pins = packages.pins()
    for each in packages.asked("dev"):
        assert Version(pins[packages.canonicalize_name(each.name)]) in each.specifier, f"{each}: make lock"
    assert not set(packages.closure(packages.asked("dev"))) - set(pins), "make lock"


def test_every_licence_is_listed_and_known_or_explained(packages) -> None:
    found = {name: packages.licence(each.metadata) for name, each in packages.closure(packages.asked("all")).items()}
    table = packages.rows()
    assert len(table) > 90 and not packages.problems(found, table, packages.pins()), "make licences"


def _about(**headers: str | list[str]) -> Message:
    out = Message()
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            out[name.replace("_", "-")] = value
    return out


def test_a_licence_is_read_wherever_it_is_stated(packages) -> None:
    assert packages.licence(_about(License_Expression="MIT", License="BSD")) == "MIT"
    assert packages.licence(_about(License="Apache 2.0 License")) == "Apache-2.0"
    several = ["License :: OSI Approved :: MIT License", "Topic :: Software", "License :: OSI Approved :: BSD License"]
    assert packages.licence(_about(License="Copyright ..\nAll rights", Classifier=several)) == "BSD AND MIT"
    assert packages.licence(_about(License="UNKNOWN")) == packages.licence(_about()) == packages.UNKNOWN


@pytest.mark.parametrize(
    ("stated", "allowed"),
    [
        ("MIT", True), ("MPL-2.0 AND (Apache-2.0 OR MIT)", True), ("GPL-3.0-only OR MIT", True), ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only", False), ("AGPL-3.0-or-later", False), ("MIT AND GPL-2.0-only", False), ("none stated", False), ("Other", False),
    ],
)  # fmt: skip
def test_strong_copyleft_and_unknown_licences_want_a_reason(packages, stated: str, allowed: bool) -> None:
    assert packages.is_allowed(stated) == allowed
    assert bool(packages.problems({"a": stated}, {"a": (stated, "")}, ["a"])) != allowed
    assert not packages.problems({"a": stated}, {"a": (stated, "is run, not linked")}, ["a"])


def test_what_the_table_lacks_or_says_wrongly_is_named(packages) -> None:
    assert packages.problems({"a": "MIT"}, {}, ["a"]) == ["a: MIT, but docs/licences.md says nothing of it"]
    assert packages.problems({"a": "MIT"}, {"a": ("ISC", "")}, ["a"]) == ["a: docs/licences.md says ISC, the package MIT"]
    assert packages.problems({}, {"a": ("MIT", "")}, []) == ["a: in docs/licences.md, but nothing that is locked"]
    assert not packages.problems({}, {"a": ("MIT", "")}, ["a"])  # needed on another machine


ALONE = """
import importlib, pkgutil, sys

asked = []

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"):
        asked.append(f"{event} {arguments}")
        raise OSError("no network here")

sys.addaudithook(refuse)  # hears what Python code asks for, through whatever library
import anomalydiffusion
for name in anomalydiffusion.__all__:
    getattr(anomalydiffusion, name)
for module in pkgutil.walk_packages(anomalydiffusion.__path__, "anomalydiffusion."):
    if not module.name.endswith("__main__"):  # runs the command
        importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("anomalydiffusion.")]), asked)
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    print(asked)
"""


def test_nothing_is_asked_of_the_network_at_import() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    said, heard = done.stdout.splitlines()
    count, asked = said.split(maxsplit=1)
    assert int(count) > 150 and asked == "[]", asked
    assert "127.0.0.1" in heard  # it would have been heard


def test_nothing_runs_at_installation() -> None:
    """The build's backend only copies: no hooks in pyproject.toml, and no setup.py."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    assert project["build-system"] == {"requires": ["hatchling"], "build-backend": "hatchling.build"}
    assert "hooks" not in str(project["tool"]["hatch"]) and not list(TOP.glob("setup.*")) and not list(TOP.glob("hatch_build.py"))
    assert "@" not in "".join(project["project"]["dependencies"])  # nothing from an address of its own
