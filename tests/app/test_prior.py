"""A prior is described in figures, and in pictures where they are asked for."""

from pathlib import Path

import pytest

from anomalydiffusion.app.prior import SAMPLES, prior_info
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.pixels import read_image


def test_a_sheet_has_a_line_for_each_caption(small_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    said = prior_info(str(small_folder), samples=sheet, caption=["a crack on metal", "a photo of metal"])
    assert said["working_size"] == 64 and sum(said["parameters"].values()) > 0
    height, width = read_image(sheet).shape[:2]
    assert 64 * SAMPLES < width < 80 * SAMPLES and 2 * 64 < height < 4 * 64


@pytest.mark.parametrize("given", [{"samples": Path("sheet.png")}, {"caption": ["a crack"]}])
def test_a_sheet_needs_words_and_words_a_sheet(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        prior_info("no/such/prior", **given)  # type: ignore[arg-type]
