"""One picture of a defect is enough for a run: nothing is trained, and every other command takes it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import anomalydiffusion as ad
from anomalydiffusion.app.reference import untrained
from anomalydiffusion.app.settings import resolve
from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError, DataError, RunError
from anomalydiffusion.core.pixels import encode_png, read_image, read_mask
from anomalydiffusion.core.types import Mask
from anomalydiffusion.priors.latent import LatentPrior
from tests.app.conftest import Spoken


@pytest.fixture
def given(made: Path) -> dict[str, object]:
    """What a user has: a picture, its mask, normal ones."""
    plate = made / "data" / "plate"
    return {
        "reference": plate / "test" / "hole" / "3.png", "reference_mask": plate / "ground_truth" / "hole" / "3_mask.png",
        "normals": plate / "train" / "good", "prior": str(made / "prior"), "config": made / "small.toml", "quiet": True,
    }  # fmt: skip


def _records(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]


def test_pairs_from_one_picture_go_on_and_go_through_every_other_command(given: dict[str, object], tmp_path: Path) -> None:
    run = tmp_path / "one"
    words = {**given, "product": ["plate"], "defect": ["hole"]}
    assert ad.generate(run, 2, **words, dry_run=True) == [] and not run.exists()
    ad.generate(run, 2, **words)
    before = _records(run)
    assert [r["reference"] for r in before] == [str(given["reference"])] * 2 and not any(p.name.startswith("train") for p in run.iterdir())
    ad.generate(run, 3, **words)  # typed again with a larger number, and as any other run
    ad.generate(run, 4, config=given["config"], quiet=True)
    assert _records(run)[:2] == before and len(_records(run)) == 4
    for record in _records(run):
        image, normal, mask = read_image(run / record["image"]), read_image(Path(record["normal"])), read_mask(run / record["mask"])
        assert mask.any() and (image != normal).any()
    again = ad.generate(run, like=run / _records(run)[1]["image"], quiet=True)
    assert again[0]["identical"]
    ad.curate(run, change=0.5, quiet=True)
    ad.export(run, tmp_path / "export", "coco")
    assert "hole" in ad.report(run).read_text()
    assert ad.AnomalyDiffusionPipeline.from_pretrained(run).defects == [("plate", "hole")]
    for task in ("localization", "quality"):
        with pytest.raises(DataError, match="no held-out defect image"):
            ad.evaluate(run, task=task, quiet=True)
    other = tmp_path / "other.png"
    other.write_bytes(encode_png(~read_mask(Path(str(given["reference_mask"])))))
    with pytest.raises(RunError, match=r"was begun with another mask than .*other\.png; give a new folder"):
        ad.generate(run, 5, **{**words, "reference_mask": other})
    with pytest.raises(RunError, match=r"was begun with other normal images than those in .*good; give a new folder"):
        ad.generate(run, 5, **{**words, "normals": Path(str(given["normals"])).parents[1] / "test" / "good"})


def test_nothing_is_learned_and_the_condition_is_the_defects_name(small_prior: LatentPrior) -> None:
    settings = resolve(base={"train": {"adapter": {"anomaly_tokens": 1, "spatial_tokens": 0, "lora_rank": 0}}})
    marks = np.zeros((40, 40), bool)
    marks[10:20, 10:30] = True
    shot = np.full((40, 40, 3), 90, np.uint8), Mask(pixels_HW=marks, origin="real")
    adapter = untrained(small_prior, settings, {("plate", "dark_hole"): [shot]})
    told = adapter.context([("plate", "dark_hole")], torch.ones(1, 1, 64, 64)).tokens_BND
    words = small_prior.word_embeddings(small_prior.tokenize("dark hole")).mean(0)
    assert (adapter.tokens.vectors[0] == words).all() and adapter.origin.steps == 0 and told.isfinite().all()


def test_what_is_missing_or_wrong_is_said_in_one_line_and_nothing_is_left(given: dict[str, object], made: Path, tmp_path: Path) -> None:
    run = tmp_path / "one"
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    empty, full = wrong / "empty.png", wrong / "full.png"
    shape = read_image(given["reference"]).shape[:2]  # type: ignore[arg-type]
    empty.write_bytes(encode_png(np.zeros(shape, bool)))
    full.write_bytes(encode_png(np.ones(shape, bool)))
    among = shutil.copytree(made / "data" / "plate" / "train" / "good", wrong / "good")
    shutil.copy(given["reference"], among / "9.png")  # type: ignore[call-overload]
    for change, error, match in [
        ({"reference_mask": None}, ConfigError, "--reference-mask"),
        ({"reference": None}, ConfigError, "is for --reference"),
        ({"normals": None}, ConfigError, "--normals"),
        ({"normals": wrong / "nowhere"}, DataError, "nowhere: no normal images"),
        ({"normals": among}, DataError, "9.png: is the picture with the defect"),
        ({"reference_mask": empty}, AnomalyDiffusionError, "empty.png: marks no pixel"),
        ({"reference_mask": full}, DataError, "full.png: marks every pixel"),
        ({"reference": wrong / "no.png"}, AnomalyDiffusionError, "no.png"),
        ({"defect": ["a", "b"]}, ConfigError, "give one name"),
        ({"defect": ["../up"]}, ConfigError, "plain word"),
        ({"defect": ["good"]}, ConfigError, "plain word"),
    ]:
        with pytest.raises(error, match=match):
            ad.generate(run, 1, **{**given, **change})  # type: ignore[arg-type]
        assert not run.exists(), change


def test_a_run_of_anything_else_is_not_touched(given: dict[str, object], made: Path, tmp_path: Path, spoken: Spoken) -> None:
    with pytest.raises(RunError, match="is a trained run"):
        ad.generate(made / "run", 1, **given)  # type: ignore[arg-type]
    run = tmp_path / "one"
    ad.generate(run, 1, **given)  # type: ignore[arg-type]
    other = made / "data" / "plate" / "test" / "hole" / "4.png"
    with pytest.raises(RunError, match="begun from another picture"):
        ad.generate(run, 1, **{**given, "reference": other})  # type: ignore[arg-type]
    code, said = spoken("generate", run, "--num", 1, "--reference", other, "--reference-mask", given["reference_mask"])
    assert code == 1 and "begun from another picture" in said and said.count("\n") == 1
