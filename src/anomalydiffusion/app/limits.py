"""RUN/gate.json: what each defect type's pairs must reach, and what real defects score, for as long as it follows from the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from anomalydiffusion.quality.gate import Gate, Real

__all__ = ["limits_json", "real_in"]

Key = tuple[str, str]


def limits_json(gate: Gate, laid_by: str) -> bytes:
    """A gate as a file; `laid_by` is a digest of what the scores of real defects follow from, "" = they are to be found anew."""
    told = {
        "limits": {"/".join(key): asdict(own) for key, own in gate.limits.items()},
        "real": {"/".join(key): own for key, own in gate.real.items()},
        "laid_by": laid_by,
    }
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def real_in(path: Path, laid_by: str, keys: Iterable[Key]) -> dict[Key, Real] | None:
    """What real defects of these types score, from such a file; None where it does not tell, or tells of what was laid otherwise."""
    try:
        told = json.loads(path.read_bytes())
        if told["laid_by"] != laid_by:
            return None
        real = {
            key: {str(name): (float(mean), float(deviation)) for name, (mean, deviation) in told["real"]["/".join(key)].items()}
            for key in keys
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):  # no such file, or one that was damaged
        return None
    sound = all(math.isfinite(mean) and 0 < deviation < math.inf for own in real.values() for mean, deviation in own.values())
    return real if sound else None
