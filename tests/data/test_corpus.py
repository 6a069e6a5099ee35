"""Photographs of textures get their names from the list beside them, or from their files."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.data.corpus import load_textures


def _photograph(path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)


def test_names_come_from_the_list_or_from_the_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("0000.png", "0001.png", "OldBrickWall-2.png"):
        _photograph(tmp_path / name)
    (tmp_path / "ATTRIBUTION.csv").write_text("file,licence,package,path\n0000.png,CC0,some 1.0,art/textures/mossy_stone01.jpg\n")
    with caplog.at_level(logging.WARNING):
        assert [name for _, name in load_textures(tmp_path)] == ["stone texture", "texture", "brick wall texture"]
    assert not caplog.records


def test_photographs_without_any_name_are_said_to_have_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _photograph(tmp_path / "0000.png")
    with caplog.at_level(logging.WARNING):
        assert [name for _, name in load_textures(tmp_path)] == ["texture"]
    assert "is ATTRIBUTION.csv missing" in caplog.text
