"""Verdicts by hand -> the gate's thresholds that agree with them best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.quality.gate import FEWEST, GateConfig

__all__ = ["Agreed", "Judged", "agree"]

VISIBLE = np.arange(101) / 20  # 0 .. 5: thresholds that are tried
STRICT = np.arange(1, 101) / 10  # 0.1 .. 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A pair that somebody kept or rejected by hand, and what the gate measures of it."""

    kept: bool
    visible: float  # change in the mask over the normal variation around it
    depth: float  # `Gate.depth`; -inf = nothing to tell
    refused: bool = False  # by other limits, whatever these two are


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Thresholds, and how they agree with verdicts by hand, as those before did."""

    visible: float
    strict: float
    before: tuple[float, float]  # `visible` and `strict`
    kept: int
    rejected: int
    wrongly_refused: tuple[int, int]  # of the kept ones, before and with these thresholds
    wrongly_passed: tuple[int, int]  # of the rejected ones

    @property
    def says(self) -> str:
        """One line for a reader."""
        moved = ", ".join(f"{name} {old:g} -> {new:g}" if old != new else f"{name} stays {new:g}" for name, old, new in
                          zip(("visible", "strict"), self.before, (self.visible, self.strict), strict=True))  # fmt: skip
        return (
            f"{moved}; of {self.rejected} rejected by hand the gate passes {self.wrongly_passed[1]} (before: {self.wrongly_passed[0]}), "
            f"of {self.kept} kept by hand it refuses {self.wrongly_refused[1]} (before: {self.wrongly_refused[0]})"
        )


def agree(judged: Sequence[Judged], config: GateConfig, given: Collection[str] = ()) -> Agreed:
    """Choose `visible` and `strict` by verdicts: the least share of kept pairs refused plus share of rejected pairs passed.

    Of those that agree equally well, the ones nearest to `config`, each in units of its default: limits move no farther than verdicts ask.
    What is named in `given` stays as in `config`, and so does `strict` where it is 0. Raises `DataError` with fewer than 3 verdicts of
    either kind.
    """
    kept = np.array([each.kept for each in judged], bool)
    if min(kept.sum(), (~kept).sum()) < FEWEST:
        raise DataError(f"{kept.sum()} kept and {(~kept).sum()} rejected by hand; limits are drawn from {FEWEST} of each at least")
    tried = {"visible": VISIBLE, "strict": STRICT if config.strict else np.zeros(0)}
    first, second = (np.unique([*(() if name in given else own), getattr(config, name)]) for name, own in tried.items())
    open_to = ~np.array([each.refused for each in judged], bool)
    seen = np.array([each.visible for each in judged]) >= first[:, None]
    deep = np.array([each.depth for each in judged]) <= (second[:, None] if config.strict else np.full((1, 1), np.inf))
    refused = kept.sum() - (seen * (kept & open_to)).astype(int) @ deep.T.astype(int)  # by pairs of thresholds
    passed = (seen * (~kept & open_to)).astype(int) @ deep.T.astype(int)
    wrong = refused / kept.sum() + passed / (~kept).sum()
    plain = GateConfig()
    far = np.abs(first - config.visible)[:, None] / plain.visible + np.abs(second - config.strict) / plain.strict
    best = np.unravel_index(np.lexsort((far.ravel(), wrong.round(9).ravel()))[0], wrong.shape)
    now = int(np.searchsorted(first, config.visible)), int(np.searchsorted(second, config.strict))
    return Agreed(
        visible=float(first[best[0]]), strict=float(second[best[1]]), before=(config.visible, config.strict), kept=int(kept.sum()),
        rejected=int((~kept).sum()), wrongly_refused=(int(refused[now]), int(refused[best])),
        wrongly_passed=(int(passed[now]), int(passed[best])),
    )  # fmt: skip
