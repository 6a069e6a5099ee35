"""Any diffusers folder loads into the same Prior; damage is named."""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalydiffusion.conditioning.adapter import Adapter, AdapterConfig, Origin
from anomalydiffusion.core.config import from_dict, read_toml
from anomalydiffusion.core.errors import ConfigError, PriorError, RunError
from anomalydiffusion.core.pixels import to_tensor
from anomalydiffusion.data.corpus import CorpusConfig, draw_corpus
from anomalydiffusion.priors.base import Context
from anomalydiffusion.priors.latent import LatentPrior
from anomalydiffusion.priors.load import BUNDLED, digest_folder, load_prior, precision
from anomalydiffusion.priors.measure import measure_autoencoder
from anomalydiffusion.training.autoencoder import build_autoencoder
from anomalydiffusion.training.prior import PriorConfig
from tests.conftest import build_prior_folder


@pytest.mark.parametrize("family", ["sd", "ldm"])
def test_each_family_answers_as_the_model_that_wrote_it(tmp_path: Path, family: str) -> None:
    folder = build_prior_folder(tmp_path / family, family)
    prior = load_prior(str(folder))
    assert (prior.factor, prior.latent_channels, prior.working_size, prior.max_tokens) == (8, 4, 64, 32)
    context = prior.embed((prior.tokenize("a photo of"), []), torch.randn(2, 3, prior.token_width))
    assert context.tokens_BND.shape == (2, 32, 32)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_pretrained(folder / "unet").eval()  # diffusers' own attention
    with torch.no_grad():
        expected = plain(z, t, encoder_hidden_states=context.tokens_BND).sample
        torch.testing.assert_close(prior.predict(z, t, context), expected, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for part in (prior.vae, prior.unet, prior.text_encoder) for p in part.parameters())


@pytest.fixture(scope="module")
def tiny() -> LatentPrior:
    return load_prior()


def _drawn(prior: LatentPrior, count: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures from seeds that the bundled prior's corpus does not use, as latents; and their captions."""
    pictures = list(draw_corpus(CorpusConfig(pictures=count, drawn=1.0, shapes=0.0, flawed=0.0), [], seed=1))
    images = torch.cat([to_tensor(picture.image_HWC) for picture in pictures])
    return prior.encode(images), [picture.caption for picture in pictures]


def test_the_bundled_prior_is_small_and_loads_by_the_same_code(tiny: LatentPrior) -> None:
    files = list(BUNDLED.rglob("*.safetensors"))
    assert len(files) == 3 and sum(path.stat().st_size for path in files) <= 30e6
    assert (tiny.working_size, tiny.factor, tiny.prediction_type) == (128, 4, "v_prediction")
    assert {path.name for path in BUNDLED.iterdir()} >= {"README.md", "ATTRIBUTION.csv"}


def test_the_recipe_makes_the_bundled_autoencoder_s_shapes(tiny: LatentPrior) -> None:
    recipe = from_dict(PriorConfig, read_toml(Path(__file__).parents[2] / "recipes" / "tiny.toml"))
    made = build_autoencoder(recipe.autoencoder).state_dict()
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in tiny.vae.state_dict().items()}


def test_the_bundled_autoencoder_keeps_fine_structure(tiny: LatentPrior) -> None:
    pictures = [picture.image_HWC for picture in draw_corpus(CorpusConfig(pictures=12, shapes=0.0), [], seed=1)]
    found = measure_autoencoder(lambda x: tiny.decode(tiny.encode(x)), pictures)
    assert found["psnr"] > 36 and 0.8 < found["gradient_energy_ratio"] < 1.1


def test_the_bundled_denoiser_denoises_and_listens_to_captions(tiny: LatentPrior) -> None:
    clean, captions = _drawn(tiny, 16)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(clean),), 400)
    noisy = tiny.noised(clean, noise, t)

    def error(said: list[str]) -> float:
        contexts = [tiny.embed((tiny.tokenize(text), []), torch.zeros(1, 0, tiny.token_width)).tokens_BND for text in said]
        with torch.no_grad():
            estimate = tiny.denoise(noisy, t, Context(tokens_BND=torch.cat(contexts))).clean
        return float((estimate - clean).square().mean())

    told = error(captions)
    signal = float(tiny.alphas[400])
    assert told < 0.8 * float((noisy * signal**0.5 - clean).square().mean())  # better than only scaling down
    assert told < error(captions[1:] + captions[:1])  # another picture's caption misleads


def test_digest_follows_content_not_place(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "copy")
    assert digest_folder(copy) == digest_folder(small_folder)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert digest_folder(copy) != digest_folder(small_folder)


def test_what_is_not_read_of_a_folder_is_no_part_of_a_prior(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "cache")
    before = digest_folder(copy)
    assert before == digest_folder(copy, everything=True), "a folder as it is saved has one digest"
    for name in (
        "feature_extractor/preprocessor_config.json",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    earlier = digest_folder(copy, everything=True)
    assert digest_folder(copy) == before != earlier
    prior, adapter = load_prior(str(copy)), tmp_path / "adapter.safetensors"
    Adapter(prior, [("plate", "hole")], AdapterConfig(lora_rank=0), Origin(prior_digest=earlier)).save(adapter)
    other = load_prior(str(small_folder))
    with pytest.raises(RunError, match="trained on prior"):
        Adapter.load(adapter, other)
    assert Adapter.load(adapter, prior).origin.prior_digest == prior.digest == earlier, "what earlier versions called it is known"
    (copy / "unet" / "config.json").write_text((copy / "unet" / "config.json").read_text() + " ")
    assert digest_folder(copy) != before


def test_damage_is_named(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "cut")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PriorError, match=r"unet.*damaged, cut short"):
        load_prior(str(copy))
    (copy / "model_index.json").unlink()
    with pytest.raises(PriorError, match=r"model_index\.json is missing"):
        load_prior(str(copy))
    with pytest.raises(PriorError, match="no such prior"):
        load_prior(str(tmp_path / "nowhere"))


def test_a_folder_cannot_name_a_class_to_run(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "evil")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "SubprocessRunner"))
    with pytest.raises(PriorError, match="SubprocessRunner is not one of"):
        load_prior(str(copy))


def test_in_half_precision_the_autoencoder_stays_single_where_it_would_overflow(small_folder: Path) -> None:
    for dtype, autoencoder in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        prior = load_prior(str(small_folder), dtype=dtype)
        assert (prior.unet.dtype, prior.text_encoder.dtype, prior.vae.dtype) == (dtype, dtype, autoencoder)
    with pytest.raises(ConfigError, match="'foo' is not known"):
        load_prior(str(small_folder), device="foo")


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("in_channels", 5, "takes 5 channels, its autoencoder gives 4; depth"),
        ("cross_attention_dim", 2048, r"takes tokens 2048 wide, its text encoder gives 32; models with several text encoders \(SDXL\)"),
        ("cross_attention_dim", [32, 64], r"takes tokens \[32, 64\] wide"),
    ],
)
def test_models_that_take_more_than_a_latent_and_a_prompt_are_refused(
    small_folder: Path, tmp_path: Path, setting: str, value: object, says: str
) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "other")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), setting: value}))
    with pytest.raises(PriorError, match=f"other: its denoiser {says}"):
        load_prior(str(copy))


WEIGHTS = {  # of each family: part -> its file
    "sd": {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"},
    "ldm": {"unet": "diffusion_pytorch_model", "vqvae": "diffusion_pytorch_model", "bert": "model"},
}


@pytest.fixture(scope="module", params=["sd", "ldm"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder of one family, and the file of each part's weights below it."""
    folder = build_prior_folder(tmp_path_factory.mktemp("written") / request.param, request.param)
    return folder, {part: Path(part) / f"{file}.safetensors" for part, file in WEIGHTS[request.param].items()}


def test_a_weight_that_is_missing_is_not_made_up_and_one_too_many_is_named(
    written: tuple[Path, dict[str, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, files = written
    for part, file in files.items():
        copy = shutil.copytree(folder, tmp_path / part)
        weights = {name: value.clone() for name, value in load_file(copy / file).items()}
        lost = sorted(weights)[3]
        save_file({**weights, "odd.weight": torch.zeros(1)}, copy / file, metadata={"format": "pt"})
        for dtype in (torch.float32, torch.bfloat16):
            caplog.clear()
            load_prior(str(copy), dtype=dtype)
            assert f"{copy / part}: 1 weights have no place and are left out: odd.weight" in caplog.text
        save_file({name: value for name, value in weights.items() if name != lost}, copy / file, metadata={"format": "pt"})
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(PriorError, match=rf"{part}: lacks 1 of \d+ weights \({lost}\); get the whole file"):
                load_prior(str(copy), dtype=dtype)


def test_a_folder_that_is_converted_is_the_same_in_another_format(written: tuple[Path, dict[str, Path]]) -> None:
    exact, half = load_prior(str(written[0])), load_prior(str(written[0]), dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(exact, part).state_dict(), getattr(half, part).state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in expected.items())
        assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.bfloat16}


def test_names_that_older_libraries_wrote_are_read(small_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy, old = shutil.copytree(small_folder, tmp_path / "old"), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    text, vae = copy / "text_encoder" / "model.safetensors", copy / "vae" / "diffusion_pytorch_model.safetensors"
    words = {f"text_model.{name.removeprefix('text_model.')}": value.clone() for name, value in load_file(text).items()}
    save_file({**words, "text_model.embeddings.position_ids": torch.arange(32)[None]}, text, metadata={"format": "pt"})
    seen = {name: value.clone() for name, value in load_file(vae).items()}
    for ours, theirs in old.items():
        seen = {name.replace(f".{ours}.", f".{theirs}.") if "attentions" in name else name: value for name, value in seen.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in seen
    save_file(seen, vae, metadata={"format": "pt"})
    one, two = load_prior(str(small_folder)), load_prior(str(copy))
    for part in ("vae", "text_encoder"):
        ours, theirs = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not caplog.records


class _Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_folder_of_pickles_is_the_same_prior_and_nothing_in_them_is_run(written: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    folder, files = written
    copy = shutil.copytree(folder, tmp_path / "pickles")
    for file in files.values():
        name = "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"
        torch.save({name: value.clone() for name, value in load_file(copy / file).items()}, copy / file.with_name(name))
        (copy / file).unlink()
    one, two = load_prior(str(folder)), load_prior(str(copy))
    for part in ("vae", "unet", "text_encoder"):
        ours, theirs = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    denoiser, trace = copy / "unet" / "diffusion_pytorch_model.bin", tmp_path / "run"
    weights = torch.load(denoiser, weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, denoiser)
    assert digest_folder(copy) != two.digest, "what is read tells one prior from another"
    torch.save({**weights, "more": _Evil(trace)}, denoiser)
    with pytest.raises(PriorError, match=r"diffusion_pytorch_model\.bin: refused, it wants .*mkdir"):
        load_prior(str(copy))
    assert not trace.exists()


def test_pickles_beside_safetensors_are_not_looked_at(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "both")
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"no pickle at all")
    assert load_prior(str(copy)).digest == digest_folder(small_folder)


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "in shards"])
def test_a_folder_of_the_half_precision_s_files_alone_is_read(written: tuple[Path, dict[str, Path]], tmp_path: Path, shards: bool) -> None:
    folder, files = written
    copy = shutil.copytree(folder, tmp_path / "half")
    for file in files.values():
        halves = {name: value.half() if value.is_floating_point() else value for name, value in load_file(copy / file).items()}
        (copy / file).unlink()
        kept = copy / file.with_name(f"{file.stem}.fp16.safetensors")
        if not shards:
            save_file(halves, kept, {"format": "pt"})
            continue
        parts, index = (list(halves)[::2], list(halves)[1::2]), {}
        for number, names in enumerate(parts, 1):
            shard = f"{file.stem}.fp16-{number:05d}-of-00002.safetensors"
            save_file({name: halves[name] for name in names}, copy / file.with_name(shard), {"format": "pt"})
            index.update(dict.fromkeys(names, shard))
        told = json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
        (copy / file.with_name(f"{file.stem}.safetensors.index.fp16.json")).write_text(told)
    one, two = load_prior(str(folder)), load_prior(str(copy))
    for part in ("vae", "unet", "text_encoder"):
        whole, half = getattr(one, part).state_dict(), getattr(two, part).state_dict()
        floats = [name for name in whole if whole[name].is_floating_point()]
        assert floats and all(torch.equal(whole[name].half().float(), half[name]) for name in floats)
    assert (precision(str(folder)), precision(str(copy))) == (torch.float32, torch.float16)


def test_of_two_precisions_the_whole_one_is_read_and_other_variants_never_are(small_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "both")
    whole = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    save_file({name: value.half() for name, value in weights.items()}, whole.with_suffix(".fp16.safetensors"), {"format": "pt"})
    save_file({name: value + 1 for name, value in weights.items()}, whole.with_suffix(".non_ema.safetensors"), {"format": "pt"})
    assert precision(str(copy)) == torch.float32
    assert torch.equal(load_prior(str(copy)).unet.conv_in.weight, weights["conv_in.weight"])
    whole.unlink()
    whole.with_suffix(".fp16.safetensors").unlink()
    with pytest.raises(PriorError, match=r"unet: cannot be loaded as UNet2DConditionModel .*diffusion_pytorch_model\.safetensors"):
        load_prior(str(copy))


@pytest.mark.parametrize(
    ("said", "says"),
    [([[8]], "expected"), ("x", "expected"), (None, "sample_size = None: expected how many latent cells"),
     ([8, 16], r"sample_size = \[8, 16\]: expected"),
     (9, "9 latent cells a side, which its 2 levels do not halve evenly; set sample_size in its configuration to a multiple of 2")],
)  # fmt: skip
def test_a_grid_that_is_not_said_or_cannot_be_halved_is_refused(small_folder: Path, tmp_path: Path, said: object, says: str) -> None:
    copy = shutil.copytree(small_folder, tmp_path / "grid")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": said}))
    with pytest.raises(PriorError, match=f"grid: its denoiser's .*{says}"):
        load_prior(str(copy))
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": [10, 10]}))
    assert load_prior(str(copy)).working_size == 80


def test_what_the_hub_does_not_give_is_named_file_by_file(
    written: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder, files = written
    asked: list[list[str]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        """As the hub does: of a repository whose weights are pickles, what the patterns name."""
        asked.append(allow_patterns)
        for path in (path for path in folder.rglob("*") if path.is_file()):
            own = path.relative_to(folder)
            if own in files.values():
                own = own.with_name("pytorch_model.bin" if own.name == "model.safetensors" else "diffusion_pytorch_model.bin")
            if any(fnmatch(own.as_posix(), pattern) for pattern in allow_patterns):
                (target := tmp_path / "cache" / own).parent.mkdir(parents=True, exist_ok=True)
                torch.save(load_file(path), target) if own.suffix == ".bin" else shutil.copy(path, target)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    prior = load_prior("someone/model")
    assert torch.equal(prior.unet.conv_in.weight, load_prior(str(folder)).unet.conv_in.weight)
    assert len(asked) == 3 and not any(fnmatch("safety_checker/model.safetensors", pattern) for patterns in asked for pattern in patterns)

    def fails(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(
        PriorError, match=r"ConnectionError\); on a machine with internet run 'hf download someone/model --local-dir FOLDER'"
    ):
        load_prior("someone/model")


@pytest.mark.parametrize(
    "index",
    ["[" * 5000, "[]", "5", '{"vae": 5}', '{"vae": ["diffusers"]}', '{"vae": {"a": 1}}', '{"vae": ["diffusers", ["os.system"]]}', "\x00"],
)
def test_a_hostile_index_is_one_line(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(PriorError, match=str(tmp_path)):
        load_prior(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "asked"),
    [("unet", {"layers_per_block": 10**400}), ("unet", {"transformer_layers_per_block": [1, [1, 10**9]]}),
     ("vae", {"encoder_layers_per_block": [10**6] * 3}), ("text_encoder", {"num_hidden_layers": 10**7}),
     ("text_encoder", {"text_config": {"model_type": "clip_text_model", "num_hidden_layers": 10**7}}),
     ("unet", {"layers_per_block": 101}), ("scheduler", {"num_train_timesteps": 10**9})],
)  # fmt: skip
def test_what_has_no_end_is_refused_before_it_is_built(tmp_path: Path, part: str, asked: dict[str, object]) -> None:
    copy = shutil.copytree(BUNDLED, tmp_path / "prior")
    (copy / "SHA256SUMS").unlink()
    [config] = (copy / part).glob("*config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | asked))
    with pytest.raises(PriorError, match=rf"{part}: its configuration says [a-z_]+ = .*, (100|100,000) at most are read"):
        load_prior(str(copy))


@pytest.mark.parametrize("width", [float("inf"), 0.5, [192, "x"], True])
def test_a_denoiser_of_other_tokens_is_refused_whatever_it_says(tmp_path: Path, width: object) -> None:
    copy = shutil.copytree(BUNDLED, tmp_path / "prior")
    (copy / "SHA256SUMS").unlink()
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": width}))
    with pytest.raises(PriorError, match=r"its denoiser takes tokens .* wide, its text encoder gives 192"):
        load_prior(str(copy))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_configuration_that_is_only_a_name_asks_nobody_for_it(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *asked, **more: pytest.fail(f"asked for {asked}"))
    copy = shutil.copytree(BUNDLED, tmp_path / "prior")
    (copy / "SHA256SUMS").unlink()
    [config] = (copy / part).glob("*config.json")
    config.write_text('"somebody/something"')
    with pytest.raises(PriorError, match=r"config\.json: holds no settings; get the folder anew"):
        load_prior(str(copy))
