"""Another pair is drawn in the place of one, with the settings that it was drawn with."""

import json
import shutil
from pathlib import Path

import pytest

import anomalydiffusion as ad
from anomalydiffusion.app.redraw import redraw
from anomalydiffusion.core.errors import ConfigError, RunError
from tests.app.conftest import Spoken


def test_a_place_is_filled_again_as_it_was(made: Path, tmp_path: Path, spoken: Spoken) -> None:
    run, normals = shutil.copytree(made / "run", tmp_path / "run"), made / "data" / "plate" / "train" / "good"

    def records() -> list[dict]:
        return [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]

    ad.generate(run, 2, resume=False, defect=["hole"], severity=(0.5, 1.5), normals=normals, seed=5, quiet=True)
    before = records()
    old = next(record for record in before if record["defect"] == "hole")
    words = redraw(run, old["image"])
    assert words[:4] == ["generate", str(run), "--num", "2"] and words[-4:] == ["--product", "plate", "--defect", "hole"]
    code, said = spoken(*words, "--quiet")
    assert code == 0, said
    after = {record["seed"]: record for record in records()}
    assert len(after) == len(before) + 1
    gone, new = after.pop(old["seed"]), next(record for record in after.values() if record["image"] == old["image"])
    assert not gone["accepted"] and gone["reasons"] == ["rejected by hand"] and (run / gone["image"]).is_file()
    assert new["accepted"] and new["attempt"] == 1 and new["config_digest"] == old["config_digest"]
    assert new["image_sha256"] != old["image_sha256"]
    assert [record for record in before if record["seed"] in after] == [after[each["seed"]] for each in before if each["seed"] in after]
    with pytest.raises(ConfigError, match="another attempt is kept in its place"):
        redraw(run, gone["image"])
    with pytest.raises(RunError, match="is not in the manifest, or was judged meanwhile"):
        redraw(run, "generated/gone.png")
    config = run / "config.toml"
    before = config.read_text()
    config.write_text(before.replace("[masks]\n", "[masks]\nalike = 4\n", 1))
    lines = (run / "manifest.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"was drawn without \[masks\] alike, which the run's config.toml has by now"):
        redraw(run, new["image"])
    config.write_text(before.replace("[masks.warped]\n", "[masks.warped]\ncarry = true\n", 1))
    with pytest.raises(ConfigError, match=r"was drawn without \[masks.warped\] carry, which"):
        redraw(run, new["image"])
    assert (run / "manifest.jsonl").read_bytes() == lines, "nothing was rejected"
    config.write_text(before)
    again = redraw(run, new["image"])
    assert again[again.index("--attempts") + 1] == str(1 + 1 + 5)
