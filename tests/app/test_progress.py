"""What long work says of itself where there is no terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from anomalydiffusion.app import progress
from anomalydiffusion.app.progress import bar
from anomalydiffusion.app.tables import yield_table


def test_a_plain_line_says_how_fast_and_how_long_still(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with bar("train", 1000) as shown:
        shown.at(600, "loss 1.0")  # where an earlier command had stopped: not work of this one
        now[0] = 20.0
        shown.at(640, "loss 0.9")
        now[0] = 30.0
        shown.at(660, "loss 0.8")  # too soon for another line
        now[0] = 200.0
        shown.at(1000, "loss 0.7")
    assert capfd.readouterr().err.splitlines() == ["train: 640/1000 2.0/s loss 0.9, 0:03:00 left", "train: 1000/1000 2.0/s loss 0.7"]


def test_names_with_brackets_are_printed_as_they_are(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        progress, "_console", Console(file=(shown := StringIO()), force_terminal=True, markup=False, emoji=False, width=120)
    )
    with bar("learn crack[old]", 2) as own:
        own.at(2, "tile/crack[old] :smile:")
    assert "learn crack[old]" in shown.getvalue() and "tile/crack[old] :smile:" in shown.getvalue()
    yield_table({"tile/crack[old]": {"limits": {}, "reasons": {}, "drawn": 1, "kept_before": 1, "kept": 1, "label_overlap": 0.5}})
    assert "tile/crack[old]" in capfd.readouterr().out


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("train", 1, quiet=True) as shown:
        shown.at(1)
    assert capfd.readouterr() == ("", "")
