"""What `doctor` finds: one thing that is well, may be better, or is broken, each with its remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Health", "broken", "doubtful", "well"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; what is no "ok" has a remedy, and an "error" keeps this package from working."""

    name: str
    level: Literal["ok", "warning", "error"] = "ok"
    found: str
    remedy: str = ""


def well(name: str, found: str) -> Finding:
    return Finding(name=name, found=found)


def doubtful(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, level="warning", found=found, remedy=remedy)


def broken(name: str, found: str, remedy: str) -> Finding:
    return Finding(name=name, level="error", found=found, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Everything that was looked at. Of a run: `counts` of what it holds, whether it is `finished`, and the `next` command."""

    findings: tuple[Finding, ...]
    counts: dict[str, int] = field(default_factory=dict)
    finished: bool | None = None  # None without a run
    next: str = ""

    @property
    def ok(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}
