"""A picture can be drawn again from what it says of itself, by the run that drew it and by no other."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.imprint import KEY, read_imprint
from anomalydiffusion.core.pixels import encode_png
from tests.app.conftest import Spoken


def _records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]


def test_a_picture_is_drawn_again_from_itself(made: Path, tmp_path: Path, spoken: Spoken) -> None:
    before = (made / "run" / "manifest.jsonl").read_bytes()
    record = _records(made / "run")[-1]
    travelled = shutil.copy(made / "run" / record["image"], tmp_path / "found in a mail.png")
    code, said = spoken("generate", made / "run", "--like", travelled, "--output", tmp_path / "again.png")
    assert code == 0 and "the same pixels as" in said
    for name, again in (("image", "again.png"), ("mask", "again_mask.png")):
        assert hashlib.sha256((tmp_path / again).read_bytes()).hexdigest() == record[f"{name}_sha256"]
    assert (made / "run" / "manifest.jsonl").read_bytes() == before


def test_every_picture_says_so_and_the_function_does_the_same(made: Path) -> None:
    for record in _records(made / "run"):
        said = read_imprint(made / "run" / record["image"])
        for name in ("product", "defect", "seed", "attempt", "normal_sha256", "prior_digest", "adapter_digest", "steps", "severity"):
            assert getattr(said, name) == record[name]
        assert str(made).encode() not in (made / "run" / record["image"]).read_bytes()
    record = _records(made / "run")[0]
    (again,) = ad.generate(made / "run", like=made / "run" / record["image"], quiet=True)
    assert again["identical"] and Path(again["image"]).parent == made / "run" / "again" / record["product"] / record["defect"]
    assert {name: again[name] for name in again if name not in ("image", "mask", "identical")} == {
        name: record[name] for name in again if name not in ("image", "mask", "identical")
    }


def test_another_gate_changes_no_picture_and_a_fitted_label_is_fitted_again(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    ad.curate(run, refit=True, quiet=True)
    before, fitted = _records(made / "run"), _records(run)
    assert [record["image_sha256"] for record in fitted] == [record["image_sha256"] for record in before]
    changed = next(record for record in fitted if record["mask"] != record["requested_mask"])
    (again,) = ad.generate(run, like=run / changed["image"], output=tmp_path / "a.png", quiet=True)
    assert again["identical"] and again["mask_sha256"] == changed["mask_sha256"] and again["config_digest"] == changed["config_digest"]


def test_masks_and_normal_images_of_ones_own(made: Path, tmp_path: Path) -> None:
    run, own = shutil.copytree(made / "run", tmp_path / "run"), tmp_path / "own"
    (own / "masks").mkdir(parents=True)
    for row in range(3):
        mask = np.zeros((150, 170), np.uint8)
        mask[40 + 20 * row : 60 + 20 * row, 50:90] = 255
        Image.fromarray(mask).save(own / "masks" / f"{row}.png")
    shutil.copytree(made / "data" / "plate" / "train" / "good", own / "normals")
    ad.generate(run, 3, resume=False, defect=["hole"], masks=own / "masks", normals=own / "normals", severity=(0.5, 1.5), quiet=True)
    record = next(each for each in _records(run) if each["defect"] == "hole" and "/000002" in each["image"])
    moved = shutil.move(own, tmp_path / "elsewhere")
    with pytest.raises(DataError, match="own"):
        ad.generate(run, like=run / record["image"], quiet=True)
    (again,) = ad.generate(run, like=run / record["image"], masks=Path(moved) / "masks", normals=Path(moved) / "normals", quiet=True)
    assert again["identical"] and again["mask_sha256"] == record["mask_sha256"] and again["mask_origin"] == "user"


def test_a_picture_that_was_changed_since_is_told_from_its_pair(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = made / "run" / _records(made / "run")[0]["image"]
    pixels, said = np.array(Image.open(source)), read_imprint(source)
    pixels[3:5, 7] ^= 64
    for name, array, says in (
        ("painted", pixels, "in 2 of 25500 pixels, by at most 64"),
        ("cut", pixels[:100], "in size: that is 170 x 100"),
    ):
        (tmp_path / f"{name}.png").write_bytes(encode_png(array, said.chunk()))
        (again,) = ad.generate(made / "run", like=tmp_path / f"{name}.png", output=tmp_path / f"{name}-again.png", quiet=True)
        assert not again["identical"] and says in " ".join(capsys.readouterr().err.split())
        assert (tmp_path / f"{name}-again.png").read_bytes() == source.read_bytes()


def test_another_run_says_what_differs(made: Path, tmp_path: Path) -> None:
    like = made / "run" / _records(made / "run")[0]["image"]
    run = shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(run / "settings")
    with pytest.raises(RunError, match=r"its settings differ from what the picture names"):
        ad.generate(run, like=like, quiet=True)
    (run / "adapter" / "adapter.safetensors").write_bytes(b"another")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "prior_digest": "another"}))
    with pytest.raises(RunError, match=r"its prior and adapter and settings differ"):
        ad.generate(run, like=like, quiet=True)
    foreign = tmp_path / "foreign.png"
    text = {KEY: read_imprint(like).chunk()[KEY].replace("hole", "x" * 200)}
    foreign.write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8), text))
    with pytest.raises(DataError, match=r"is of '.*\.\.\..*', which .* does not know"):
        ad.generate(made / "run", like=foreign, quiet=True)


def test_a_normal_image_that_is_gone_or_changed(made: Path, tmp_path: Path, spoken: Spoken) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    data = shutil.copytree(made / "data", tmp_path / "data")
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "root": str(data)}))
    record = _records(run)[0]
    normal = data / Path(record["normal"]).relative_to(made / "data")
    whole = normal.read_bytes()
    normal.write_bytes(encode_png(np.zeros((150, 170, 3), np.uint8)))
    with pytest.raises(DataError, match="changed since the split was made"):
        ad.generate(run, like=run / record["image"], quiet=True)
    normal.unlink()
    code, said = spoken("generate", run, "--like", run / record["image"])
    assert code == 1 and said.count("\n") == 1 and f"{normal.name}: no such file, but the split names it" in said
    normal.write_bytes(whole)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "other.png").write_bytes(encode_png(np.full((150, 170, 3), 120, np.uint8)))
    with pytest.raises(DataError, match=r"no normal image of plate has the SHA-256 [0-9a-f]{16}\.\.; give the one that was drawn on"):
        ad.generate(run, like=run / record["image"], normals=tmp_path / "kept", quiet=True)
    (tmp_path / "kept" / "renamed.png").write_bytes(whole)
    (again,) = ad.generate(run, like=run / record["image"], normals=tmp_path / "kept", quiet=True)
    assert again["identical"]


def test_bad_words_get_one_line(made: Path, tmp_path: Path, spoken: Spoken) -> None:
    run, like = made / "run", made / "run" / _records(made / "run")[0]["image"]
    plain = tmp_path / "plain.png"
    plain.write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8)))
    (tmp_path / "mine_mask.png").write_text("mine")
    code, said = spoken("generate", run, "--like", plain)
    assert code == 1 and said.count("\n") == 1 and "does not say how it was drawn" in said
    for words, says in (
        ({}, "give --num, how many pairs, or --like"),
        ({"like": like, "num": 4}, "leave --num away"),
        ({"like": like, "seed": 0, "resume": False}, "leave --seed, --no-resume away"),
        ({"like": like, "output": tmp_path / "a.jpg"}, r"a new file that ends in \.png"),
        ({"like": like, "output": plain}, "is there already"),
        ({"like": like, "output": tmp_path / "mine.png"}, r"mine_mask\.png is there already"),
        ({"num": 1, "output": tmp_path / "a.png"}, "--output: is for --like"),
    ):
        with pytest.raises(ConfigError, match=says):
            ad.generate(run, **words)
    assert ad.generate(run, 1, like=like, dry_run=True, quiet=True) == []
