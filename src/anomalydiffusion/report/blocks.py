"""scores.json in blocks of a page: title, verdict, a table of arms, other figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anomalydiffusion.report.figures import GAIN, heading, is_figure, is_flat, short, text, words

__all__ = ["blocks"]

Record = dict[str, Any]


def blocks(value: Record | None, title: str = "") -> Iterator[Record]:
    """Blocks of the scores' page part, one a nested table: title, verdict, table of arms, other figures."""
    if not value:
        return
    arms = value.get("arms")
    facts = [(words(key), text(item)) for key, item in value.items() if key != "verdict" and is_flat(item)]
    table = _table(arms) if isinstance(arms, dict) else None
    if facts or table or value.get("verdict"):
        yield {"title": title, "verdict": str(value.get("verdict") or ""), "table": table, "facts": facts}
    for key, item in value.items():
        below = " · ".join(filter(None, (title, words(key))))
        if key == "masks" and isinstance(item, dict):  # of a defect type's arms, by `evaluate --task quality`
            table = _table({arm: _mask_figures(own) for arm, own in item.items()})
            units = [
                ("away from the shots'", "Wasserstein distance; area and elongation in doublings, margin in shares of the shorter side")
            ]
            yield {"title": below, "verdict": "", "table": table, "facts": units}
        elif isinstance(item, dict) and key not in ("arms", "curves"):
            yield from blocks(item, below)


def _mask_figures(own: Any) -> Record:
    """What `evaluate --task quality` says of an arm's masks, each figure with its distance from the shots' beside it."""
    own = own if isinstance(own, dict) else {}
    away = own.get("distance")
    away = away if isinstance(away, dict) else {}
    named = [name for name in own if name != "distance"]
    return {shown: value for name in named for shown, value in ((name, own[name]), (f"{name}_away", away.get(name)))}


def _table(arms: Record) -> Record:
    """Arms as lines, metrics as columns, the gain next to what it is of; each figure with its place (percent) on its column's scale."""
    arms = {arm: values for arm, values in arms.items() if isinstance(values, dict)}
    named = list(dict.fromkeys(key for values in arms.values() for key, value in values.items() if _figure(value)))
    others = [key for key in named if key != GAIN]
    metrics = [*others[:1], *(key for key in named if key == GAIN), *others[1:]]
    found = {arm: {key: _figure(values.get(key)) for key in metrics} for arm, values in arms.items()}
    spans = {}
    for key in metrics:
        figures = [figure for line in found.values() if (figure := line[key])]
        low, high = min(f[1] for f in figures), max(f[2] for f in figures)
        spans[key] = low, (high - low) or 1.0
    lines = []
    for arm, line in found.items():
        shown = []
        for key, figure in line.items():
            drawn = figure is not None and len(found) > 1
            bar = [round(100 * (value - spans[key][0]) / spans[key][1], 1) for value in figure] if figure and drawn else []
            interval = f"{short(figure[1])} – {short(figure[2])}" if figure and figure[1] != figure[2] else ""
            shown.append({"mean": short(figure[0]) if figure else "–", "interval": interval, "bar": bar})
        lines.append((arm, shown))
    return {"metrics": [heading(key) for key in metrics], "lines": lines}


def _figure(value: Any) -> tuple[float, float, float] | None:
    """Mean and interval of a score, whether a plain figure or a table with mean, low and high."""
    items: Record = value if isinstance(value, dict) else {"mean": value}
    mean, low, high = (items.get(key, items.get("mean")) for key in ("mean", "low", "high"))
    if not (is_figure(mean) and is_figure(low) and is_figure(high)):
        return None
    return float(mean), float(low), float(high)
