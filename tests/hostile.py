"""Hostile versions of valid files, for property tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from anomalydiffusion.core.errors import AnomalyDiffusionError

ODD: list[Any] = [
    None, True, -1, 0, 10**400, 1e308, math.nan, math.inf, "", "x", "../../x", "/etc/hostname", "..", "a/b", "a\\b", "a\0b", "\ud800",
    "=1+1", "é" * 300, "9" * 5000, [], [[]], {}, [None], {"a": 1}, [1, "2"],
]  # fmt: skip
DEEP = "deep\u2603"  # stands for what `json.dumps` could not write


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    own = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [place for key, inner in own for place in ((value, key), *_nodes(inner))]


@st.composite
def spoilt(draw: st.DrawFn, whole: Any) -> bytes:
    """JSON of a valid value, one or two of whose parts are of another kind, nested without end, or gone."""
    found = deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        if places := _nodes(found):
            holder, key = draw(st.sampled_from(places))
            if draw(st.integers(0, 4)):
                holder[key] = deepcopy(draw(st.sampled_from([*ODD, DEEP])))
            else:
                del holder[key]
    depth = draw(st.sampled_from([50, 900, 940, 960, 10_000]))
    return json.dumps(found).replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()


@st.composite
def damaged(draw: st.DrawFn, *wholes: bytes) -> bytes:
    """A valid file, cut, changed in a byte, or with something put in."""
    whole = draw(st.sampled_from(wholes))
    place = draw(st.integers(0, len(whole)))
    put = draw(st.sampled_from([b"", b"\0", b"\xff\xff\xff\xff", b"../", b"9" * 5000, b"[" * 900, b"=1", b'"', b"\n", b"\xed\xa0\x80"]))
    return whole[:place] + put + whole[draw(st.sampled_from([place, place + 1, place + 4, len(whole)])) :]


def refused(call: Callable[[], object]) -> str:
    """What a call says when it refuses: our own error, which names something and what to do; "" where it does not refuse."""
    try:
        call()
    except AnomalyDiffusionError as error:
        text = " ".join(str(error).split())
        assert (": " in text or "; " in text) and len(text) < 3000
        return text
    return ""
