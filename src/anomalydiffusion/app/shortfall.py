"""Say how many pairs of each defect type were accepted, and where these are too few, what to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from anomalydiffusion.app.progress import say
from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.core.manifest import accepted
from anomalydiffusion.generation.shards import Slot
from anomalydiffusion.quality.gate import Reason, reason_of

__all__ = ["REMEDIES", "tell_shortfall"]

REMEDIES: dict[str, str] = {
    Reason.UNSEEN: "a higher --severity, or a lower [gate] visible or change",
    Reason.COPY: "a higher [generate] strength, --normals of other parts, or shots of more parts",
    Reason.STRAYED: "a lower [generate] strength or feather: what is seen to change lies off the label",
    Reason.LABEL: "[gate] refit = true, or masks matched first (masks RUN --source matched)",
    Reason.PART: "a higher --severity, or masks matched first (masks RUN --source matched)",
    Reason.UNLIKE: "a lower [generate] strength or [gate] strict; or train longer into another folder",
    Reason.OTHER: "a lower [gate] margin; or train with more shots of both types into another folder",
}


def tell_shortfall(slots: Sequence[Slot], records: Sequence[dict[str, Any]], attempts: int, quiet: bool) -> None:
    """Say how many were accepted; that a defect type did not reach its number, why, and what helps is said to the quiet too.

    Raises `GenerationError` where nothing could be drawn of a type, or nothing that was drawn was accepted.
    """
    for key, num in Counter(slot.key for slot in slots).items():
        own = [r for r in records if (r["product"], r["defect"]) == key]
        made, often = len(accepted(own)), _mostly(own)
        remedy = f" and {REMEDIES[often]}" if often else ""
        if not own:
            raise GenerationError(f"{'/'.join(key)}: nothing could be drawn; the run's left_out.jsonl says why, or its shards' own")
        if made == 0:
            why = f", mostly as '{often}'" if often else ""
            raise GenerationError(f"{'/'.join(key)}: all {len(own)} attempts were rejected{why}; draw anew with --no-resume{remedy}")
        say(f"{'/'.join(key)}: {made} accepted of {len(own)} drawn" + (f", mostly rejected as '{often}'" if often else ""), quiet=quiet)
        if made < num:
            anew = f", --no-resume begins anew: give it {REMEDIES[often]}" if often else ""
            say(f"{'/'.join(key)}: {num - made} short of {num}; --attempts {2 * attempts} goes on{anew}")


def _mostly(records: Sequence[dict[str, Any]]) -> str:
    """The gate's most frequent reason for a refusal, of equally frequent ones the first by name; "" where it refused nothing."""
    refused = [record["reasons"] for record in records if not record["accepted"]]
    given = Counter(kind for reasons in refused for kind in {reason_of(reason) for reason in reasons} if kind in REMEDIES)
    return min(given, key=lambda kind: (-given[kind], kind), default="")
