"""The house stands: floors, module sentences, sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "anomalydiffusion"
MODULES = sorted(p for p in SRC.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_module_says_what_it_is_for_and_exports(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    if path.name not in ("__main__.py", "version.py"):
        assert any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__" for n in tree.body), (
            f"{path.name}: no __all__"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_nobody_imports_the_root(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "anomalydiffusion", f"{path.name} imports the package root"


def test_the_door_is_lazy() -> None:
    code = "import sys, anomalydiffusion, anomalydiffusion.app.cli; print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import anomalydiffusion

    for name in anomalydiffusion.__all__:
        assert getattr(anomalydiffusion, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = anomalydiffusion.nonsense
