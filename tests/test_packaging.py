"""What people meet before the code: the image's recipe, the citation, the extras."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from anomalydiffusion.app.doctor import EXTRAS

TOP = Path(__file__).parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]


def test_the_dockerfile_is_clean_and_copies_only_what_its_context_has() -> None:
    found = subprocess.run([Path(sys.executable).parent / "hadolint", TOP / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    rules = (TOP / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = [word for line in re.findall(r"^COPY (.+)$", (TOP / "Dockerfile").read_text(), re.M) for word in line.split()[:-1]]
    assert copied and all((TOP / word).exists() and word in kept for word in copied)


def test_the_image_has_all_that_the_build_reads() -> None:
    copied = (TOP / "Dockerfile").read_text()
    assert PROJECT["readme"] in copied and all(name in copied for name in PROJECT["license-files"])


def test_the_citation_names_the_project_its_licence_and_the_paper() -> None:
    cited = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert (cited["title"], cited["license"]) == (PROJECT["name"], PROJECT["license"])
    assert "arXiv:2312.05767" in str(cited["references"]) and len(cited["references"][0]["authors"]) == 8


def test_all_takes_every_extra_that_users_have_a_use_for() -> None:
    extras = PROJECT["optional-dependencies"]
    (named,) = re.findall(r"\[(.+)\]", extras["all"][0])
    assert set(named.split(",")) == set(extras) - {"all", "dev", "docs"}


def test_messages_name_extras_that_there_are() -> None:
    """`pip install 'anomalydiffusion[x]'` in a message, a docstring or the README must work."""
    files = [TOP / "README.md", *(TOP / "src").rglob("*.py")]
    named = {extra for file in files for extra in re.findall(r"(?:anomalydiffusion|\.)\[(\w+)\]'", file.read_text())}
    assert named and named <= set(PROJECT["optional-dependencies"])


def test_the_doctor_looks_for_extras_that_there_are() -> None:
    assert set(EXTRAS) <= set(PROJECT["optional-dependencies"])


def test_other_peoples_type_checkers_read_ours() -> None:
    assert ("Typing :: Typed" in PROJECT["classifiers"]) == (TOP / "src" / "anomalydiffusion" / "py.typed").is_file()


def test_nothing_that_is_not_shipped_is_committed() -> None:
    ignored = [line.rstrip("/") for line in (TOP / ".gitignore").read_text().split()]
    kept = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in kept if any(fnmatch.fnmatch(part, rule) for part in name.split("/") for rule in ignored)]
