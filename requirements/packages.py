"""What is installed: `lock` writes ci.txt, the exact versions that CI installs; `licences` writes the table in docs/licences.md.

Both look at what pyproject.toml asks for and at what that asks for in turn, as it is installed beside this interpreter.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[1]
LOCK, PAGE = TOP / "requirements" / "ci.txt", TOP / "docs" / "licences.md"
HEAD = """\
# Written by `make lock`: what CI installs, as constraints. Linux, CPython 3.11; a build's local label (+cpu) is left to the machine.
"""
TOOLS = ("pip",)  # installed by the Makefile itself
BEGIN, END = "<!-- written by `make licences`; the last column by hand -->", "<!-- end -->"
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Zlib",
}  # fmt: skip
NAMES = {  # what authors write for it, where they do not write SPDX
    "3-Clause BSD License": "BSD-3-Clause", "Apache": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0", "BSD License": "BSD", "ISC License": "ISC",
    "ISC License (ISCL)": "ISC", "MIT License": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
}  # fmt: skip
UNKNOWN = "none stated"


def asked(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for with one of its extras, its own extras resolved."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    todo, done = [extra], set()
    while todo:
        done.add(name := todo.pop())
        for each in map(Requirement, project["optional-dependencies"][name]):
            if each.name == project["name"]:
                todo += each.extras - done
            else:
                found.append(each)
    return found


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """The installed distributions that these need here, by name. Raises `SystemExit` where one is missing."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(each, "") for each in requirements]
    while todo:
        each, extra = todo.pop()
        if each.marker and not each.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(each.name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name}: is needed, but not installed; make install") from None
        for wanted in {"", *each.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += [(Requirement(line), wanted) for line in found[name].requires or []]
    return dict(sorted(found.items()))


def lock() -> str:
    """The lines of ci.txt."""
    found = closure([*asked("dev"), *map(Requirement, TOOLS)])
    return HEAD + "".join(f"{name}=={Version(each.version).public}\n" for name, each in found.items())


def pins() -> dict[str, str]:
    """Names and versions in ci.txt."""
    lines = (line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return dict(line.split("==") for line in lines)


def licence(about: PackageMetadata) -> str:
    """The licence that a distribution's metadata states, by SPDX's names where that is clear: expression, short text, classifiers."""
    stated = about.get("License-Expression") or ""
    text = (about.get("License") or "").strip()
    if not stated and text and text.upper() != "UNKNOWN" and "\n" not in text and len(text) < 60:
        stated = text
    if not stated:
        told = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
        stated = " AND ".join(sorted({NAMES.get(each, each) for each in told}))
    return NAMES.get(stated, stated) or UNKNOWN


def is_allowed(stated: str) -> bool:
    """Whether each part of an expression, or of alternatives one, is permissive or reaches no further than its own files."""
    parts = re.sub(r"[()]", "", re.sub(r" WITH [\w.-]+", "", stated)).split(" AND ")
    return all(any(each.strip() in ALLOWED for each in part.split(" OR ")) for part in parts)


def rows() -> dict[str, tuple[str, str]]:
    """Licence and remark of each package in the page's table."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.strip().splitlines()[2:]]
    return {line[0]: (line[1], line[2] if len(line) > 2 else "") for line in lines}


def problems(found: dict[str, str], table: dict[str, tuple[str, str]], locked: Iterable[str]) -> list[str]:
    """What is wrong with the table beside what is installed; packages that another machine needs may be in it."""
    out = [f"{name}: {stated}, but docs/licences.md says nothing of it" for name, stated in found.items() if name not in table]
    for name, (stated, remark) in table.items():
        if name not in locked:
            out.append(f"{name}: in docs/licences.md, but nothing that is locked")
        if name in found and stated != found[name]:
            out.append(f"{name}: docs/licences.md says {stated}, the package {found[name]}")
        if not is_allowed(stated) and not remark:
            out.append(f"{name}: {stated}: say in the table's last column why it may be installed, or do without it")
    return out


def table() -> str:
    """The page with a table of what is installed now; remarks stay."""
    text, known = PAGE.read_text(encoding="utf-8"), rows()
    lines = ["| package | licence | remark |", "|---|---|---|"]
    for name, each in closure(asked("all")).items():
        lines.append(f"| {name} | {licence(each.metadata)} | {known.get(name, ('', ''))[1]} |")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    written = {"lock": (LOCK, lock), "licences": (PAGE, table)}
    path, text = written[sys.argv[1]]
    path.write_text(text(), encoding="utf-8")
