"""Every module says what it is for, nobody imports the package root, the door is lazy, and the contracts that
import-linter checks forbid what the plan of the house forbids."""

import ast
import subprocess
import sys
import tomllib
from itertools import combinations, permutations, product
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "anomalydiffusion"
BELOW = {  # what a floor may import besides itself
    "core": set(),
    "data": {"core"},
    "priors": {"core"},
    "conditioning": {"core", "priors"},
    "masks": {"core", "data", "priors", "conditioning"},
    "training": {"core", "data", "priors", "conditioning"},
    "generation": {"core", "data", "priors", "conditioning", "masks"},
    "quality": {"core"},
    "downstream": {"core", "data"},
    "report": {"core"},
    "app": {"core", "data", "priors", "conditioning", "masks", "training", "generation", "quality", "downstream", "report"},
}
MODULES = sorted(p for p in SRC.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_module_says_what_it_is_for_and_exports(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    if path.name not in ("__main__.py", "version.py"):
        assert any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__" for n in tree.body), (
            f"{path.name}: no __all__"
        )


def _binds_root(source: str) -> bool:
    """Whether a module imports the package root, names the package as a whole or imports from where it lies itself."""
    nodes = list(ast.walk(ast.parse(source)))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    sources = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    relative = any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)
    return relative or "anomalydiffusion" in sources or any(name.split(".")[0] == "anomalydiffusion" for name in named)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_nobody_imports_the_root(path: Path) -> None:
    assert not _binds_root(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("line", "binds"),
    [
        ("import anomalydiffusion", True), ("import anomalydiffusion.core as core", True), ("import numpy, anomalydiffusion", True),
        ("from anomalydiffusion import train", True), ("from . import pixels", True), ("from ..core.pixels import load", True),
        ("from anomalydiffusion.core.pixels import load", False), ("import numpy", False),
    ],
)  # fmt: skip
def test_an_import_of_the_root_is_seen_in_each_of_its_forms(line: str, binds: bool) -> None:
    assert _binds_root(f"def late():\n    {line}\n") is binds


def test_the_contracts_forbid_what_the_plan_forbids() -> None:
    contracts = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract for contract in contracts if contract["type"] == "layers"]
    assert layers["exhaustive"] and layers["exhaustive_ignores"] == ["__main__"]
    floors = [[name.strip() for name in floor.split("|")] for floor in layers["layers"]]
    forbidden = {pair for floor in floors for pair in permutations(floor, 2)}
    forbidden |= {pair for above, below in combinations(floors, 2) for pair in product(below, above)}
    for contract in contracts:
        if contract["type"] == "forbidden":
            sides = ([name.split(".")[1] for name in contract[side]] for side in ("source_modules", "forbidden_modules"))
            forbidden |= set(product(*sides))
    assert {name for floor in floors for name in floor} == set(BELOW)
    assert forbidden == {(a, b) for a, b in permutations(BELOW, 2) if b not in BELOW[a]}


def test_the_door_is_lazy() -> None:
    code = "import sys, anomalydiffusion, anomalydiffusion.app.cli; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


SLOW = ("diffusers", "transformers", "peft", "torchvision", "timm", "segmentation_models_pytorch", "sklearn", "pandas", "gradio")


@pytest.mark.parametrize("command", ["train", "generate", "curate", "evaluate", "masks", "pipeline"])
def test_a_command_begins_without_what_only_its_work_needs(command: str) -> None:
    code = f"import sys, anomalydiffusion.app.{command}; print([m for m in {SLOW} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_commands_stay_callable_when_floors_of_their_name_are_imported(tmp_path: Path) -> None:
    import anomalydiffusion
    import anomalydiffusion.masks.geometry
    import anomalydiffusion.report.page as page
    from anomalydiffusion.core.errors import RunError

    for command in (anomalydiffusion.report, anomalydiffusion.masks):
        with pytest.raises(RunError, match="run"):
            command(tmp_path / "nothing")
    assert page.report and anomalydiffusion.masks.geometry.accept


def test_public_names_exist() -> None:
    import anomalydiffusion

    for name in anomalydiffusion.__all__:
        assert name == "__version__" or callable(getattr(anomalydiffusion, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = anomalydiffusion.nonsense
