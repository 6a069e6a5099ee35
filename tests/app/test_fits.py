"""Which defect types have matched masks is found from shots and normal images alone, once, and is what everything goes by."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.app.fits import as_noted, settled
from anomalydiffusion.app.opened import run_settings, run_split
from anomalydiffusion.app.settings import MaskConfig, Settings
from anomalydiffusion.app.source import Source
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Split
from anomalydiffusion.data.folders import read_folder
from anomalydiffusion.data.split import few_shot_split
from tests.app.conftest import SMALL, Spoken
from tests.conftest import build_prior_folder

BREAK, SPOT = ("board", "break"), ("board", "spot")
OPEN = Settings(masks=MaskConfig(source="auto"))


def board(seed: int) -> tuple[np.ndarray, list[int]]:
    """Dark tracks on bright ground, and where each begins: a quarter of the picture."""
    random = np.random.default_rng(seed)
    image = random.integers(196, 204, (128, 160, 3)).astype(np.uint8)
    starts = [left + int(random.integers(0, 16)) for left in range(8, 140, 36)]
    for start in starts:
        image[:, start : start + 9] = random.integers(56, 64, (128, 9, 3))
    return image, starts


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Breaks of tracks, which are one only on a track, and red spots, which are one anywhere."""
    root = tmp_path_factory.mktemp("boards")
    for part, count in (("train/good", 6), ("test/good", 2)):
        for index in range(count):
            save(root / "board" / part / f"{index}.png", board(index + 100 * (part == "test/good"))[0])
    for index in range(6):
        (image, starts), random = board(200 + index), np.random.default_rng(index)
        mask = np.zeros(image.shape[:2], bool)
        top = int(random.integers(20, 100))
        mask[top : top + 8, starts[1] : starts[1] + 9] = True
        image[mask] = 200
        save(root / "board" / "test" / "break" / f"{index}.png", image)
        save(root / "board" / "ground_truth" / "break" / f"{index}_mask.png", mask.astype(np.uint8) * 255)
        image, _ = board(300 + index)
        mask = np.hypot(*(np.mgrid[:128, :160] - random.integers(20, 100, (2, 1, 1)))) < 7
        image[mask] = (230, 30, 30)
        save(root / "board" / "test" / "spot" / f"{index}.png", image)
        save(root / "board" / "ground_truth" / "spot" / f"{index}_mask.png", mask.astype(np.uint8) * 255)
    return root


@pytest.fixture
def split(boards: Path) -> Split:
    return few_shot_split(read_folder(boards))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def test_a_defect_that_is_one_only_in_its_place_has_matched_masks_and_another_warped_ones(split: Split, run: Run) -> None:
    found = settled(run, OPEN, split, quiet=True)
    assert found.masks.matched_for == ("board/break",)
    assert (found.masks.kind(BREAK), found.masks.kind(SPOT)) == ("matched", "warped")


def test_held_out_images_and_pictures_of_pairs_are_not_looked_at(split: Split, run: Run) -> None:
    blind = replace(split, held_out=(), held_out_normals=())
    assert settled(run, OPEN, blind, quiet=True).masks.matched_for == ("board/break",)


def test_what_was_found_is_kept_until_what_it_follows_from_changes(split: Split, run: Run) -> None:
    settled(run, OPEN, split, quiet=True)
    kept = json.loads((run.folder / "run.json").read_text())["matched_masks"]
    run.update(matched_masks={**kept, "for": ["board/spot"]})  # a mark, by which what is kept is told from what is found
    again = Run.open(run.folder)
    assert settled(again, OPEN, split, quiet=True).masks.matched_for == ("board/spot",)
    other = replace(OPEN, generate=replace(OPEN.generate, steps=5, severity=0.5), gate=replace(OPEN.gate, visible=0.5), dtype="bfloat16")
    assert settled(again, other, split, quiet=True).masks.matched_for == ("board/spot",), "nothing of that decides"
    normals = split.normals[0].path.parent
    for settings, folder in ((replace(OPEN, seed=1), None), (OPEN, normals)):
        assert settled(again, settings, split, folder, note=False, quiet=True).masks.matched_for == ("board/break",)
    assert json.loads((run.folder / "run.json").read_text())["matched_masks"]["for"] == ["board/spot"], "unless it may be noted"


@pytest.mark.parametrize("record", [None, 3, [], {"for": 3}, {"for": [1]}, {"asked": 1}])
def test_a_record_that_is_none_is_found_anew(split: Split, run: Run, record: object) -> None:
    run.update(matched_masks=record)
    assert as_noted(run, OPEN) == OPEN
    assert settled(run, OPEN, split, quiet=True).masks.matched_for == ("board/break",)
    assert as_noted(run, OPEN).masks.matched_for == ("board/break",)


@pytest.mark.parametrize(
    "masks", [MaskConfig(source="warped"), MaskConfig(source="matched"), MaskConfig(source="auto", matched_for=("board/spot",))]
)
def test_what_the_user_said_stays(split: Split, run: Run, masks: MaskConfig) -> None:
    own = replace(OPEN, masks=masks)
    assert settled(run, own, split, quiet=True) == as_noted(run, own) == own
    assert "matched_masks" not in run.record


def test_a_run_s_pairs_its_gate_and_its_pipeline_go_by_it(boards: Path, tmp_path: Path, spoken: Spoken) -> None:
    config = tmp_path / "small.toml"
    config.write_text(SMALL + '[masks]\nsource = "auto"\n')
    prior = build_prior_folder(tmp_path / "prior")
    ad.train(boards, tmp_path / "run", prior=str(prior), config=config, quiet=True)
    code, said = spoken("generate", tmp_path / "run", "--num", 2)
    assert code == 0 and said.count("where the surroundings are alike for board/break;") == 1
    opened = Run.open(tmp_path / "run")
    origins = {(record["defect"], record["mask_origin"]) for record in Manifest(opened.manifest).pairs()}
    assert origins == {("break", "matched"), ("spot", "warped")}
    gate = Source(run_split(opened), as_noted(opened, run_settings(opened)), None, None)
    assert {each.mask.origin for each in gate.carried(BREAK, 2)} == {"matched"}
    before = opened.manifest.read_bytes()
    assert spoken("generate", tmp_path / "run", "--num", 2)[0] == 0 and opened.manifest.read_bytes() == before
    kept = next(record for record in Manifest(opened.manifest).pairs() if record["defect"] == "break")
    again = ad.generate(opened.folder, like=opened.folder / kept["image"], output=tmp_path / "again.png", quiet=True)
    assert again[0]["identical"]
    normal = next((boards / "board" / "train" / "good").iterdir())
    saved = ad.AnomalyDiffusionPipeline.from_pretrained(opened.folder).save_pretrained(tmp_path / "saved")
    for folder in (opened.folder, saved):
        pipe = ad.AnomalyDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert {defect: pipe(normal, defect=defect).provenance.mask_origin for defect in ("break", "spot")} == {
            "break": "matched", "spot": "warped",
        }  # fmt: skip
    code, said = spoken("masks", opened.folder, "--num", 1, "--source", "matched")
    assert code == 0 and "drawn on matched masks" in said
    code, said = spoken("masks", opened.folder, "--num", 1, "--source", "auto")
    assert code == 0 and "pairs are drawn on masks like these" in said
