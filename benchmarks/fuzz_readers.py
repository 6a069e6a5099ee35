"""Every reader of the package as a function of the bytes of one file, with valid files to begin from."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from anomalydiffusion.app.curate import decide
from anomalydiffusion.app.dataset import DefectDataset
from anomalydiffusion.app.doctor_run import examine
from anomalydiffusion.app.opened import run_split
from anomalydiffusion.app.settings import Settings, resolve, to_toml
from anomalydiffusion.conditioning.adapter import Adapter
from anomalydiffusion.conditioning.released import read_released
from anomalydiffusion.core.config import digest, to_dict
from anomalydiffusion.core.errors import AnomalyDiffusionError
from anomalydiffusion.core.imprint import Imprint, read_imprint
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.pixels import digest_file, encode_png, read_image, read_mask, read_size
from anomalydiffusion.core.runs import Run
from anomalydiffusion.data.folders import read_folder, read_groups
from anomalydiffusion.data.imports import import_data
from anomalydiffusion.data.regions import read_regions
from anomalydiffusion.generation.shards import files_of, open_slots, plan, put_in_order, slot_of
from anomalydiffusion.priors.files import BUNDLED, changed_files
from anomalydiffusion.priors.load import load_prior
from anomalydiffusion.priors.original import components_of
from anomalydiffusion.priors.weights import read_weights
from anomalydiffusion.report.export import export
from anomalydiffusion.report.page import report

__all__ = ["READERS"]

Target = Callable[[Path, bytes], None]  # an empty folder that the case may fill, and the bytes of the file
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
MARKS = np.zeros((12, 16), dtype=bool)
MARKS[3:8, 4:11] = True
KEY = ("tile", "crack")


def _encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(PICTURE)
    if mode == "I;16":
        picture = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    picture.save(out, kind, **options)
    return out.getvalue()


def _pictures() -> list[bytes]:
    return [
        *(_encoded("PNG", mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16")), _encoded("JPEG"), _encoded("JPEG", "CMYK"),
        _encoded("BMP"), _encoded("BMP", "P"), _encoded("TIFF"), _encoded("TIFF", "I;16"), _encoded("GIF"),
        _encoded("PPM"),
        *(_encoded("TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        _encoded("TIFF", "1", compression="group4"), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    ]  # fmt: skip


def _image(folder: Path, data: bytes) -> None:
    path = folder / "x.png"
    path.write_bytes(data)
    try:
        read_size(path)
    except AnomalyDiffusionError:
        read_image(path)
        raise AssertionError("the pixels of a picture of no size were read") from None
    read_image(path)


def _mask(folder: Path, data: bytes) -> None:
    (folder / "x.png").write_bytes(data)
    read_mask(folder / "x.png")


def _imprint_seeds() -> list[bytes]:
    said = Imprint(
        product="tile", defect="crack", index=3, attempt=0, seed=7, normal="a.png", normal_sha256="ab" * 32, mask_origin="warped",
        prior_digest="p", adapter_digest="a", settings_digest="s", steps=20, severity=1.0, version="1",
    )  # fmt: skip
    return [encode_png(PICTURE, said.chunk())]


def _imprint(folder: Path, data: bytes) -> None:
    (folder / "x.png").write_bytes(data)
    said = read_imprint(folder / "x.png")
    _stays(folder, "/".join(said.key))


def _stays(folder: Path, name: str) -> None:
    """What was read, and is used as a path, must lie in its folder."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise AssertionError(f"the name {name[:80]!r} leads out of the folder")


def _groups(folder: Path, data: bytes) -> None:
    for place in ("train/good", "test/crack", "ground_truth/crack"):
        (folder / "tile" / place).mkdir(parents=True)
    (folder / "tile" / "groups.csv").write_bytes(data)
    read_folder(folder)
    read_groups(folder / "tile")


def _put_pictures(folder: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        path = folder / "set" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(PICTURE))
    (folder / "set" / "images" / "b_mask.png").write_bytes(encode_png(MARKS))
    return folder / "set"


def _imported(layout: str, name: str) -> Target:
    def read(folder: Path, data: bytes) -> None:
        source = _put_pictures(folder) / name
        source.write_bytes(data)
        import_data(source, folder / "out", layout, product=None if layout == "visa" else "tile")

    return read


def _coco_seeds() -> list[bytes]:
    square = [4.0, 3.0, 11.0, 3.0, 11.0, 8.0, 4.0, 8.0]
    whole = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 12, "width": 16}, {"id": 2, "file_name": "b.png"},
            {"id": 3, "file_name": "images/c.png"},
        ],
        "categories": [{"id": 1, "name": "crack"}, {"id": 2, "name": "hole"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square], "bbox": [4, 3, 7, 5], "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "segmentation": {"size": [12, 16], "counts": [30, 12, 150]}},
            {"id": 3, "image_id": 2, "category_id": 2, "segmentation": {"size": [12, 16], "counts": "n0<f4"}},
        ],
    }  # fmt: skip
    return [json.dumps(whole).encode()]


def _labelstudio_seeds() -> list[bytes]:
    def region(kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"type": kind, "original_width": 16, "original_height": 12, "image_rotation": 0, "value": {**value, kind: ["crack"]}}

    points = region("polygonlabels", {"points": [[20, 20], [70, 20], [70, 60]]})
    box = region("rectanglelabels", {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 15})
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0123abcd-a.png"}, "annotations": [{"result": [points, box]}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=images/b.png"}, "annotations": [{"result": [], "ground_truth": True}]},
    ]
    return [json.dumps(tasks).encode()]


def _visa_seeds() -> list[bytes]:
    return [b"object,split,label,image,mask\ntile,train,normal,images/a.png,\ntile,test,crack,images/b.png,images/b_mask.png\n"]


def _yolo_tree(folder: Path, about: bytes, labels: bytes) -> Path:
    for side, name in (("train", "a"), ("train", "b"), ("val", "c")):
        path = folder / "set" / "images" / side / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(PICTURE))
    (folder / "set" / "labels" / "train").mkdir(parents=True)
    (folder / "set" / "labels" / "train" / "a.txt").write_bytes(labels)
    (folder / "set" / "data.yaml").write_bytes(about)
    return folder / "set" / "data.yaml"


YOLO = b"path: .\ntrain: images/train\nval: [images/val]\nnames: {0: crack, 1: hole}\n"
LABELS = b"0 0.2 0.2 0.7 0.2 0.7 0.6\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"


def _yolo(folder: Path, data: bytes) -> None:
    import_data(_yolo_tree(folder, data, LABELS), folder / "out", "yolo", product="tile")


def _yolo_labels(folder: Path, data: bytes) -> None:
    import_data(_yolo_tree(folder, YOLO, data), folder / "out", "yolo", product="tile")


def _region(folder: Path, data: bytes) -> None:
    (folder / "roi.json").write_bytes(data)
    for region in read_regions(folder).values():
        region.on((12, 16))


def _toml(folder: Path, data: bytes) -> None:
    (folder / "config.toml").write_bytes(data)
    settings = resolve(config=folder / "config.toml")
    digest(settings)
    to_dict(settings)


@cache
def _run(place: Path) -> Path:
    """A run of four pairs, one rejected, with its data set, beside the cases."""
    data, run = place / "data", Run.create(place / "run")
    normal = data / "tile" / "train" / "good" / "0.png"
    files = []
    for role, path in (("normal", normal), *((role, data / "tile" / "test" / "crack" / f"{role}.png") for role in ("shot", "held_out"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(PICTURE))
        marks = data / "tile" / "ground_truth" / "crack" / f"{role}_mask.png" if role != "normal" else None
        if marks:
            marks.parent.mkdir(parents=True, exist_ok=True)
            marks.write_bytes(encode_png(MARKS))
        files.append({
            "path": path.relative_to(data).as_posix(), "sha256": digest_file(path), "role": role, "product": "tile",
            "defect": "crack" if marks else None, "group": path.name, "mask": marks and marks.relative_to(data).as_posix(),
            "mask_sha256": marks and digest_file(marks),
        })  # fmt: skip
    run.split.write_text(json.dumps({"digest": "0" * 16, "root": str(data), "files": files}))
    run.config.write_text(to_toml(Settings()))
    for slot in plan([KEY], 4):
        keep = slot.index != 2
        paths = files_of(slot, 0, keep=keep, refitted=False)
        for name, data_of in (("image", encode_png(PICTURE)), ("mask", encode_png(MARKS))):
            target = run.folder / paths[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data_of)
        Manifest(run.manifest).append({
            "product": "tile", "defect": "crack", "seed": slot.index, "attempt": 0, "normal": str(normal),
            "normal_sha256": digest_file(normal), "mask_origin": "warped", "touched_box": [4, 3, 11, 8], "prior_digest": "0" * 16,
            "adapter_digest": "0" * 16, "config_digest": "0" * 16, "steps": 20, "severity": 1.0, "version": "0", "reference": "a.png",
            **paths, "image_sha256": digest_file(run.folder / paths["image"]), "mask_sha256": digest_file(run.folder / paths["mask"]),
            "accepted": keep, "reasons": [] if keep else ["nothing"], "measures": {"change": 0.5}, "seconds": 0.5,
        })  # fmt: skip
    return run.folder


def _copied(folder: Path, name: str, data: bytes) -> Run:
    """A copy of the run with one other file."""
    made = _run(folder.parent / "original")
    shutil.copytree(made, folder / "run")
    (folder / "run" / name).write_bytes(data)
    return Run.open(folder / "run")


def _seed_of(name: str) -> Callable[[Path], list[bytes]]:
    return lambda place: [(_run(place / "original") / name).read_bytes()]


def _each(*calls: Callable[[], object]) -> None:
    """Make every call, whatever another refuses; then pass on the first refusal."""
    refused: list[AnomalyDiffusionError] = []
    for call in calls:
        try:
            call()
        except AnomalyDiffusionError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _manifest(folder: Path, data: bytes) -> None:
    """What every command does with the whole of a manifest, and a verdict by hand, which moves files."""
    run = _copied(folder, "manifest.jsonl", data)
    named = "generated/tile/crack/images/000000.png"

    def resume() -> None:
        records = Manifest(run.manifest).pairs()
        open_slots(plan([KEY], 5), records, 5)
        for record in records:
            _stays(folder, "/".join(slot_of(record).key))

    _each(
        resume, lambda: export(run.folder, folder / "export", normals=False), lambda: examine(run.folder),
        lambda: list(DefectDataset(run.folder)), lambda: decide(run.folder, {named: False}), lambda: put_in_order(run), resume,
    )  # fmt: skip


FIGURE = {"mean": 0.5, "low": 0.4, "high": 0.6, "values": [0.5]}
SCORES = {"localization": {"products": {"tile": {"real": {"pixel_ap": FIGURE}}}, "seeds": [0], "split_digest": "0"}}


def _report(folder: Path, data: bytes) -> None:
    report(_copied(folder, "manifest.jsonl", data).folder, max_pairs=1)


def _scores(folder: Path, data: bytes) -> None:
    report(_copied(folder, "scores.json", data).folder, max_pairs=1)


def _run_json(folder: Path, data: bytes) -> None:
    run = _copied(folder, "run.json", data)
    _each(lambda: run.update(command="x", fact=1), lambda: examine(run.folder))


def _split(folder: Path, data: bytes) -> None:
    run = _copied(folder, "split.json", data)

    def keys() -> None:
        for shot in run_split(run).shots:
            _stays(folder, "/".join(shot.key))

    _each(keys, lambda: examine(run.folder), lambda: export(run.folder, folder / "export"))


@cache
def _prior() -> Any:
    return load_prior("tiny")


def _adapter_record(rank: int) -> bytes:
    width = _prior().token_width
    record = {
        "format": 1, "keys": [list(KEY)],
        "config": {"anomaly_tokens": 2, "spatial_tokens": 0, "lora_rank": rank, "prompt": "a photo of {}", "lora_targets": ["to_q"]},
        "origin": {"prior_digest": _prior().digest, "measures": {"tile/crack": {"grain": 0.5}}},
    }  # fmt: skip
    return save({"tokens.vectors": torch.zeros(1, 2, width)}, metadata={"anomalydiffusion": json.dumps(record)})


def _adapter(folder: Path, data: bytes) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(data)
    vectors = Adapter.vectors_of(path)
    for key in vectors:
        _stays(folder, "/".join(key))
    Adapter.load(path, load_prior("tiny") if b'lora_rank\\": 0' not in data else _prior())


def _released_seeds() -> list[bytes]:
    out = io.BytesIO()
    vectors = torch.nn.ParameterDict({"tile+crack": torch.nn.Parameter(torch.zeros(2, 4))})
    torch.save({"string_to_token": {"*": torch.tensor(1)}, "string_to_param": vectors}, out)
    return [out.getvalue()]


def _released(folder: Path, data: bytes) -> None:
    (folder / "embeddings.pt").write_bytes(data)
    vectors, _ = read_released(folder)
    for key in vectors:
        _stays(folder, "/".join(key))


def _pickle_seeds() -> list[bytes]:
    found = []
    for legacy in (False, True):
        out = io.BytesIO()
        torch.save({"state_dict": {"a": torch.zeros(3), "b": torch.ones(2, 2)}, "epoch": 1}, out, _use_new_zipfile_serialization=not legacy)
        found.append(out.getvalue())
    return found


def _weights(suffix: str) -> Target:
    def read(folder: Path, data: bytes) -> None:
        (folder / f"x{suffix}").write_bytes(data)
        read_weights(folder / f"x{suffix}")

    return read


def _prior_file(name: str) -> Target:
    def read(folder: Path, data: bytes) -> None:
        place = folder / "prior"
        shutil.copytree(BUNDLED, place, copy_function=lambda source, target: Path(target).symlink_to(source))
        (place / name).unlink()
        (place / name).write_bytes(data)
        load_prior(str(place))

    return read


ORIGINAL = b"""model:
  params:
    linear_start: 0.00085
    linear_end: 0.012
    timesteps: 1000
    parameterization: v
    scale_factor: 0.18215
    image_size: 16
    use_ema: false
    unet_config: {params: {in_channels: 4, num_heads: 8, model_channels: 64, channel_mult: [1, 2], context_dim: 64}}
    first_stage_config: {params: {ddconfig: {ch: 32, z_channels: 4, ch_mult: [1, 2]}}}
"""


@cache
def _published() -> dict[str, torch.Tensor]:
    """A small model under its authors' names, which the tests know how to write."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.priors.original_layout import original_clip, original_unet, original_vae

    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=64, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=700, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
                       max_position_embeddings=24, hidden_act="quick_gelu")
    )  # fmt: skip
    return {**original_unet(unet), **original_vae(vae), **original_clip(text)}


def _original(folder: Path, data: bytes) -> None:
    (folder / "x.yaml").write_bytes(data)
    components_of(dict(_published()), folder / "x.ckpt", folder / "x.yaml", torch.float32)


def _sums(folder: Path, data: bytes) -> None:
    (folder / "SHA256SUMS").write_bytes(data)
    changed_files(folder)


def _lineage(folder: Path, data: bytes) -> None:
    run, output = _run(folder.parent / "original"), folder / "export"
    export(run, output, normals=False)
    (output / "lineage.jsonl").write_bytes(data)
    export(run, output, normals=False)


def _lineage_seeds(place: Path) -> list[bytes]:
    export(_run(place / "original"), place / "export", normals=False)
    return [(place / "export" / "lineage.jsonl").read_bytes()]


Seeds = Callable[[Path], list[bytes]]


def _given(*seeds: bytes) -> Seeds:
    return lambda place: list(seeds)


def _made(make: Callable[[], list[bytes]]) -> Seeds:
    return lambda place: make()


READERS: dict[str, tuple[str, Seeds, Target]] = {
    "image": ("picture", _made(_pictures), _image),
    "mask": ("picture", _made(_pictures), _mask),
    "imprint": ("picture", _made(_imprint_seeds), _imprint),
    "groups.csv": ("rows", _given(b"file,group\ntrain/good/0.png,a\ntest/crack/0.png,b\n"), _groups),
    "COCO": ("json", _made(_coco_seeds), _imported("coco", "annotations.json")),
    "Label Studio": ("json", _made(_labelstudio_seeds), _imported("labelstudio", "tasks.json")),
    "VisA table": ("rows", _made(_visa_seeds), _imported("visa", "1cls.csv")),
    "YOLO yaml": ("words", _given(YOLO), _yolo),
    "YOLO labels": ("words", _given(LABELS), _yolo_labels),
    "region": ("json", _given(b"[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], [[0, 0], [1, 0], [0, 1]]]"), _region),
    "TOML": ("words", _made(lambda: [to_toml(Settings()).encode()]), _toml),
    "manifest": ("lines", _seed_of("manifest.jsonl"), _manifest),
    "report": ("lines", _seed_of("manifest.jsonl"), _report),
    "scores": ("json", _given(json.dumps(SCORES).encode()), _scores),
    "run.json": ("json", _seed_of("run.json"), _run_json),
    "split.json": ("json", _seed_of("split.json"), _split),
    "adapter": ("safetensors", _made(lambda: [_adapter_record(0), _adapter_record(0)]), _adapter),
    "released adapter": ("archive", _made(_released_seeds), _released),
    "safetensors": ("safetensors", _given(save({"a": torch.zeros(3)}, metadata={"a": "b"})), _weights(".safetensors")),
    "pickled weights": ("archive", _made(_pickle_seeds), _weights(".ckpt")),
    "prior's index": ("json", _made(lambda: [(BUNDLED / "model_index.json").read_bytes()]), _prior_file("model_index.json")),
    "prior's config": ("json", _made(lambda: [(BUNDLED / "unet" / "config.json").read_bytes()]), _prior_file("unet/config.json")),
    "original yaml": ("words", _given(ORIGINAL), _original),
    "sums": ("words", _given((BUNDLED / "SHA256SUMS").read_bytes()), _sums),
    "lineage": ("lines", _lineage_seeds, _lineage),
}  # fmt: skip
