"""What a run's verdicts by hand say about the limits of its gate."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.rejudged import gate_again
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from anomalydiffusion.quality.gate import Gate
from anomalydiffusion.quality.verdicts import Agreed, Judged, agree

__all__ = ["KEPT", "REFUSED", "agreed", "suggest"]

KEPT, REFUSED = "kept by hand", "rejected by hand"  # reasons that no gate overrules


def suggest(run: Path | str) -> Agreed:
    """Limits of the gate that agree best with the pairs kept and rejected by hand; nothing is changed (`curate` with `from_verdicts` does).

    Raises `DataError` where too few were judged by hand.
    """
    opened = Run.open(Path(run))
    split = run_split(opened)
    records = Manifest(opened.manifest).pairs()
    gate, _ = gate_again(opened, run_settings(opened), split, records, note=False, quiet=True)
    return agreed(records, gate)


def agreed(records: Iterable[dict[str, Any]], gate: Gate, given: Collection[str] = ()) -> Agreed:
    """The same of a manifest's records; the settings named in `given` stay the gate's."""
    by_hand = [record for record in records if {KEPT, REFUSED} & set(record["reasons"])]
    return agree([each for record in by_hand if (each := _judged(record, gate)) is not None], gate.config, given)


def _judged(record: dict[str, Any], gate: Gate) -> Judged | None:
    """A verdict with its pair's measures; None where those are not known."""
    measures = {name: value for name, value in dict(record.get("measures") or {}).items() if isinstance(value, int | float)}
    if not {"change", "variation"} <= measures.keys():
        return None
    config, change = gate.config, measures["change"]
    limits = {name: limit for name in ("agreement", "similarity", "margin", "evenness") if (limit := getattr(config, name)) is not None}
    refused = change < config.change or measures.get("likeness", 0.0) >= config.copy
    refused |= any(measures.get(name, limit) < limit for name, limit in limits.items())
    visible = change / measures["variation"] if measures["variation"] > 0 else math.inf
    depth = gate.depth((str(record["product"]), str(record["defect"])), measures)
    return Judged(kept=KEPT in record["reasons"], visible=visible, depth=depth, refused=refused)
