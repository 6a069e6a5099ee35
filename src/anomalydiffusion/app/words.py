"""What to type to go on with a run: the options that choose defects, and those that its training began with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.runs import Run
from anomalydiffusion.data.folders import read_folder

__all__ = ["begun", "chosen"]


def chosen(defects: Sequence[str]) -> list[str]:
    """Words "product/defect" as a command's options. Raises `ConfigError` where options would choose more than the words."""
    if wrong := [word for word in defects if not all(word.partition("/"))]:
        raise ConfigError(f"'{wrong[0]}': expected product/defect")
    keys = {(word.split("/", 1)[0], word.split("/", 1)[1]) for word in defects}
    products, types = sorted({key[0] for key in keys}), sorted({key[1] for key in keys})
    if len(keys) != len(products) * len(types):
        raise ConfigError("choose the same defects of each product, or one product at a time")
    return _options(products, types)


def begun(run: Path, data: Path) -> list[str]:
    """The options that a run's training began with, where it learns not all of the data set, or extends another run; none before it began.

    Options may choose more than was learned, but nothing more that there is: what a product lacks is not asked of it.
    """
    try:
        files = json.loads(Run(run, {}).split.read_text(encoding="utf-8"))["files"]
        keys = {(str(file["product"]), str(file["defect"])) for file in files if file["role"] == "shot"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not there yet; or damaged, which `train` says
        return []
    whole = keys == {(name, defect) for name, product in read_folder(data).products.items() for defect in product.defects}
    words = [] if whole else _options(sorted({key[0] for key in keys}), sorted({key[1] for key in keys}))
    opened = Run.open(run)
    earlier = str(opened.record.get("extended") or opened.record.get("elsewhere") or "")
    return [*words, *(["--extend", earlier, "--preset", run_settings(opened).preset] if earlier else [])]


def _options(products: Sequence[str], defects: Sequence[str]) -> list[str]:
    return [word for option, names in (("--product", products), ("--defect", defects)) for name in names for word in (option, name)]
