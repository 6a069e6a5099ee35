"""Every row of the ablation changes something that can be changed, and every part of the method has one."""

import sys
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion.app.settings import Settings, resolve
from anomalydiffusion.core.config import from_dict, merge, to_dict

PARTS = {  # what a row must change, by sections of the method
    "spatial embedding": "train.adapter.spatial_tokens", "masked loss": "train.masked", "re-weighting": "generate.reweight",
    "steps": "generate.steps", "native resolution": "generate.ratio", "edge": "generate.feather", "colours": "generate.match",
    "area": "train.normalise", "outside": "train.outside", "label": "gate.refit", "gate": "gate.visible", "masks": "masks.source",
    "prior": "adapt.steps",
    "diversity": "generate.condition_noise", "severity": "generate.severity", "LoRA": "train.adapter.lora_rank",
    "grain": "generate.grain", "beginning": "generate.strength", "guidance": "generate.guidance", "eta": "generate.eta",
    "cells": "train.pool.cells", "sampler": "generate.solver", "conditions": "generate.interpolate", "reuse": "generate.reuse",
}  # fmt: skip


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, dict[str, Any]]]:
    for name in ("ablation", "downstream"):  # scripts, that stand beside one another
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import ablation

    return dict(ablation.ROWS)


def _flat(values: dict[str, Any], above: str = "") -> set[str]:
    return set().union(*(_flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name} for name, value in values.items()))


def test_each_row_is_settings_of_its_own_and_each_part_has_a_row(rows: dict[str, tuple[str, dict[str, Any]]]) -> None:
    default, seen = to_dict(resolve()), []
    for name, (words, changed) in rows.items():
        found = to_dict(from_dict(Settings, merge(default, changed)))
        assert found not in seen, name
        seen.append(found)
        assert words and (found == default) == (name == "default"), name
    missing = {part for part, setting in PARTS.items() if not any(setting in _flat(changed) for _, changed in rows.values())}
    assert not missing
