"""Hugging Face's `datasets` and anomalib themselves read what is exported for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.manifest import Manifest, accepted
from anomalydiffusion.report.export import export

from .test_formats import keep_one_source


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
