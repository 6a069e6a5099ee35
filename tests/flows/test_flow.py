"""The whole chain on toy data, through the command line, with a small real prior and very few steps."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.numpy import load_file
from scipy import ndimage
from torch.utils.data import DataLoader

import anomalydiffusion as ad
from anomalydiffusion.app import train as train_command
from anomalydiffusion.core.errors import ConfigError, DataError, GenerationError, MaskError, PriorError, RunError
from anomalydiffusion.core.pixels import read_image
from anomalydiffusion.core.runs import Run
from anomalydiffusion.priors.load import load_prior
from tests.conftest import build_prior_folder, build_released_folder

ARGS = ["--max-train-steps", "4"]


def _run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    out = subprocess.run([sys.executable, "-m", "anomalydiffusion", *map(str, words)], capture_output=True, text=True, check=False)
    assert not check or out.returncode == 0, out.stderr
    return out


def _data(root: Path) -> Path:
    """Grey streaked plates, two defect types, six images each; one file name with spaces, dots and unicode."""
    random = np.random.default_rng(0)
    for part, count in (("train/good", 4), ("test/good", 2), ("test/hole", 6), ("test/stain", 6)):
        for index in range(count):
            grey = 120 + 12 * ndimage.gaussian_filter1d(random.standard_normal((150, 170)), 6, axis=0) * 6
            image = np.repeat(np.clip(grey, 0, 255)[..., None], 3, axis=2)
            yy, xx = np.mgrid[:150, :170]
            name = f"tëst {index}.v1" if index == 0 else f"{index}"
            if part.startswith("test/") and part != "test/good":
                mask = np.hypot(yy - random.integers(40, 110), (xx - random.integers(40, 130)) / 1.5) < 12
                image[mask] *= 0.3 if part.endswith("hole") else 1.5
                target = root / "plate" / "ground_truth" / part.split("/")[1] / f"{name}_mask.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(target)
            target = root / "plate" / part / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(target)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("flow")
    config = base / "small.toml"
    # a gate that only refuses copies: four steps of training cannot make visible defects
    config.write_text(
        "[train.pool]\ncrops = 16\n[gate]\nvisible = 0.0\nchange = 0.0\nstrict = 0.0\n[generate]\nsteps = 3\nbatch_size = 3\n"
    )
    prior = build_prior_folder(base / "prior")
    _run("train", _data(base / "data"), "--output", base / "run", "--prior", prior, "--config", config, "--quiet", *ARGS)
    return base


def _records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]


def _same(a: list[dict], b: list[dict]) -> bool:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in a] == [{k: v for k, v in r.items() if k != "seconds"} for r in b]


def test_generate_export_report(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "first")
    _run("generate", run, "--num", 4, "--quiet")
    records = [r for r in _records(run) if r["accepted"]]
    assert {(r["defect"], sum(q["defect"] == r["defect"] for q in records)) for r in records} == {("hole", 4), ("stain", 4)}
    for record in records:
        image, normal = np.asarray(Image.open(run / record["image"])), np.asarray(Image.open(record["normal"]))
        mask = np.asarray(Image.open(run / record["mask"]))
        assert image.shape == normal.shape and mask.shape == image.shape[:2] and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        far = ndimage.distance_transform_edt(mask == 0) >= 3.0  # the feather's width
        assert (image[far] == normal[far]).all()
        x0, y0, x1, y1 = record["touched_box"]
        rest = np.ones(mask.shape, bool)
        rest[y0:y1, x0:x1] = False
        assert (image[rest] == normal[rest]).all()
        assert hashlib.sha256((run / record["image"]).read_bytes()).hexdigest() == record["image_sha256"]
    _run("export", run, "--output", trained / "export", "--format", "mvtec")
    exported = sorted((trained / "export" / "plate" / "test" / "hole").iterdir())
    assert [p.name for p in exported] == [f"{i:06d}.png" for i in range(4)]
    _run("report", run)
    page = (run / "report" / "index.html").read_text()
    assert "plate" in page and "http://" not in page.replace("http://www.w3.org", "")


def _whole(run: Path) -> list[dict]:
    """The manifest's records without times, their files there and as they were written."""
    records = _records(run)
    for record in records:
        for name in ("image", "mask"):
            assert hashlib.sha256((run / record[name]).read_bytes()).hexdigest() == record[f"{name}_sha256"]
        assert (run / record["requested_mask"]).is_file() and ("/rejected/" in record["image"]) != record["accepted"]
    named = {record[name] for record in records for name in ("image", "mask", "requested_mask")}
    assert named == {str(path.relative_to(run)) for path in (run / "generated").rglob("*.png")}
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_pairs_are_judged_anew_and_others_drawn_in_their_place(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "curated")
    _run("generate", run, "--num", 4, "--quiet")
    made = _whole(run)
    changes = sorted(record["measures"]["change"] for record in made)
    limit = (changes[1] + changes[2]) / 2
    _run("curate", run, "--change", limit, "--dry-run", "--quiet")
    assert _whole(run) == made
    figures = json.loads(_run("curate", run, "--change", limit, "--json").stdout)
    assert sum(own["kept"] for own in figures.values()) == 6
    assert sum(own["reasons"].get("not visible", 0) for own in figures.values()) == 2
    assert [record["accepted"] for record in _whole(run)] == [record["measures"]["change"] >= limit for record in made]
    _run("generate", run, "--num", 4, "--attempts", 40, "--quiet")
    strict = shutil.copytree(trained / "run", trained / "strict")
    config = trained / "strict.toml"
    config.write_text(f"[gate]\nchange = {limit}\n")
    _run("generate", strict, "--num", 4, "--attempts", 40, "--config", config, "--quiet")
    assert _whole(run) == _whole(strict) != made
    assert sum(record["accepted"] for record in _whole(run)) == 8
    _run("curate", run, "--change", 0, "--quiet")
    assert [record for record in _whole(run) if record["accepted"]] == [record for record in made if record["accepted"]]
    assert all(record["reasons"] == ["another attempt is kept"] for record in _whole(run) if not record["accepted"])


def test_labels_are_fitted_to_what_is_seen_and_back(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "refitted")
    _run("generate", run, "--num", 3, "--quiet")
    made = _whole(run)
    table = _run("curate", run, "--refit", "--strict", 2).stdout
    assert "overlap" in table and "plate/hole" in table
    fitted = _whole(run)
    assert any(record["mask_sha256"] != before["mask_sha256"] for record, before in zip(fitted, made, strict=True))
    for record in fitted:
        if record["mask"] != record["requested_mask"]:
            mask, asked = (np.asarray(Image.open(run / record[name])) > 0 for name in ("mask", "requested_mask"))
            assert (mask != asked).any() and ndimage.distance_transform_edt(~asked)[mask].max() <= 8
    limits = json.loads((run / "gate.json").read_text())["limits"]
    assert set(limits) == {"plate/hole", "plate/stain"} and all(own["agreement"] > 0 for own in limits.values())
    _run("curate", run, "--no-refit", "--strict", 0, "--quiet")
    assert _whole(run) == made
    lines = (run / "manifest.jsonl").read_text()
    (run / "manifest.jsonl").write_text(lines.replace('"reasons": []', '"reasons": ["is being judged anew"]', 1))
    out = _run("generate", run, "--num", 3, check=False)
    assert out.returncode == 1 and "were being judged when that was cut short" in out.stderr
    _run("curate", run, "--quiet")
    assert _whole(run) == made
    (run / made[0]["mask"]).write_bytes(b"")
    out = _run("curate", run, check=False)
    assert out.returncode == 1 and "gone or changed" in out.stderr and _records(run)


def test_batch_size_changes_nothing(trained: Path) -> None:
    made = []
    for size in (1, 4):
        run = shutil.copytree(trained / "run", trained / f"batch{size}")
        _run("generate", run, "--num", 2, "--batch-size", size, "--quiet")
        made.append((run, _records(run)))
    (one, first), (four, second) = made
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["mask_sha256"] == b["mask_sha256"] and a["seed"] == b["seed"]
        left, right = (np.asarray(Image.open(r / x["image"])).astype(int) for r, x in ((one, a), (four, b)))
        assert np.abs(left - right).max() <= 2


def test_learned_vectors_go_to_other_tools(trained: Path) -> None:
    _run("export", trained / "run", "--format", "embeddings", "--output", trained / "vectors", "--defect", "hole")
    (file,) = (trained / "vectors").rglob("*.safetensors")
    assert file.relative_to(trained / "vectors").as_posix() == "plate/hole/learned_embeds.safetensors"
    ((name, vectors),) = load_file(file).items()
    learned = load_file(trained / "run" / "adapter" / "adapter.safetensors")["tokens.vectors"]
    assert name == "<plate-hole>" and (vectors == learned[0]).all()
    from diffusers import StableDiffusionPipeline

    prior = load_prior(str(trained / "prior"))
    parts = {name: getattr(prior, name) for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.load_textual_inversion(str(file.parent), use_safetensors=True)
    rows = pipe.tokenizer("<plate-hole>" + "".join(f" <plate-hole>_{row}" for row in range(1, 8)), add_special_tokens=False).input_ids
    assert (pipe.text_encoder.get_input_embeddings().weight[rows].detach().numpy() == vectors).all()
    for words, says in (
        (("--format", "zip"), "known: mvtec, anomalib, coco, yolo, imagefolder, labelstudio, embeddings"),
        (("--format", "embeddings", "--defect", "dent"), "knows hole, stain"),
    ):
        out = _run("export", trained / "run", "--output", trained / "nothing", *words, check=False)
        assert out.returncode == 2 and says in out.stderr and not (trained / "nothing").exists()


def test_a_defect_is_added_later_and_the_others_stay(trained: Path) -> None:
    base, data = trained, trained / "data"
    one = ["--prior", base / "prior", "--config", base / "small.toml", "--defect", "hole", "--quiet", *ARGS]
    _run("train", data, "--output", base / "holes", *one)
    _run("train", data, "--output", base / "both", "--extend", base / "holes", "--quiet", *ARGS)
    first, second = (
        load_file(base / "holes" / "adapter" / "adapter.safetensors"),
        load_file(base / "both" / "adapter" / "adapter.safetensors"),
    )
    assert second["tokens.vectors"].shape[0] == 2 and first["tokens.vectors"].shape[0] == 1
    for name, value in first.items():
        kept = second[name][: len(value)] if name == "tokens.vectors" else second[name]
        assert (kept == value).all(), name
    for run in ("holes", "both"):
        _run("generate", base / run, "--num", 2, "--defect", "hole", "--quiet")
    for a, b in zip(_records(base / "holes"), _records(base / "both"), strict=True):
        drawn = [read_image(base / run / record["image"]) for run, record in (("holes", a), ("both", b))]
        assert np.array_equal(*drawn) and a["mask_sha256"] == b["mask_sha256"]  # the files differ: each says by which adapter it was drawn
    out = _run("train", data, "--output", base / "more", "--extend", base / "both", check=False)
    assert out.returncode == 1 and "knows every defect" in out.stderr
    out = _run("train", data, "--output", base / "turned", "--extend", base / "holes", "--rotation", 1, check=False)
    assert out.returncode == 1 and "has learned from it" in out.stderr and "Traceback" not in out.stderr
    anew, record = base / "anew", json.loads((base / "holes" / "split.json").read_text())
    shot = next(file for file in record["files"] if file["role"] == "shot")
    shutil.copytree(data, anew)
    Image.open(anew / shot["path"]).save(anew / "plate" / "test" / "hole" / "zz.bmp")  # the last one now, so it is held out
    (anew / shot["mask"]).rename(anew / "plate" / "ground_truth" / "hole" / "zz_mask.png")
    (anew / shot["path"]).unlink()
    out = _run("train", anew, "--output", base / "saved-anew", "--extend", base / "holes", check=False)
    assert out.returncode == 1 and "nearly the same picture" in out.stderr
    out = _run("train", data, "--output", base / "both", "--config", base / "small.toml", "--prior", base / "prior", *ARGS, check=False)
    assert out.returncode == 1 and "begun from another adapter" in out.stderr


def test_a_pipeline_draws_on_one_image_and_is_saved_without_its_data_set(trained: Path, tmp_path: Path) -> None:
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(trained / "run")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.defects == [("plate", "hole"), ("plate", "stain")]
    normal = trained / "data" / "plate" / "train" / "good" / "1.png"
    seen: list[int] = []
    drawn = pipe(normal, defect="hole", seed=7, callback_on_step_end=lambda pipe, index, t, state: seen.append(state["latents"].ndim))
    image, mask, before = (np.asarray(each) for each in (drawn.image, drawn.mask, Image.open(normal)))
    assert image.shape == before.shape and set(np.unique(mask)) == {0, 255} and drawn.provenance.defect == "hole"
    assert (image[mask > 0] != before[mask > 0]).any()
    assert (image[ndimage.distance_transform_edt(mask == 0) >= 3] == before[ndimage.distance_transform_edt(mask == 0) >= 3]).all()
    assert seen == [4] * len(seen) and 1 <= len(seen) <= 3
    flat = pipe(normal, defect="hole", seed=7, callback_on_step_end=lambda pipe, index, t, state: {"latents": state["latents"] * 0})
    inside, far = mask > 0, ndimage.distance_transform_edt(mask == 0) >= 3
    assert (np.asarray(flat.image)[inside] != image[inside]).any() and (np.asarray(flat.image)[far] == before[far]).all()
    with pytest.raises(GenerationError, match=r"gave latents of shape \(4,\)"):
        pipe(normal, defect="hole", callback_on_step_end=lambda *_: {"latents": torch.zeros(4)})
    again = pipe(Image.open(normal), drawn.mask, product="plate", defect="hole", seed=7, severity=1.0)
    assert (np.asarray(again.image) == image).all() and again.provenance.mask_origin == "user"
    assert (np.asarray(pipe(before, mask, defect="hole", seed=8).image) != image).any()
    pipe.save_pretrained(tmp_path / "saved")
    moved = shutil.move(trained / "data", tmp_path / "elsewhere")
    try:
        saved = ad.AnomalyDiffusionPipeline.from_pretrained(tmp_path / "saved")
        saved.set_progress_bar_config(disable=True)
        assert (np.asarray(saved(before, defect="hole", seed=7).image) == image).all()
        saved.save_pretrained(tmp_path / "saved")
        with pytest.raises(DataError, match="no such file"):
            ad.AnomalyDiffusionPipeline.from_pretrained(trained / "run")
    finally:
        shutil.move(moved, trained / "data")
    for words, says in (({}, "several defects fit"), ({"defect": "dent"}, "no such defect; known: plate/hole, plate/stain")):
        with pytest.raises(ConfigError, match=says):
            pipe(before, **words)
    with pytest.raises(DataError, match="mask: 60 x 50, but the image is 170 x 150"):
        pipe(before, np.ones((50, 60), bool), defect="hole")
    with pytest.raises(MaskError, match="marks no pixel"):
        pipe(before, np.zeros((150, 170), bool), defect="hole")
    with pytest.raises(RunError, match="is no saved pipeline"):
        pipe.save_pretrained(trained)
    shutil.move(tmp_path / "saved" / "shots", tmp_path / "blobs")  # as a hub's cache lays files out
    (tmp_path / "saved" / "shots").mkdir()
    for blob in (tmp_path / "blobs").iterdir():
        (tmp_path / "saved" / "shots" / blob.name).symlink_to(blob)
    assert ad.AnomalyDiffusionPipeline.from_pretrained(tmp_path / "saved").defects == pipe.defects
    index = json.loads((tmp_path / "saved" / "pipeline.json").read_text())
    index["shots"][0]["image"] = "../../secret.png"
    (tmp_path / "saved" / "pipeline.json").write_text(json.dumps(index))
    with pytest.raises(RunError, match="lies outside"):
        ad.AnomalyDiffusionPipeline.from_pretrained(tmp_path / "saved")


def test_a_pipeline_goes_to_the_hub_and_comes_back(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub: what is uploaded is all that is there, and what is fetched the hub's own client chooses."""
    hub, asked = tmp_path / "hub", list[tuple[str, bool]]()

    def create(self: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        asked.append((repo_id, private))

    def upload(self: HfApi, *, repo_id: str, folder_path: Path) -> SimpleNamespace:
        shutil.copytree(folder_path, hub / repo_id)
        (hub / repo_id / "README.md").write_text("a card that somebody wrote")
        return SimpleNamespace(repo_url=f"https://huggingface.co/{repo_id}")

    def fetch(repo_id: str, *, allow_patterns: list[str]) -> str:
        if not (hub / repo_id).is_dir():
            raise OSError("no such repository")
        names = [path.relative_to(hub / repo_id).as_posix() for path in (hub / repo_id).rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(hub / repo_id / name, tmp_path / "fetched" / name)
        return str(tmp_path / "fetched")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(trained / "run")
    assert pipe.push_to_hub("me/plates") == "https://huggingface.co/me/plates" and asked == [("me/plates", True)]
    back = ad.AnomalyDiffusionPipeline.from_pretrained("me/plates")
    assert not (tmp_path / "fetched" / "README.md").exists() and (tmp_path / "fetched" / "pipeline.json").is_file()
    normal = trained / "data" / "plate" / "train" / "good" / "1.png"
    drawn = []
    for each in (pipe, back):
        each.set_progress_bar_config(disable=True)
        drawn.append(np.asarray(each(normal, defect="hole", seed=3).image))
    assert np.array_equal(*drawn)
    with pytest.raises(RunError, match=r"me/nothing: no such folder, and not to be had from the hub \(no such repository\)"):
        ad.AnomalyDiffusionPipeline.from_pretrained("me/nothing")
    with pytest.raises(RunError, match=r"me/plates: cannot be uploaded .*check the connection and the token"):
        pipe.push_to_hub("me/plates")  # the folder is there: the copy fails, as a connection may


def test_the_progress_bar_is_as_it_was_told(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = ad.AnomalyDiffusionPipeline.from_pretrained(trained / "run")
    normal = trained / "data" / "plate" / "train" / "good" / "1.png"
    capfd.readouterr()
    pipe.set_progress_bar_config(desc="my own words", leave=True)
    pipe(normal, defect="hole", seed=3)
    assert "my own words" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(normal, defect="hole", seed=3)
    assert capfd.readouterr().err == ""


def test_accepted_pairs_are_a_data_set_to_train_on(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "dataset")
    with pytest.raises(RunError, match="no accepted pairs"):
        ad.DefectDataset(run)
    _run("generate", run, "--num", 2, "--quiet")
    everything, holes = ad.DefectDataset(run), ad.DefectDataset(run, defect=["hole"], transform=lambda example: example["mask"])
    assert len(everything) == 4 and len(holes) == 2
    example = everything[0]
    assert example["image"].size == example["mask"].size and example["mask"].getextrema() == (0, 255)
    batch = next(iter(DataLoader(holes, batch_size=2, collate_fn=list)))
    assert [np.asarray(each).max() for each in batch] == [255, 255]
    with pytest.raises(ConfigError, match="unknown defect 'dent'; this run knows hole, stain"):
        ad.DefectDataset(run, defect=["dent"])


def test_what_the_authors_released_draws_but_proves_nothing(trained: Path) -> None:
    base, data = trained, trained / "data"
    told = ["--prior", base / "prior", "--config", base / "small.toml", "--quiet"]
    vectors = build_released_folder(base / "theirs", 32, keys=("plate+hole", "plate+stain"))
    _run("train", data, "--output", base / "as-released", "--extend", base / "theirs", *told)
    assert (
        load_file(base / "as-released" / "adapter" / "adapter.safetensors")["tokens.vectors"][1] == vectors["plate+stain"].numpy()
    ).all()
    _run("generate", base / "as-released", "--num", 2, "--quiet")
    assert sum(record["accepted"] for record in _records(base / "as-released")) == 4
    out = _run("evaluate", base / "as-released", check=False)
    assert out.returncode == 1 and "theirs, and which images that was learned from is not recorded" in out.stderr
    vectors = build_released_folder(base / "other", 32, keys=("plate+hole",))
    _run("train", data, "--output", base / "one-more", "--extend", base / "other", *told, *ARGS)
    learned = load_file(base / "one-more" / "adapter" / "adapter.safetensors")["tokens.vectors"]
    assert len(learned) == 2 and (learned[0] == vectors["plate+hole"].numpy()).all()
    out = _run("train", data, "--output", base / "one-more", "--extend", base / "theirs", *told, *ARGS, check=False)
    assert out.returncode == 1 and "begun from another adapter" in out.stderr


def test_learned_masks_are_learned_shown_and_used(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "learned")
    config = trained / "masks.toml"
    # what four steps of training draw is no mask: nothing is refused but what marks nothing or all
    config.write_text(
        "[masks.train.pool]\ncrops = 8\n[masks.train.loop]\nsteps = 2\n"
        '[masks.learned]\nframe = "image"\nsteps = 2\narea = [0.0, inf]\nborder = 1.0\ntries = 40\n'
    )
    asked = trained / "asked.toml"
    asked.write_text('[masks]\nsource = "learned"\n' + config.read_text())
    out = _run("generate", run, "--num", 1, "--config", asked, check=False)
    assert out.returncode == 1 and "no masks were learned" in out.stderr and "Traceback" not in out.stderr
    _run("masks", run, "--source", "learned", "--num", 3, "--config", config)
    shown = {path.name: path.read_bytes() for path in (run / "masks" / "plate" / "hole").iterdir()}
    assert sorted(shown) == ["000000.png", "000001.png", "000002.png"] and (run / "masks" / "sheet.png").exists()
    learned = (run / "adapter" / "masks.safetensors").read_bytes()
    _run("generate", run, "--num", 2, "--defect", "hole", "--quiet")
    records = [r for r in _records(run) if r["attempt"] == 0]
    assert {r["mask_origin"] for r in records} == {"learned"}
    for record in records:
        name = Path(record["image"]).name.split("-")[0].split(".")[0] + ".png"
        assert (run / record["mask"]).read_bytes() == shown[name], "pairs are made on the masks that were shown"
    other = trained / "other.toml"
    other.write_text("[masks.train.loop]\nsteps = 3\n")
    out = _run("masks", run, "--config", other, check=False)
    assert out.returncode == 1 and "learned with other settings" in out.stderr
    _run("masks", run, "--source", "warped", "--num", 1)
    assert [path.name for path in (run / "masks" / "plate" / "hole").iterdir()] == ["000000.png"]
    assert (run / "adapter" / "masks.safetensors").read_bytes() == learned
    out = _run("generate", run, "--num", 2, "--defect", "hole", check=False)
    assert out.returncode == 1 and "other settings" in out.stderr


@pytest.mark.slow
def test_killed_and_typed_again_ends_the_same(trained: Path) -> None:
    calm, shaken = (shutil.copytree(trained / "run", trained / name) for name in ("calm", "shaken"))
    _run("generate", calm, "--num", 5, "--quiet")
    ended = []
    for lines in (1, 4, 8):
        process = subprocess.Popen([sys.executable, "-m", "anomalydiffusion", "generate", str(shaken), "--num", "5", "--quiet"])
        manifest = shaken / "manifest.jsonl"
        while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < lines):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        ended.append(process.wait())
    assert ended[0] == -signal.SIGKILL, "the first came too late to strike"
    _run("generate", shaken, "--num", 5, "--quiet")
    assert _same(_records(calm), _records(shaken))
    left = list((shaken / "generated").rglob("*.png"))
    assert {p.relative_to(shaken).as_posix() for p in left} == {r[k] for r in _records(shaken) for k in ("image", "mask")}


def test_a_trained_run_is_not_trained_twice_nor_overwritten(trained: Path, tmp_path: Path) -> None:
    before = (trained / "run" / "adapter" / "adapter.safetensors").read_bytes()
    out = _run(
        "train", trained / "data", "--output", trained / "run", "--prior", trained / "prior", "--config", trained / "small.toml", *ARGS
    )
    assert "already trained" in out.stderr and "not taken over" not in out.stderr
    other = tmp_path / "other.toml"
    other.write_text((trained / "small.toml").read_text().replace("strict = 0.0", "strict = 1.5"))
    out = _run("train", trained / "data", "--output", trained / "run", "--prior", trained / "prior", "--config", other, *ARGS)
    assert f"{other}: [gate] not taken over; give the file to the command that uses it, with --config" in out.stderr
    out = _run("train", trained / "data", "--output", trained / "run", "--max-train-steps", 5, check=False)
    assert out.returncode == 1 and "other settings" in out.stderr and "Traceback" not in out.stderr
    assert (trained / "run" / "adapter" / "adapter.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("generate", "RUN", "--num", 0), 2, "--num 0"),
        (("generate", "RUN", "--num", 1, "--defect", "dent"), 2, "knows hole, stain"),
        (("generate", "nowhere", "--num", 1), 1, "run.json is missing"),
        (("export", "nowhere", "--output", "x"), 1, "nowhere"),
        (("train", "DATA", "--output", "RUN2", "--defect", "dent"), 1, "dent"),
        (("train", "DATA", "--output", "RUN2", "--preset", "wild"), 2, "known: default, paper, fast"),
        (("train", "nowhere", "--output", "RUN2"), 1, "nowhere"),
        (("train", "DATA", "--output", "RUN2", "--prior", "no/such/prior"), 1, "no/such/prior"),
        (("check", "nowhere"), 1, "nowhere"),
    ],
)
def test_bad_input_gets_one_line(trained: Path, words: tuple, code: int, says: str) -> None:
    places = {"RUN": trained / "run", "DATA": trained / "data", "RUN2": trained / "run2"}
    out = _run(*(places.get(str(w), w) for w in words), check=False)
    assert out.returncode == code, out.stderr
    assert says in out.stderr + out.stdout and "Traceback" not in out.stderr
    assert not (trained / "run2" / "adapter").exists()


def test_a_newer_run_and_a_cut_adapter_are_refused_in_words(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "newer")
    adapter = run / "adapter" / "adapter.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[: len(whole) // 2])
    out = _run("generate", run, "--num", 1, check=False)
    assert out.returncode == 1 and "adapter.safetensors" in out.stderr and out.stderr.strip().count("\n") == 0
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "format": 99}))
    out = _run("generate", run, "--num", 1, check=False)
    said = f"error: {run}: made by version {ad.__version__} (format 99, this one reads {Run.FORMAT}); upgrade anomalydiffusion"
    assert out.returncode == 1 and out.stderr.strip() == said


def test_normals_given_by_a_relative_path_are_found_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shutil.copytree(trained / "run", trained / "relative")
    good = trained / "data" / "plate" / "train" / "good"
    monkeypatch.chdir(good.parent)
    ad.generate(run, 1, normals=Path("good"), defect=["hole"], quiet=True)
    (record,) = [each for each in _records(run) if each["accepted"]]
    assert Path(record["normal"]).parent == good.resolve()
    monkeypatch.chdir(trained)  # what reads the manifest later does so from anywhere
    ad.report(run)
    ad.curate(run, change=0.0, quiet=True)
    ad.export(run, trained / "relative-export", "mvtec")
    assert ad.generate(run, like=run / record["image"], quiet=True)[0]["identical"]


def test_other_settings_are_not_mixed_with_what_is_there(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "mixed")
    ad.generate(run, 2, batch_size=2, quiet=True)
    before = _records(run)
    ad.generate(run, 2, batch_size=3, attempts=9, quiet=True)  # neither changes a pair
    assert _records(run) == before
    for other in ({"severity": 1.4}, {"seed": 5}, {"steps": 2}, {"normals": trained / "data" / "plate" / "train" / "good"}):
        with pytest.raises(RunError, match=r"made with other settings .*--no-resume"):
            ad.generate(run, 3, quiet=True, **other)
    assert _records(run) == before
    with pytest.raises(ConfigError, match="steps at most"):
        ad.generate(run, 2, steps=100_000, resume=False, quiet=True)
    assert _records(run) == before  # nothing was thrown away for a command that could not run
    ad.generate(run, 1, severity=1.4, defect=["hole"], resume=False, quiet=True)
    after = _records(run)
    assert [r for r in after if r["defect"] == "stain"] == [r for r in before if r["defect"] == "stain"]
    assert [(r["severity"], r["accepted"]) for r in after if r["defect"] == "hole"] == [(1.4, True)]
    files = {p.relative_to(run).as_posix() for p in (run / "generated").rglob("*.png")}
    assert files == {r[k] for r in after for k in ("image", "mask")}
    told = (run / "settings" / f"{after[0]['config_digest']}.toml").read_text()
    assert "severity = 1.4" in told


def test_starting_over_waits_until_it_can(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "over")
    before = (run / "adapter" / "adapter.safetensors").read_bytes()
    with pytest.raises(PriorError):
        ad.train(trained / "data", run, prior="no/such/prior", resume=False, quiet=True)
    assert (run / "adapter" / "adapter.safetensors").read_bytes() == before
    ad.train(trained / "data", run, prior=str(trained / "prior"), config=trained / "small.toml", max_train_steps=2, seed=3,
                   resume=False, quiet=True)  # fmt: skip
    assert (run / "adapter" / "adapter.safetensors").read_bytes() != before
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "trained" and record["versions"]["torch"]
    stranger = trained / "stranger"
    (stranger / "checkpoints").mkdir(parents=True)
    (stranger / "checkpoints" / "mine.txt").write_text("years of work")
    with pytest.raises(RunError, match="is no run"):
        ad.train(trained / "data", stranger, prior=str(trained / "prior"), resume=False, quiet=True)
    assert (stranger / "checkpoints" / "mine.txt").exists()


def test_a_prior_is_found_again_from_another_place_and_tiny_is_the_bundled_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    (trained / "tiny").mkdir()
    settings = []
    for name in ("prior", "tiny"):
        with monkeypatch.context() as patch:
            patch.setattr(train_command, "prior_of", lambda found: settings.append(found.prior) or pytest.fail("far enough"))
            with pytest.raises(pytest.fail.Exception, match="far enough"):
                ad.train(trained / "data", tmp_path / name, prior=name, quiet=True)
    assert settings == [str(trained / "prior"), "tiny"]


def test_a_data_set_may_be_mended_before_anything_was_learned(trained: Path, tmp_path: Path) -> None:
    data = _data(tmp_path / "data")
    mask = sorted((data / "plate" / "ground_truth" / "hole").iterdir())[0]
    whole = mask.read_bytes()
    Image.fromarray(np.zeros((150, 170), np.uint8)).save(mask)
    words = {"prior": str(trained / "prior"), "config": trained / "small.toml", "max_train_steps": 2, "quiet": True}
    with pytest.raises(MaskError, match="marks no pixel"):
        ad.train(data, tmp_path / "run", **words)
    mask.write_bytes(whole)
    assert ad.train(data, tmp_path / "run", **words).adapter.exists()


def test_the_command_line_is_kept_as_it_was_typed(trained: Path) -> None:
    run = shutil.copytree(trained / "run", trained / "typed")
    program = Path(sys.executable).with_name("anomalydiffusion")
    subprocess.run([program, "generate", run, "--num", "1", "--defect", "hole", "--quiet"], check=True)
    assert json.loads((run / "run.json").read_text())["commands"][-1] == f"anomalydiffusion generate {run} --num 1 --defect hole --quiet"


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(trained: Path) -> None:
    words = ["train", trained / "data", "--output", trained / "stopped", "--prior", trained / "prior", "--config", trained / "small.toml"]
    process = subprocess.Popen(
        [sys.executable, "-m", "anomalydiffusion", *map(str, words), "--max-train-steps", "100000"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs are born deaf to it
    )  # fmt: skip
    log = trained / "stopped" / "train_log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert list((trained / "stopped" / "checkpoints").glob("step-*"))
