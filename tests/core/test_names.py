"""Names from files stay where they are looked up."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion.core.errors import DataError
from anomalydiffusion.core.names import at_home, is_below, is_folder, placed_at, shown, strays


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..\\x", "a\\..\\x", "C:\\x", "c:x", "\\\\host\\x", "a\0b", ".."])
def test_what_leads_elsewhere_strays(name: str) -> None:
    assert strays(name) and not is_below(name) and not is_folder(name)


@pytest.mark.parametrize("name", ["", "\ud800", "x" * 256, "é" * 200, "a/" * 2000 + "x", None, 3, ["x"]])
def test_what_no_file_can_be_called_is_no_name(name: object) -> None:
    assert not is_below(name) and not is_folder(name)


@pytest.mark.parametrize(
    ("name", "folder"), [("a", True), ("a/b.png", False), ("a..b", True), ("=1+1", True), ("größe", True), (".", False)]
)
def test_plain_names_are_names(name: str, folder: bool) -> None:
    assert is_below(name) and is_folder(name) is folder


@given(st.text(max_size=12))
def test_a_folder_is_one_step_down(name: str) -> None:
    if is_folder(name):
        assert not set(name) & set("/\\\0") and name not in ("", ".", "..")


def test_what_is_shown_is_short() -> None:
    nested: list = []
    for _ in range(900):
        nested = [nested]
    assert all(len(shown(value)) < 2000 for value in (nested, "x" * 10**6, 10**4000, {"a": ["b" * 10**6] * 1000}))
    assert shown("a.png") == "'a.png'"


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    round_and_round = tmp_path / "link"
    round_and_round.symlink_to(round_and_round)
    for odd in ("~of-nobody-here/data", round_and_round):
        with pytest.raises(DataError, match="no such place"):
            placed_at(odd)
    with pytest.raises(DataError, match="no such place"):
        at_home("~of-nobody-here")
