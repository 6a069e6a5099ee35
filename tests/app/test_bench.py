"""The benchmark measures what it names; it is not asked how fast."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anomalydiffusion.app.bench import bench
from anomalydiffusion.app.cli import app
from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError


def test_every_part_is_measured_and_printed_as_json(small_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text("[generate]\nsteps = 2\nbatch_size = 2\n[train]\nbatch_size = 2\n")
    out = CliRunner().invoke(app, ["bench", "--prior", str(small_folder), "--config", str(config), "--repeat", "2", "--json"])
    assert out.exit_code == 0, out.output
    found = json.loads(out.stdout)
    ours, limits = found["ours"], found["limit_gflops"]
    assert limits["float32"] > 0 and "float16" not in limits and found["hardware"]["device"] == "cpu"
    for name in ("call", "embed", "encode", "decode", "mask_warped", "mask_learned", "pair", "pair_default", "pair_fast", "train_step"):
        assert 0 < ours[name]["least"] <= ours[name]["median"] <= ours[name]["most"]
    plain, ratios = found["plain"], found["ratios"]
    sides = {"call": ("call", "call"), "pair_default": ("pair", "pair_default"), "pair_fast": ("pair", "pair_fast"),
             "train_step": ("train_sample", "train_sample")}  # fmt: skip
    expected = {name: plain[published]["median"] / ours[own]["median"] for name, (published, own) in sides.items()}
    assert ratios == pytest.approx({**expected, "memory": plain["peak_mb"]["pair"] / ours["peak_mb"]["pair"]})
    assert plain["steps"] == 200 and {"pair_embedding_each_step", "pair_reweighted"} < set(plain)
    assert list(plain["peak_mb"]) == ["call", "pair", "train"] and plain["peak_mb"]["pair"] > 50
    assert ours["share"] == pytest.approx(ours["call_gflop"] / ours["call"]["median"] / limits["float32"])
    assert ours["call_gflop"] > 0 and ours["pairs_per_second"] > 0
    assert list(ours["peak_mb"]) == ["start", "load", "call", "pair", "generate", "train"] and ours["peak_mb"]["start"] > 50


def test_a_reader_gets_a_table(small_folder: Path) -> None:
    out = CliRunner().invoke(app, ["bench", "--prior", str(small_folder), "--what", "call", "--repeat", "1"])
    assert out.exit_code == 0, out.output
    (row,) = (line for line in out.stdout.splitlines() if "one call of the denoiser" in line)
    ours, plain, ratio = (float(word) for word in row.split() if word[0].isdigit())
    assert ratio == pytest.approx(plain / ours, abs=0.06, rel=0.02) and "GFLOP/s: float32" in out.stdout


def test_only_what_is_asked_and_nothing_unknown(small_folder: Path) -> None:
    whole = bench(str(small_folder), what="call", repeat=1, plain=False, quiet=True)
    found = whole["ours"]
    assert "call" in found and "pair" not in found and "train_step" not in found and not {"plain", "ratios"} & set(whole)
    loaded = bench(str(small_folder), what="load", repeat=1, quiet=True)["ours"]
    assert loaded["load"] > 0 and "call" not in loaded
    masks = bench(str(small_folder), what="masks", repeat=1, quiet=True)
    assert masks["ours"]["mask_learned"]["least"] > 0 and "pair" not in masks["ours"] and "plain" not in masks
    with pytest.raises(ConfigError, match="--what fly: known are load, call, masks, generate, train, all"):
        bench(str(small_folder), what="fly")
    with pytest.raises(ConfigError, match="no processor computes in it"):
        bench(str(small_folder), dtype="float16")


def test_what_the_plain_way_cannot_use_is_said_like_anything_else(tmp_path: Path) -> None:
    with pytest.raises(AnomalyDiffusionError, match=rf"^{tmp_path}/none: no such prior; give"):
        bench(str(tmp_path / "none"), what="call", repeat=1, quiet=True)


def test_what_compiling_takes_is_told(small_folder: Path) -> None:
    typed = ["bench", "--prior", str(small_folder), "--what", "call", "--repeat", "1", "--no-plain", "--compile"]
    out = CliRunner().invoke(app, typed)
    assert out.exit_code == 0, out.output
    (line,) = (line for line in out.stdout.splitlines() if "loaded in" in line and "compiled in" in line)
    assert float(line.split("compiled in ")[1].split()[0]) >= 0 and "one call of the denoiser" in out.stdout
