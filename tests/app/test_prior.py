"""A prior is described in figures, and in pictures where they are asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anomalydiffusion.app.cli import app
from anomalydiffusion.app.prior import SAMPLES, prior_info
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.pixels import encode_png, read_image
from anomalydiffusion.core.runs import write_atomic
from anomalydiffusion.priors.load import load_prior


def test_a_sheet_has_a_line_for_each_caption(small_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    said = prior_info(str(small_folder), samples=sheet, caption=["a crack on metal", "a photo of metal"])
    assert said["working_size"] == 64 and sum(said["parameters"].values()) > 0
    height, width = read_image(sheet).shape[:2]
    assert 64 * SAMPLES < width < 80 * SAMPLES and 2 * 64 < height < 4 * 64


def test_what_the_autoencoder_loses_is_told_in_three_ways(small_folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, side in enumerate((64, 80)):
        write_atomic(tmp_path / f"{number}.png", encode_png(random.integers(0, 255, (side, side, 3), dtype=np.uint8)))
    kept = prior_info(str(small_folder), images=tmp_path)["autoencoder_keeps"]
    assert set(kept) == {"images", "psnr", "gradient_energy_ratio", "perceptual_distance"}
    assert kept["images"] == 2 and kept["psnr"] < 20 and 0.1 < kept["perceptual_distance"] < 4  # random weights keep next to nothing
    with pytest.raises(DataError, match="no pictures found"):
        prior_info(str(small_folder), images=tmp_path / "none")


@pytest.mark.parametrize("given", [{"samples": Path("sheet.png")}, {"caption": ["a crack"]}])
def test_a_sheet_needs_words_and_words_a_sheet(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        prior_info("no/such/prior", **given)  # type: ignore[arg-type]


def test_figures_are_printed_for_readers_and_as_json(small_folder: Path) -> None:
    lines = CliRunner().invoke(app, ["prior", "info", str(small_folder)]).stdout.splitlines()
    figures = json.loads(CliRunner().invoke(app, ["prior", "info", str(small_folder), "--json"]).stdout)
    assert figures == prior_info(str(small_folder))
    assert len(lines) == len(figures)
    said = {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    assert said["working size"] == "64" and said["digest"] == figures["digest"]
    assert f"unet {figures['parameters']['unet']:,}" in said["parameters"]


def test_memory_is_what_the_weights_take_once_loaded_in_each_format(small_folder: Path) -> None:
    told = prior_info(str(small_folder))["megabytes"]
    assert set(told) == {"float32", "bfloat16", "float16"}
    for name, megabytes in told.items():
        prior = load_prior(str(small_folder), dtype=getattr(torch, name))
        held = sum(p.nbytes for part in (prior.vae, prior.unet, prior.text_encoder) for p in part.parameters())
        assert megabytes == round(held / 1e6, 1)
    assert told["bfloat16"] < told["float16"] < told["float32"]
