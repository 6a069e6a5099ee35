"""Hugging Face's `datasets` and anomalib themselves read what is exported for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.report.export import export

from .conftest import SIZES, defect_mask, texture
from .test_formats import keep_one_source

if TYPE_CHECKING:
    from anomalib.data import MVTecAD


def masks_of(run: Path) -> dict[str, np.ndarray]:
    """Each accepted pair's mask by its image's SHA-256."""
    records = accepted(Manifest(run / "manifest.jsonl").records())
    return {record["image_sha256"]: np.asarray(Image.open(run / record["mask"])) > 0 for record in records}


@pytest.mark.parametrize("by_card", [False, True], ids=["imagefolder", "the card"])
def test_datasets_reads_images_masks_and_lineage(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_card: bool) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from datasets import load_dataset

    summary = export(run, tmp_path / "out", "imagefolder")
    asked = {"path": str(tmp_path / "out")} if by_card else {"path": "imagefolder", "data_dir": str(tmp_path / "out")}
    found = load_dataset(**asked, cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation"}
    assert sum(len(rows) for rows in found.values()) == sum(summary.counts.values()) + sum(summary.normals.values())
    records = {record["seed"]: record for record in accepted(Manifest(run / "manifest.jsonl").records())}
    for rows in found.values():
        for row in rows:
            assert row["mask"].size == row["image"].size and row["mask"].mode == "L"
            record = records.pop(row["seed"], None)
            assert row["generated"] == (record is not None)
            if record is None:
                assert row["seed"] == -1 and np.asarray(row["mask"]).max() == 0
                continue
            assert {name: row[name] for name in record.keys() & row.keys() - {"image", "mask"}} == {
                name: record[name] for name in record.keys() & row.keys() - {"image", "mask"}
            }
            assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(run / record["image"])))
            assert np.array_equal(np.asarray(row["mask"]), np.asarray(Image.open(run / record["mask"])))
    assert not records


def test_datasets_reads_a_split_without_any_generated_image(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from datasets import load_dataset

    keep_one_source(run)
    export(run, tmp_path / "out", "imagefolder")
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert found["train"].features == found["validation"].features and not any(found["validation"]["generated"])


@pytest.mark.slow
def test_anomalib_reads_folders_and_textures(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib.data import AnomalibDataModule, Folder
    from anomalib.models import Draem

    summary = export(run, tmp_path / "out", "anomalib")
    pairs = [json.loads(line) for line in (tmp_path / "out/lineage.jsonl").read_text().splitlines()]
    image_of = {str(tmp_path / "out" / row["exported_image"]): row["record"] for row in pairs if "record" in row}
    masks = masks_of(run)
    for product, normals in summary.normals.items():
        monkeypatch.chdir(tmp_path / "out" / product)  # as the YAML's first line says; the second line's way comes below
        module = AnomalibDataModule.from_config("folder.yaml", **{"data.init_args.num_workers": 0})
        assert isinstance(module, Folder) and module.name == product
        module.setup()
        count = sum(number for key, number in summary.counts.items() if key[0] == product)
        parts = [module.train_data, module.val_data, module.test_data]
        assert len({path for part in parts for path in part.samples.image_path}) == normals + count
        assert set(module.train_data.samples.label_index) == {0} and module.task == "segmentation"
        met = 0
        for item in (part[index] for part in parts[1:] for index in range(len(part))):
            if not item.gt_label:
                continue
            met += 1
            mask = masks[image_of[item.image_path]["image_sha256"]]
            assert np.array_equal(item.gt_mask.numpy().astype(bool), mask) and item.image.shape[-2:] == mask.shape
        assert met == count
        source = Draem(dtd_dir="textures").augmenter  # downloads another data set where there is no such folder
        assert sorted(source.anomaly_source_paths) == sorted(Path("textures").rglob("*.png")) and len(source.anomaly_source_paths) == count
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path / "out/tile")
    module = AnomalibDataModule.from_config("out/tile/folder.yaml", **{"data.init_args.root": root})
    module.setup()
    assert len(module.train_data) + len(module.val_data) + len(module.test_data) == 9


def _tiles(run: Path) -> MVTecAD:
    """The product that the run's tiles are of, as anomalib reads it; with its masks, and enough normal images to hold some back."""
    from anomalib.data import MVTecAD

    folder = run.parent / "data/tile"
    for index in range(3, 8):
        Image.fromarray(texture("tile", 100 + index)).save(folder / "train/good" / f"{index}.png")
    (folder / "ground_truth/crack").mkdir(parents=True, exist_ok=True)
    for path in (folder / "test/crack").iterdir():
        Image.fromarray(defect_mask("crack", SIZES["tile"], 3)).save(folder / "ground_truth/crack" / f"{path.stem}_mask.png")
    return MVTecAD(root=folder.parent, category="tile", train_batch_size=2, eval_batch_size=2, num_workers=0, seed=1)


@pytest.mark.slow
def test_anomalib_sets_its_thresholds_by_generated_pairs_and_by_no_test_image(run: Path, tmp_path: Path) -> None:
    import lightning
    from anomalib.engine import Engine
    from anomalib.models import Padim

    module = ad.add_generated(_tiles(run), run, product="tile")
    lightning.seed_everything(0)
    model = Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=8)
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, barebones=False)
    engine.fit(model, datamodule=module)
    made = {str(run / record["image"]) for record in accepted(Manifest(run / "manifest.jsonl").records()) if record["product"] == "tile"}
    seen = {part: set(getattr(module, f"{part}_data").samples.image_path) for part in ("train", "val", "test")}
    assert made and made < seen["val"] and not made & (seen["train"] | seen["test"])
    normals = {str(path) for path in (run.parent / "data/tile/train/good").glob("*.png")}
    assert (seen["train"] | seen["val"]) == normals | made and not seen["train"] & seen["val"]
    masks = masks_of(run)
    digests = {str(run / r["image"]): r["image_sha256"] for r in accepted(Manifest(run / "manifest.jsonl").records())}
    module.val_data.augmentations = None  # the model's own made them its size
    for item in module.val_data:
        truth = masks[digests[item.image_path]] if item.image_path in made else np.zeros(SIZES["tile"], bool)
        assert np.array_equal(item.gt_mask.numpy().astype(bool), truth) and bool(item.gt_label) == (item.image_path in made)
    (found,) = engine.test(model, datamodule=module)
    assert "pixel_AUROC" in found and bool(model.post_processor.pixel_threshold > 0)


@pytest.mark.slow
def test_anomalib_trains_on_generated_pairs_where_it_is_asked_to(run: Path) -> None:
    module = ad.add_generated(ad.add_generated(_tiles(run), run, product="tile"), run, to="train", product="tile", defect=["spot"])
    made: dict[str, list[str]] = {"crack": [], "spot": [], "scratch": []}
    for record in accepted(Manifest(run / "manifest.jsonl").records()):
        made[record["defect"]].append(str(run / record["image"]))
    for _ in range(2):  # parts that are read anew have the pairs once
        module.setup()
        trained = [path for path in module.train_data.samples.image_path if path.startswith(str(run))]
        assert sorted(trained) == sorted(made["spot"]) and len(module.train_data) > len(trained) and module.train_data.has_anomalous
        assert {*made["spot"], *made["crack"]} < set(module.val_data.samples.image_path)
    batch = next(iter(module.train_dataloader()))
    assert batch.image.ndim == 4 and batch.gt_mask.shape[-2:] == batch.image.shape[-2:]
    with pytest.raises(ConfigError, match="is set up already"):
        ad.add_generated(module, run, product="tile")
    for words, says in (({}, "has pairs of tile, wood"), ({"product": "glass"}, "unknown product"), ({"to": "test"}, "expected 'val' or")):
        with pytest.raises(ConfigError, match=says):
            ad.add_generated(_tiles(run), run, **words)
