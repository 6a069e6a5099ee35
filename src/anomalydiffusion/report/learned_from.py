"""What a run's split says that it learned from: real defects with their masks, and normal images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["NORMAL", "SHOT", "read_role"]

SHOT, NORMAL = "shot", "normal"  # what is held out for testing has other roles


def read_role(run: Path, role: str) -> tuple[Path, list[dict[str, Any]]]:
    """The data set's folder, and what split.json says of each file of a role: path, sha256, product, defect, mask, mask_sha256.

    Nothing of it is checked. Raises `OSError`, `ValueError`, `KeyError`, `TypeError`, `AttributeError` or `RecursionError` on a
    split that is missing or damaged.
    """
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    root = run / split["root"] if (run / split["root"]).is_dir() else Path(split["root"])
    return root, [row for value in split.values() if isinstance(value, list) for row in value if row["role"] == role]
