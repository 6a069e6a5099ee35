"""RUN/scores.json as it is shown: where pairs are others by now, that is said first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anomalydiffusion.core.manifest import digest_of

__all__ = ["PAIRS", "as_of"]

PAIRS = "pairs_digest"  # of the pairs that a task's figures are of
EARLIER = "Of earlier pairs, others are kept by now; run evaluate again"


def as_of(scores: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores by task, as they are true of the pairs that a manifest's records name; those of versions that do not tell stay as they are."""
    now = digest_of(records)
    return {task: _as_of(own, now) if isinstance(own, dict) else own for task, own in scores.items()}


def _as_of(own: dict[str, Any], now: str) -> dict[str, Any]:
    if own.get(PAIRS, now) == now:
        return own
    verdict = own.get("verdict")
    return {**own, "verdict": f"{EARLIER}. It said: {verdict}" if verdict else f"{EARLIER}."}
