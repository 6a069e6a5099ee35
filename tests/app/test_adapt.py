"""A prior learns a user's normal images first: none that is held out, once, and everything else is learned on it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anomalydiffusion as ad
from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.app.prior import prior_train
from anomalydiffusion.app.settings import resolve
from anomalydiffusion.core.config import read_toml
from anomalydiffusion.core.errors import ConfigError, DataError, PriorError, RunError, SplitError
from anomalydiffusion.core.pixels import digest_file, read_image
from anomalydiffusion.core.runs import Run
from anomalydiffusion.priors.files import digest_folder, learned_from
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.measure import measure_denoiser
from anomalydiffusion.training import adapt
from anomalydiffusion.training.prior import train_prior
from tests.app.conftest import Spoken
from tests.training.test_prior import CONFIG

FEW = "pictures = 20\nsteps = 3\nbatch_size = 2\n"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prior that `prior train` made; only such can be gone on from."""
    folder = tmp_path_factory.mktemp("start")
    train_prior(CONFIG, folder / "prior", folder / "work")
    return str(folder / "prior")


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    """Twelve striped pictures of several sizes."""
    folder = tmp_path / "normals"
    folder.mkdir()
    for index in range(12):
        stripes = 120 + 60 * np.sin(np.arange(80 + index)[:, None] / 2 + index) + np.zeros((1, 90))
        Image.fromarray(stripes.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def test_one_command_adapts_and_says_what_changed(start: str, normals: Path, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    output = tmp_path / "mine"
    figures = prior_train(tmp_path / "few.toml", output, images=normals, start=start, name="striped plate", quiet=True)
    before, after = load_prior(start), load_prior(str(output))
    assert figures["images"] == 11 and figures["held_back"] == 1 and figures["digest"] == after.digest != before.digest
    for part, same in (("vae", True), ("unet", False)):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert all(torch.equal(old[name], new[name]) for name in old) == same
    assert min(read_image(Path(figures["sheet"])).shape[:2]) > 100
    again = prior_train(tmp_path / "few.toml", output, images=normals, start=start, name="striped plate", quiet=True)
    assert again == figures
    (normals / "12.png").write_bytes((normals / "3.png").read_bytes())
    with pytest.raises(RunError, match=r"was begun with other settings of .*other pictures"):
        prior_train(tmp_path / "few.toml", output, images=normals, start=start, name="striped plate", quiet=True)


@pytest.mark.parametrize(
    ("parts", "held"),
    [
        ([3, 3, 3, 3], 3),  # the smallest is more than a tenth, but whole
        ([10, 1, 1], 1),  # never the largest
        ([6, 6], 1),  # half of all would be too much: an image, whatever it shows
    ],
)
def test_what_is_held_back_is_few_and_of_whole_parts(start: str, normals: Path, tmp_path: Path, parts: list[int], held: int) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    images, product = sorted(normals.iterdir()), tmp_path / "plate"
    (product / "train").mkdir(parents=True)
    normals.rename(product / "train" / "good")
    shown = [part for part, count in enumerate(parts) for _ in range(count)]
    rows = [f"train/good/{path.name},part {part}" for path, part in zip(images, shown, strict=True)]
    (product / "groups.csv").write_text("\n".join(["file,group", *rows]))
    figures = prior_train(tmp_path / "few.toml", tmp_path / "mine", images=product / "train" / "good", start=start, quiet=True)
    assert (figures["images"], figures["held_back"]) == (12 - held, held)
    listed = learned_from(tmp_path / "mine")
    learned = {part for path, part in zip(images, shown, strict=True) if digest_file(product / "train" / "good" / path.name) in listed}
    assert len(learned) == len(parts) - (parts != [6, 6])


def test_the_figure_falls_where_the_denoiser_learns_what_it_is_measured_on(start: str, normals: Path, tmp_path: Path) -> None:
    config = adapt.AdaptConfig(pictures=40, own=0.94, flawed=0.0, steps=80, batch_size=8, learning_rate=3e-3)
    figures = adapt.adapt_prior(sorted(normals.iterdir()), "plate", start, tmp_path / "mine", tmp_path / "work", config)
    assert figures["after"] < 0.9 * figures["before"]


def test_a_prior_that_knows_the_answer_scores_zero(start: str) -> None:
    prior = load_prior(start)
    image = np.full((80, 90, 3), 90, np.uint8)
    assert measure_denoiser(prior, [image], "a plate") > 0.01

    class Knowing:
        def __getattr__(self, name: str) -> object:
            return getattr(prior, name)

        def denoise(self, z: torch.Tensor, t: torch.Tensor, context: object) -> object:
            clean = prior.encode(torch.full((1, 3, 64, 64), 90 / 127.5 - 1))
            return type("Estimate", (), {"clean": clean})

    assert measure_denoiser(Knowing(), [image], "a plate") == pytest.approx(0, abs=1e-9)  # type: ignore[arg-type]


def test_what_is_wrong_is_said_before_anything_is_written(start: str, normals: Path, tmp_path: Path, small_folder: Path) -> None:
    output = tmp_path / "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, error, match in [
        ({"config": None}, ConfigError, "--config, a recipe, or --images"),
        ({"config": None, "images": empty}, DataError, "empty: no pictures"),
        ({"config": None, "images": normals, "textures": normals}, ConfigError, "--textures"),
        ({"config": None, "images": normals, "steps": 0}, ConfigError, "steps"),
        ({"config": None, "images": normals, "start": str(small_folder)}, PriorError, "cannot be gone on from"),
    ]:
        with pytest.raises(error, match=match):
            prior_train(words.pop("config"), output, quiet=True, **words)  # type: ignore[arg-type]
        assert not output.exists()
    (normals / "only").mkdir()
    (normals / "only" / "0.png").write_bytes((normals / "0.png").read_bytes())
    with pytest.raises(DataError, match="at least 2"):
        prior_train(None, output, images=normals / "only", start=start, quiet=True)


def test_a_run_is_learned_on_its_own_prior_and_no_held_out_image_is_looked_at(
    made: Path, start: str, tmp_path: Path, spoken: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text((made / "small.toml").read_text() + "adapt = {pictures = 20, steps = 3, batch_size = 2}\n")
    seen: list[str] = []
    reads = adapt.read_image
    monkeypatch.setattr(adapt, "read_image", lambda path: seen.append(str(path)) or reads(path))
    run = tmp_path / "run"
    words = ("train", made / "data", "--output", run, "--config", config, "--prior", start, "--quiet")
    assert spoken(*words, "--adapt-prior")[0] == 0
    assert seen and all("train/good" in path for path in seen)
    record = json.loads((run / "run.json").read_text())
    assert record["adapted"]["start"] == start and record["adapted"]["after"] > 0 and (run / "prior.png").exists()
    assert record["prior"] == str(run / "prior") and record["prior_digest"] == record["adapted"]["digest"]
    assert not (run / "prior-work").exists() and read_toml(run / "config.toml")["prior"] == str(run / "prior")
    ad.generate(run, 1, quiet=True)
    adapter = (run / "adapter" / "adapter.safetensors").read_bytes()
    (run / "adapter" / "adapter.safetensors").unlink()  # gone on with as the studio does, by the run's own settings
    assert spoken("train", made / "data", "--output", run, "--config", run / "config.toml", "--quiet")[0] == 0
    assert (run / "adapter" / "adapter.safetensors").read_bytes() == adapter
    assert spoken(*words, "--adapt-prior")[0] == 0 and (run / "adapter" / "adapter.safetensors").read_bytes() == adapter
    code, said = spoken("train", made / "data", "--output", run, "--config", made / "small.toml", "--prior", start, "--quiet")
    assert code == 1 and "made with other settings" in said
    extended = ad.train(made / "data", tmp_path / "more", extend=run, dry_run=True, quiet=True)
    assert not extended.folder.exists()
    with pytest.raises(ConfigError, match="--adapt-prior"):
        ad.train(made / "data", tmp_path / "more", extend=run, adapt_prior=True, quiet=True)
    assert resolve().adapt is None
    _scratched(made / "data", tmp_path / "wider")  # a part whose sound photograph the prior has learned is held out there
    with pytest.raises(RunError, match=r"good.*held out here, but .*has learned from it"):
        ad.train(tmp_path / "wider", tmp_path / "more", extend=run, quiet=True)


def _scratched(data: Path, wider: Path) -> None:
    """The same data with a further defect type; the last part of it shows in a normal image as well."""
    shutil.copytree(data, wider)
    (product,) = (path for path in wider.iterdir() if path.is_dir())
    image = read_image(next((product / "train/good").iterdir()))
    for folder in ("test/scratch", "ground_truth/scratch"):
        (product / folder).mkdir()
    for index in range(3):
        scratched, mask = image.copy(), np.zeros(image.shape[:2], np.uint8)
        mask[20 : 24 + index, 20:50] = 255
        scratched[mask > 0] = 40 * index
        Image.fromarray(scratched).save(product / f"test/scratch/{index}.png")
        Image.fromarray(mask).save(product / f"ground_truth/scratch/{index}_mask.png")
    normal = min((product / "train/good").iterdir()).name
    (product / "groups.csv").write_text(f"file,group\ntrain/good/{normal},g\ntest/scratch/2.png,g\n")


def test_a_run_with_its_own_prior_may_be_moved(
    made: Path, start: str, tmp_path: Path, spoken: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, moved = tmp_path / "run.toml", tmp_path / "run", tmp_path / "moved"
    config.write_text((made / "small.toml").read_text() + "adapt = {pictures = 20, steps = 3, batch_size = 2}\n")
    monkeypatch.setenv("HOME", str(made))
    ad.train("~/data", run, prior=start, config=config, quiet=True)  # as a studio's option hands it on
    run.rename(moved)
    assert run_settings(Run.open(moved)).prior == str(moved / "prior") and ad.doctor(moved).ok
    ad.generate(moved, 1, quiet=True)
    assert ad.AnomalyDiffusionPipeline.from_pretrained(moved).prior.digest == json.loads((moved / "run.json").read_text())["prior_digest"]
    adapter = (moved / "adapter" / "adapter.safetensors").read_bytes()
    (moved / "adapter" / "adapter.safetensors").unlink()
    assert spoken("train", made / "data", "--output", moved, "--config", moved / "config.toml", "--quiet")[0] == 0
    assert (moved / "adapter" / "adapter.safetensors").read_bytes() == adapter


def test_what_a_prior_was_adapted_to_is_not_tested_on(made: Path, start: str, tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    for part, known in (("train", False), ("test", True)):
        prior, run = tmp_path / f"{part}-prior", tmp_path / part
        prior_train(tmp_path / "few.toml", prior, images=made / "data" / "plate" / part / "good", start=start, quiet=True)
        assert learned_from(prior) and load_prior(str(prior)).digest == digest_folder(prior)
        ad.prior_convert(str(prior), tmp_path / f"{part}-converted")
        assert learned_from(tmp_path / f"{part}-converted") == learned_from(prior)
        ad.train(made / "data", run, prior=str(prior), config=made / "small.toml", quiet=True)
        ad.generate(run, 1, quiet=True)
        with pytest.raises(SplitError, match=r"held out, but the prior .* has learned from it") if known else nullcontext():
            ad.evaluate(run, steps=1, shortcut=False, quiet=True)


def test_a_training_that_adapts_no_longer_is_of_its_other_prior(made: Path, start: str, tmp_path: Path) -> None:
    config, run = tmp_path / "run.toml", tmp_path / "run"
    config.write_text((made / "small.toml").read_text() + "adapt = {pictures = 20, steps = 3, batch_size = 2}\n")
    ad.train(made / "data", run, prior=start, config=config, quiet=True)
    ad.train(made / "data", run, prior=start, config=made / "small.toml", resume=False, quiet=True)
    assert run_settings(Run.open(run)).prior == start
    ad.generate(run, 1, quiet=True)


def test_a_training_does_not_go_on_with_another_prior_in_the_same_place(made: Path, start: str, tmp_path: Path) -> None:
    place, run = tmp_path / "prior", tmp_path / "run"
    shutil.copytree(made / "prior", place)
    ad.train(made / "data", run, prior=str(place), config=made / "small.toml", quiet=True)
    (run / "adapter" / "adapter.safetensors").unlink()
    shutil.rmtree(place)
    shutil.copytree(start, place)
    with pytest.raises(RunError, match=r"was begun on prior .* by now; put that back"):
        ad.train(made / "data", run, prior=str(place), config=made / "small.toml", quiet=True)


def test_a_device_that_is_not_there_is_told_before_a_prior_is_adapted(made: Path, start: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        ad.train(made / "data", tmp_path / "run", prior=start, config=made / "small.toml", adapt_prior=True, device="cuda:99", quiet=True)
    assert not (tmp_path / "run" / "prior").exists() and not (tmp_path / "run" / "prior-work").exists()


def test_a_prior_adapted_otherwise_is_not_taken(made: Path, start: str, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "run.toml"
    words = (made / "small.toml").read_text()
    config.write_text(words + "adapt = {pictures = 20, steps = 2, batch_size = 2}\n")
    ad.train(made / "data", run, prior=start, config=config, quiet=True)
    (run / "adapter" / "adapter.safetensors").unlink()
    for old in (run / "checkpoints").iterdir():
        old.rename(tmp_path / old.name)
    config.write_text(words + "adapt = {pictures = 20, steps = 3, batch_size = 2}\n")
    with pytest.raises(RunError, match="was adapted"):
        ad.train(made / "data", run, prior=start, config=config, quiet=True)
    ad.train(made / "data", run, prior=start, config=config, resume=False, quiet=True)
    assert json.loads((run / "run.json").read_text())["adapted"]["settings"] != ""
