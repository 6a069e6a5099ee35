"""The page is parsed as a browser would; the sheets are looked at pixel by pixel."""

from __future__ import annotations

import base64
import io
import json
import re
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion.core.errors import DataError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.report import page as module
from anomalydiffusion.report import pairs
from anomalydiffusion.report.page import report
from anomalydiffusion.report.sheets import BOX_COLOUR, OUTLINE_COLOUR, Row, amplification, cells, contact_sheet, strength

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, tags and attributes; fails on a tag that is closed wrongly."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def images(self) -> list[str]:
        """Those of pairs."""
        pictures = [attributes for tag, attributes in self.tags if tag == "img"]
        return [str(each["src"]) for each in pictures if not str(each["alt"]).startswith("Where the ")]


def test_the_page_counts_shows_and_explains(run: Path) -> None:
    path = report(run)
    assert path == run / "report/index.html"
    page = Page(path)
    for words in (
        "tile, wood", "2026-03-05", "9 accepted pairs", "3 rejected", "75 % yield of 12 attempts", "crack 4 1 80 %",
        "label covers … of the change, below … 3", "seed 1001", "--num 3 --seed 7", "9f02c4d1aa37be60", "Severity",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.images) == (9 + 3) * 5
    for source in page.images:
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as image:
            assert max(image.size) == 220


def test_each_defect_type_with_pairs_gets_a_contact_sheet(run: Path) -> None:
    page = Page(report(run))
    sheets = {path.name: np.asarray(Image.open(path)) for path in (run / "report").glob("*.png")}
    kinds = {(r["product"], r["defect"]) for r in Manifest(run / "manifest.jsonl").records() if r["accepted"]}
    assert set(sheets) == {f"{product}-{defect}.png" for product, defect in kinds} | {"overview.png"} and page.images
    assert len({sheet.shape[1] for sheet in sheets.values()}) == 1  # one column a word, whatever the amplification
    assert all(sheet.shape[2] == 3 and sheet.shape[0] > 160 for sheet in sheets.values())


def test_the_overview_stays_a_picture_that_can_be_seen_whole(run: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    (first, *_) = [record for record in manifest.records() if record["accepted"]]

    def height(types: int) -> int:
        manifest.rewrite([first | {"defect": f"type {number:02d}"} for number in range(types) for _ in range(3)])
        report(run)
        return int(np.asarray(Image.open(run / "report" / "overview.png")).shape[0])

    line = height(2) - height(1)
    assert line > 2 * 100 and height(3) == height(1) + 2 * line
    assert height(4) == height(2), "one pair of each of four types, where it was two of each of two"
    assert height(30) == height(24)


def test_the_page_stands_alone_and_is_the_same_twice(run: Path) -> None:
    html = report(run).read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html)
    assert addresses and all(address.startswith(("data:image/jpeg;base64,", "#kind-")) for address in addresses)
    assert not re.search(r"https?://|<script|<link|@import", html)
    assert report(run).read_text(encoding="utf-8") == html


def test_everything_from_the_run_is_escaped(run: Path) -> None:
    evil = '"><script>alert(1)</script>'
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite([record | {"defect": evil, "reasons": [evil], "mask_origin": evil} for record in manifest.records()])
    (run / "run.json").write_text(json.dumps({"commands": [evil], "created": evil, evil: evil}))
    (run / "scores.json").write_text(json.dumps({"arms": {evil: {evil: 1.0}}, "verdict": evil, evil: evil}))
    path = report(run)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "alert(1)" in Page(path).text


def test_scores_become_a_table_with_intervals_and_a_verdict(run: Path) -> None:
    real = {"pixel_ap": {"mean": 31.25, "low": 28.0, "high": 34.5}, "note": "x"}
    arms = {"real-only": real, "generated + real": {"pixel_ap": 41.7, "pro": 70}}
    block = {"arms": arms, "verdict": "It helps.", "seeds": [0, 1]}
    (run / "scores.json").write_text(json.dumps({"localization": block, "n": 3, "deep": [[1]]}))
    page = Page(report(run))
    assert page.text.count("It helps.") == 2  # at the top and at the table
    assert "Data pixel AP PRO real-only 31.2 28.0 – 34.5 – generated + real 41.7 70.0 seeds 0, 1" in page.text


def test_the_gain_stands_beside_what_it_is_of(run: Path) -> None:
    arms = {
        arm: {"pixel_ap": ap, "pixel_auroc": 0.9, "image_f1_max": 0.8, "gain": ap - 0.3} for arm, ap in (("real-only", 0.3), ("ours", 0.4))
    }
    (run / "scores.json").write_text(json.dumps({"localization": {"arms": arms}}))
    assert "Data pixel AP against real-only pixel AUROC image F1 max real-only 0.300" in Page(report(run)).text


def test_the_head_of_the_page_tells_each_tasks_verdict_and_not_every_types(run: Path) -> None:
    arms = {"real-only": {"pixel_ap": 0.3}, "ours": {"pixel_ap": 0.4}}
    block = {"arms": arms, "verdict": "It helps.", "per_defect": {"tile/crack": {"arms": arms, "verdict": "Not here."}}}
    (run / "scores.json").write_text(json.dumps({"localization": block}))
    (run / "evaluation").mkdir()
    Image.new("RGB", (40, 20), "red").save(run / "evaluation" / "tile.png")
    page = Page(report(run))
    assert page.text.count("It helps.") == 2 and page.text.count("Not here.") == 1
    assert "tile · test images on which generated pairs gain most" in page.text


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"arms": 3}', '{"arms": {"a": {}}}', '{"arms": {"a": {"m": {"mean": NaN}}}}', '{"localization": {"curves": 3}}',
     '{"localization": {"curves": {"recall": [0, 1], "precision": {"a": [null, 1], "b": [1]}}}}'],
)  # fmt: skip
def test_strange_scores_do_no_harm(run: Path, content: str) -> None:
    (run / "scores.json").write_text(content)
    lines = ['{"step": 1, "loss": 1}', "nonsense", '{"step": 2, "loss": NaN}', f'{{"step": {10**400}, "loss": 1}}']
    lines += ['{"step": 3, "loss": 1e308}', '{"step": 4, "loss": -1e308}']
    (run / "train_log.jsonl").write_text("\n".join(lines))
    assert "What was made" in Page(report(run)).text


def test_precision_by_recall_has_a_line_for_each_arm(run: Path) -> None:
    curves = {"recall": [0, 0.5, 1], "precision": {"real-only": [1, 0.5, 0.1], "perlin": [1, 1, 0], "ours": [1, 0.75, 0.2]}}
    (run / "scores.json").write_text(json.dumps({"localization": {"arms": {}, "curves": curves}}))
    page = Page(report(run))
    lines = [(attributes["class"], attributes["points"]) for tag, attributes in page.tags if tag == "polyline"]
    assert lines[0] == ("arm real", "0.0,0.0 500.0,150.0 1000.0,270.0") and [name for name, _ in lines[1:]] == ["arm arm0", "arm ours"]
    assert "Precision by recall" in page.text and "recall 0" not in page.text


def test_the_training_curve_is_drawn_inside_its_frame(run: Path) -> None:
    losses = 0.1 + np.exp(-np.arange(1000) / 150)
    log = [{"step": 10 * (i + 1), "loss": loss} for i, loss in enumerate(losses)] + [{"step": 500, "loss": losses[49]}]
    (run / "train_log.jsonl").write_text("\n".join(map(json.dumps, log)))
    page = Page(report(run))
    raw, smooth = (np.array([p.split(",") for p in str(a["points"]).split()], float) for t, a in page.tags if t == "polyline")
    for line in (raw, smooth):
        assert (np.diff(line[:, 0]) > 0).all() and (np.diff(line[:, 1]) >= 0).all()  # the loss falls, so the line goes down
        assert line.min() >= 0 and line[:, 0].max() <= 1000 and line[:, 1].max() <= 300
    assert "10,000 steps" in page.text and "4,000" in page.text


def test_the_sample_is_even_and_bounded(run: Path) -> None:
    path = report(run, max_pairs=2)
    text = Page(path).text
    assert "2 of 4 accepted" in text and "000000.png" in text and "2 of 2 accepted" in text
    assert len(Page(path).images) == (2 + 2 + 2 + 3 * 1) * 5


def test_full_size_images_are_dropped_pair_by_pair(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[weakref.ref[np.ndarray]] = []
    most = 0

    def watched(path: Path, real=pairs.read_image) -> np.ndarray:
        nonlocal most
        image = real(path)
        read.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in read))
        return image

    monkeypatch.setattr(pairs, "read_image", watched)
    report(run)
    assert len(read) >= 2 * 12 and most <= 2  # a pair's result and its normal image


def test_every_command_that_the_page_names_exists(run: Path) -> None:
    from anomalydiffusion.app.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    template = (Path(module.__file__).parent / "templates/report.html.j2").read_text(encoding="utf-8")
    named = set(re.findall(r"<code>anomalydiffusion ([a-z-]+)", template))
    assert "generate" in named and named <= known


def test_ten_thousand_pairs_make_a_page_of_bounded_size(run: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    records = manifest.records()
    manifest.rewrite(records[i % len(records)] | {"seed": i} for i in range(10_000))
    path = report(run)
    assert "7,500 accepted pairs" in Page(path).text and path.stat().st_size < 5e6


def test_pairs_that_cannot_be_read_are_left_out_and_counted(run: Path) -> None:
    (run / "generated/wood/scratch/images/000000.png").unlink()
    (run / "generated/tile/crack/masks/000000.png").write_bytes(b"junk")
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite(record | ({"normal": "gone.png"} if record["defect"] == "spot" else {}) for record in manifest.records())
    page = Page(report(run))
    assert page.text.count("1 sampled pair could not be read and is not shown.") == 2
    shown = 7 * 5 - 2 * 2 + 3 * 5 - 2  # the three spots have no normal and no difference
    assert len(page.images) == shown
    manifest.rewrite(record | {"touched_box": [0, 0, float("inf"), 9]} for record in manifest.records())
    assert not Page(report(run)).images
    manifest.rewrite(record | {"touched_box": [0, 0, 9, 9]} for record in manifest.records())
    assert len(Page(report(run)).images) == shown


@pytest.mark.parametrize(
    "other",
    [
        {"reasons": -(10**30)},
        {"reasons": 2},
        {"defect": 300 * "x"},
        {"defect": "a/b"},
        {"product": "\ud800"},
        {"normal": 300 * "x"},
        {"normal": 10**400, "seconds": 10**400},
        {"defect": "a-b"},
    ],
)
def test_records_that_another_tool_wrote_badly_do_no_harm(run: Path, other: dict) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    manifest.rewrite(record | other for record in manifest.records())
    before = len(list((run / "report").glob("*.png")))
    page = Page(report(run))
    assert page.images and len(list((run / "report").glob("*.png"))) > before
    assert all(len(path.name) < 100 and path.parent == run / "report" for path in run.rglob("report/**/*.png"))


def test_a_folder_that_is_no_run_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    Manifest(run / "manifest.jsonl").rewrite([])
    assert "holds no attempt yet" in Page(report(run)).text
    (run / "manifest.jsonl").unlink()
    with pytest.raises(RunError, match=r"manifest\.jsonl: no such file.*anomalydiffusion generate"):
        report(run)
    with pytest.raises(RunError, match=r"no readable run\.json.*anomalydiffusion train") as caught:
        report(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def toy_row(size: tuple[int, int] = (120, 200), change: int = 40, **values: object) -> Row:
    normal = np.full((*size, 3), 128, np.uint8)
    mask = np.zeros(size, bool)
    mask[50:60, 100:120] = True
    image = normal.copy()
    image[mask] -= np.uint8(change)
    return Row(**{"image_HWC": image, "mask_HW": mask, "box": (96, 46, 124, 64), "normal_HWC": normal, **values})  # type: ignore[arg-type]


def test_cells_show_the_defect_large_and_the_label_around_it() -> None:
    row = toy_row()
    whole, normal, result, label, difference = cells(row, cell=192, amplify=4)
    assert [c.label for c in cells(row)] == ["whole result", "normal", "result", "label", "difference ×1"]
    assert whole.image_HWC.shape == (115, 192, 3) and (whole.image_HWC == BOX_COLOUR).all(2).any()
    assert normal.image_HWC.shape == (192, 192, 3) and (normal.image_HWC == 128).all()
    dark = (result.image_HWC < 100).all(2)  # 48 pixels became 192: the defect of 10 x 20 is about 40 x 80
    assert abs(dark.any(1).sum() - 40) <= 3 and abs(dark.any(0).sum() - 80) <= 3
    line = (label.image_HWC == OUTLINE_COLOUR).all(2)
    assert line.any() and not (line & dark).sum() > 0.2 * line.sum()
    assert difference.image_HWC[96, 96].max() > 200 and difference.image_HWC[5, 5].max() < 60


def test_amplification_is_one_power_of_two_for_all() -> None:
    assert strength(toy_row(change=120)) == 120 and strength(toy_row(normal_HWC=None)) is None
    assert amplification([120.0]) == 2
    assert amplification([3.0, None, 3.0]) == 16
    assert amplification([None]) == amplification([]) == 1


def test_a_large_difference_is_averaged_down_and_still_shown() -> None:
    size, box = (1500, 1600), (10, 10, 1590, 1490)
    normal, mask = np.full((*size, 3), 128, np.uint8), np.zeros(size, bool)
    mask[300:900, 400:1000] = True
    image = normal.copy()
    image[mask] = np.random.default_rng(0).choice([8, 248], (mask.sum(), 1))  # as much darker as lighter: no change on average
    row = Row(image_HWC=image, mask_HW=mask, box=box, normal_HWC=normal)
    heat = cells(row, cell=100, amplify=2)[-1].image_HWC
    assert heat.shape == (94, 100, 3) and heat[35, 45].max() > 200 and heat[80, 80].max() < 60


def test_a_crop_at_the_border_and_a_small_image_stay_inside() -> None:
    corner = np.zeros((120, 200), bool)
    corner[:6, :6] = True
    assert cells(toy_row(mask_HW=corner, box=(0, 0, 8, 8)))[1].image_HWC.shape == (160, 160, 3)
    tiny = Row(image_HWC=np.zeros((20, 30, 3), np.uint8), mask_HW=np.ones((20, 30), bool), box=(0, 0, 30, 20))
    assert [c.image_HWC.shape for c in cells(tiny)] == [(107, 160, 3)] * 3


def test_a_contact_sheet_is_white_with_equal_cells() -> None:
    sheet = contact_sheet([("seed 1", cells(toy_row(), cell=100)), ("", cells(toy_row(normal_HWC=None), cell=100))], gap=4)
    assert sheet.dtype == np.uint8 and sheet.shape == (4 + 18 + 18 + 104 * 2, 4 + 5 * 104, 3)
    assert (sheet[-1] == 255).all() and (sheet[:, 0] == 255).all()
    assert (sheet[-104:, 108:208] == 255).all()  # the second pair has no normal
    with pytest.raises(DataError, match="at least one pair"):
        contact_sheet([])
    with pytest.raises(DataError, match="mask and normal are"):
        toy_row(mask_HW=np.ones((5, 5), bool))
    with pytest.raises(DataError, match="does not lie in the image"):
        toy_row(box=(0, 0, 999, 5))


def _masks(page: Page) -> str:
    return page.text.partition("The masks")[2].partition("How to make it again")[0]


def test_masks_are_measured_beside_the_real_ones(run: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    square, bars = np.zeros((200, 260), bool), np.zeros((200, 260), bool)
    square[50:90, 60:73] = True  # 520 of 52000 pixels: 1 %
    bars[0, 0:26] = bars[100, 0:26] = True  # 0.1 % in two parts, at two sides
    for record in manifest.records():
        if record["defect"] == "crack":
            Image.fromarray(square).save(run / record["mask"])
    split = json.loads((run / "split.json").read_text())
    (shot,) = [row for row in split["files"] if row["role"] == "shot" and row["product"] == "tile"]
    shot["mask"] = "tile/ground_truth/crack/shot_mask.png"
    (Path(split["root"]) / shot["mask"]).parent.mkdir(parents=True)
    Image.fromarray(bars).save(Path(split["root"]) / shot["mask"])
    (run / "split.json").write_text(json.dumps(split))
    page = Page(report(run))
    said = _masks(page)
    assert "tile/crack real 1 measured 0.100 all alike 2 all alike" in said, said
    assert "generated 4 measured 1.00 all alike 3.32 doublings away 1 all alike 1.00 away 3.08 all alike" in said, (
        "log2(1 / 0.1), and a part less"
    )
    assert "25.0 all alike 25.0 % away 0 %" in said, "fifty pixels of two hundred from the nearest side"
    assert "wood/scratch generated 3 measured" in said and "wood/scratch real" not in said
    where = {str(a["alt"]): str(a["src"]) for tag, a in page.tags if tag == "img" and "Where the" in str(a["alt"])}
    assert len(where) == 4
    (own,) = [source for name, source in where.items() if "real masks of tile/crack" in name]
    with Image.open(io.BytesIO(base64.b64decode(own.removeprefix("data:image/jpeg;base64,")))) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape == (64, 64) and pixels[0, :5].min() > 100 and pixels[10:25, 10:].max() < 60


def test_the_masks_of_a_quality_evaluation_are_one_table_a_defect_type(run: Path) -> None:
    def figure(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean, "high": mean}

    masks = {
        arm: {"area": figure(0.01), "parts": figure(1), "distance": {"area": away, "parts": 0.0}}
        for arm, away in (("ours", 0.25), ("perlin", 2.5))
    }
    own = {"n_generated": 4, "arms": {"ours": {"kid": figure(0.02)}}, "masks": masks}
    (run / "scores.json").write_text(json.dumps({"quality": {"arms": {"ours": {"kid": figure(0.02)}}, "per_defect": {"tile/crack": own}}}))
    page = Page(report(run))
    titles = [part.partition(" Data ")[0] for part in page.text.split("Quality · per defect · ")[1:]]
    assert len(titles) == 2 and titles[1].startswith("tile/crack · masks")
    assert "Data area area away parts parts away ours 0.0100 0.250 1.00 0 perlin 0.0100 2.50 1.00 0" in page.text, page.text[-3000:]


def test_the_gate_s_limits_stand_at_their_type(run: Path) -> None:
    (run / "gate.json").write_text(
        json.dumps({"limits": {"tile/crack": {"agreement": 0.404, "margin": None, "evenness": -1.74}, "wood/scratch": 3}})
    )
    said = Page(report(run)).text
    assert said.count("The gate’s limits for this type") == 1
    assert "The gate’s limits for this type: agreement at least 0.404, evenness at least -1.74." in said


ROWS = '{"root": ".", "files": [{"role": "shot"%s}]}'
STRAY = ', "mask": "../../secret.png", "product": "tile", "defect": "crack"'


@pytest.mark.parametrize("content", ["", "[]", '{"files": [3]}', ROWS % "", ROWS % STRAY])
def test_a_damaged_split_leaves_out_the_real_masks(run: Path, content: str) -> None:
    (run / "split.json").write_text(content)
    said = _masks(Page(report(run)))
    assert "tile/crack generated 4 measured" in said and not re.search(r"real \d+ measured", said)


def test_what_was_learned_of_masks_has_its_own_curve(run: Path) -> None:
    for name in ("train", "mask"):
        (run / f"{name}_log.jsonl").write_text("".join(json.dumps({"step": i + 1, "loss": 1 / (i + 1)}) + "\n" for i in range(9)))
    text = Page(report(run)).text
    assert "Loss by step · defects" in text and "Loss by step · masks" in text


def test_a_damaged_sheet_of_the_proof_is_left_out(run: Path) -> None:
    before = len(Page(report(run)).images)
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "tile.png").write_bytes(b"junk")
    assert len(Page(report(run)).images) == before


def test_pictures_from_outside_of_the_run_stay_outside(run: Path) -> None:
    manifest = Manifest(run / "manifest.jsonl")
    Image.new("RGB", (260, 200)).save(run.parent / "secret.png")
    manifest.rewrite(record | {"image": "../secret.png", "touched_box": [0, 0, 9, 9]} for record in manifest.records())
    page = Page(report(run))
    assert "could not be read" in page.text and not any("secret" in str(tag) for tag in page.tags if tag[0] == "img")
