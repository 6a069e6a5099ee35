"""A first-time user in a real browser: data, a painted mask, pairs, a verdict by hand, an export; and what the page refuses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from anomalydiffusion.app.curate import decide
from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.jobs import Jobs, Line, _devices
from anomalydiffusion.app.studio import close, studio
from anomalydiffusion.app.tabs.review import _details
from anomalydiffusion.core.errors import ConfigError, DataError, RunError
from anomalydiffusion.core.runs import Run, hold
from anomalydiffusion.data.folders import read_folder
from tests.app.looks import nameless, pale, wide
from tests.conftest import build_prior_folder
from tests.flows.test_flow import _data

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SMALL = """
train = {pool = {crops = 16}, loop = {steps = 4}}
gate = {visible = 0.0, change = 0.0, strict = 0.0}
generate = {steps = 3, batch_size = 3}
"""


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Devices that no other studio of this user works on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("devices")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a run that has learned a little and has pairs."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "small.toml").write_text(SMALL)
    build_prior_folder(folder / "prior")
    _learn_a_little(folder, "data", "run")
    return folder


def _learn_a_little(folder: Path, data: str, run: str) -> None:
    """A data set, and a run that has learned from it for some steps and has pairs."""
    words = ["train", _data(folder / data), "--output", folder / run, "--prior", folder / "prior", "--config", folder / "small.toml"]
    for command in (words, ["generate", folder / run, "--num", "3"]):
        subprocess.run([sys.executable, "-m", "anomalydiffusion", *map(str, command), "--quiet"], check=True)


@pytest.fixture(scope="module")
def page(base: Path) -> Iterator[Page]:
    """The studio in a browser that would tell of any request to elsewhere."""
    if not CHROMIUM:  # a browser is no Python package: who has none still runs all other tests; `.ci/run` installs one
        pytest.skip("no chromium: install Debian's package of that name, or name one in CHROMIUM")
    port = _port()
    served = studio(base / "run", port=port, wait=False)
    asked: list[str] = []
    try:
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1280, "height": 900})
            view.on("request", lambda request: asked.append(request.url))
            view.goto(f"http://127.0.0.1:{port}")
            view.wait_for_selector("#data-look", timeout=60_000)
            view.set_default_timeout(60_000)
            yield view
            browser.close()
    finally:
        close(served)
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}


def _says(page: Page, place: str, text: str, seconds: float = 60) -> None:
    """Wait until a part of the page shows a text, or holds it in a field."""
    page.wait_for_function(
        "([place, text]) => { const found = document.querySelector(place); const field = found && found.querySelector('textarea');"
        " return found && (found.innerText + (field ? field.value : '')).includes(text) }",
        arg=[place, text], timeout=1000 * seconds,
    )  # fmt: skip


def _stroke(page: Page, editor: str, dx: int, dy: int) -> None:
    """Paint a line through the middle of an editor's picture."""
    canvas = page.locator(f"{editor} canvas").first
    page.wait_for_timeout(4000)  # the picture and its layer are laid out
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - dx, y - dy)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=12)
    page.mouse.up()
    page.wait_for_timeout(2000)  # the page has heard of it


def _fill(page: Page, field: str, text: str) -> None:
    """Type into a field of a tab just opened, which may still be given its first value; and leave it, so the page knows."""
    for _ in range(10):
        page.wait_for_timeout(500)
        page.fill(field, text)
        page.keyboard.press("Tab")
        page.wait_for_timeout(500)
        if page.input_value(field) == text:
            return
    raise AssertionError(f"{field} does not keep {text!r}")


def _open(page: Page, tab: str) -> None:
    """Open a tab, which a narrow page keeps in a menu."""
    button = page.get_by_role("tab", name=tab)
    if not button.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()
        return
    for _ in range(20):  # a page that is still being built may not hear the first
        button.click()
        page.wait_for_timeout(200)
        if button.get_attribute("aria-selected") == "true":
            return
    raise AssertionError(f"{tab}: does not open")


def test_data_are_shown_and_a_mask_is_mended(page: Page, base: Path) -> None:
    page.click("#data-look")
    _says(page, "#data-found", "stain")
    page.click("#data-masks button")
    page.click("#label-defect input")
    page.get_by_role("option", name="hole").click()
    page.click("#label-image input")
    page.get_by_role("option", name="3.png").click()
    page.wait_for_selector("#label-editor canvas")
    target = base / "data" / "plate" / "ground_truth" / "hole" / "3_mask.png"
    before = np.asarray(Image.open(target)) > 0
    _stroke(page, "#label-editor", 60, 40)
    page.click("#label-save")
    _says(page, "#label-saved", "Saved")
    after = np.asarray(Image.open(target)) > 0
    assert after.shape == before.shape and after[before].mean() > 0.95 and after.sum() > before.sum() + 50


def test_a_painted_mask_is_drawn_on(page: Page) -> None:
    _open(page, "Draw")
    page.wait_for_selector("#draw-editor canvas")
    _stroke(page, "#draw-editor", 30, 0)
    page.click("#draw-start")
    _says(page, "#draw-result", "difference")
    assert page.locator("#draw-result img").count() >= 5


def test_pairs_are_made_in_the_background_and_judged_by_hand(page: Page, base: Path) -> None:
    _open(page, "Batch")
    _fill(page, "#batch-num input", "4")
    page.click("#batch-start")
    _says(page, "#job-state", "done: generate", 180)
    records = [json.loads(line) for line in (base / "run" / "manifest.jsonl").read_text().splitlines()]
    assert sum(record["accepted"] for record in records) == 8
    _open(page, "Review")
    _says(page, "#review-about", "1 of 8")
    page.keyboard.press("n")
    _says(page, "#review-about", "2 of 8")
    page.keyboard.press("r")
    _says(page, "#review-about", "2 of 7")
    records = [json.loads(line) for line in (base / "run" / "manifest.jsonl").read_text().splitlines()]
    (gone,) = [record for record in records if record["reasons"] == ["rejected by hand"]]
    assert not gone["accepted"] and (base / "run" / gone["image"]).is_file() and "/rejected/" in gone["image"]
    page.locator("#review-verdict").get_by_text("rejected").click()
    _says(page, "#review-about", "rejected by hand")
    page.click("#review-reason input")
    page.get_by_role("option", name="rejected by hand (1)").click()
    _says(page, "#review-about", "1 of 1")
    page.click("#review-judge > button")
    page.click("#review-suggest")
    _says(page, "body", "0 kept and 1 rejected by hand; limits are drawn from 3 of each")
    _fill(page, "#review-strict input[type=number]", "7")
    page.fill("#review-page input", "3")
    page.keyboard.press("Tab")
    page.locator("#review-verdict").get_by_text("kept").click()  # while the page of that number is looked for
    _says(page, "#review-about", "1 of 7")
    expect(page.locator("#review-page input")).to_have_value("1", timeout=20_000)
    assert page.input_value("#review-strict input[type=number]") == "7", "what is set stays until it is judged by"
    _open(page, "Batch")
    _says(page, "#batch-counts", "plate/hole")
    _says(page, "#batch-line", "done")
    _open(page, "Export")
    _fill(page, "#export-folder textarea, #export-folder input", "handed")
    page.click("#export-start")
    _says(page, "#export-done", "7 pairs")
    assert len(list((base / "handed").rglob("*_mask.png"))) == 7


def test_a_pair_is_drawn_again_in_its_place(page: Page, base: Path) -> None:
    def records() -> list[dict]:
        return [json.loads(line) for line in (base / "run" / "manifest.jsonl").read_text().splitlines()]

    _open(page, "Review")
    _says(page, "#review-about", "1 of 7")
    before = next(record for record in records() if record["accepted"])
    page.click("#review-redraw")
    _says(page, "#job-state", "redraw.toml")
    _says(page, "#job-state", "done: generate", 180)
    own = [record for record in records() if record["defect"] == before["defect"]]
    (old,) = [record for record in own if record["seed"] == before["seed"]]
    (new,) = [record for record in own if record["image"] == before["image"]]
    assert old["reasons"] == ["rejected by hand"] and not old["accepted"]
    assert new["accepted"] and new["attempt"] > 0 and new["seed"] != old["seed"] and new["config_digest"] == old["config_digest"]
    assert sum(record["accepted"] for record in own) == 4
    _open(page, "Batch")
    _open(page, "Review")
    _says(page, "#review-about", "1 of 8")
    with pytest.raises(ConfigError, match="another attempt is kept in its place"):
        Desk(base / "run").redraw(old["image"])
    with pytest.raises(RunError, match="was judged meanwhile"):
        Desk(base / "run").redraw("generated/gone.png")


def test_what_is_learned_by_now_is_shown_beside_the_loss(page: Page, base: Path) -> None:
    _open(page, "Learn")
    assert Desk(base / "run").preview() is None
    sheet = base / "run" / "previews" / "step-000004.png"
    sheet.parent.mkdir()
    Image.new("RGB", (40, 30), "red").save(sheet)
    page.wait_for_selector("#learn-preview img")
    assert "drawn with what is learned" in str(page.get_attribute("#learn-preview img", "alt"))


def _visit(page: Page, port: int) -> Page:
    """Another page of the browser, on the studio of another run."""
    assert page.context.browser is not None
    view = page.context.browser.new_page(viewport={"width": 1280, "height": 900})
    view.set_default_timeout(60_000)
    view.goto(f"http://127.0.0.1:{port}")
    view.wait_for_selector("#data-look", timeout=60_000)
    return view


def test_learning_and_the_proof_go_on_when_the_page_is_closed(page: Page, base: Path) -> None:
    """Started, left, found again, stopped and gone on with; a proof of a run that is through, from its button to its sentence."""
    run, through, port = base / "long", base / "left", _port()
    _learn_a_little(base, "kept", "left")
    losses = Desk(run).losses

    def learned(more: int) -> int:
        until = time.monotonic() + 120
        while len(losses()) < more and time.monotonic() < until:
            time.sleep(0.2)
        return int(losses()[-1][0])

    words = [
        "train",
        base / "kept",
        "--output",
        run,
        "--prior",
        base / "prior",
        "--config",
        base / "small.toml",
        "--max-train-steps",
        100000,
    ]
    begun = Jobs(base / "begun")
    begun.start(list(map(str, words)))
    learned(1)
    ended = begun.stop(60)
    assert ended is not None and ended.code == 130
    before = len(losses())
    served = studio(run, data=base / "kept", port=port, wait=False)
    try:
        view = _visit(page, port)
        _open(view, "Learn")
        view.click("#learn-start")
        _says(view, "#job-state", "running: train", 120)
        view.close()
        first = learned(before + 1)
        view = _visit(page, port)
        _says(view, "#job-state", "running: train")
        _says(view, "#job-lines", "/100000")
        _open(view, "Learn")
        view.wait_for_selector("#learn-curve canvas, #learn-curve svg")
        view.click("#learn-stop")
        _says(view, "#job-state", "stopped; start it again to go on: train")
        stopped = losses()[-1][0]
        assert first <= stopped < 100000
        view.click("#learn-start")
        _says(view, "#job-state", "running: train")
        assert learned(len(losses()) + 1) > stopped
        assert [step for step, _ in losses()].count(first) == 1, "it went on where it was"
        view.click("#learn-stop")
        _says(view, "#job-state", "stopped; start it again to go on: train")
        view.close()
    finally:
        close(served)
    served = studio(through, data=base / "kept", port=port, wait=False)
    try:
        view = _visit(page, port)
        _open(view, "Proof")
        _fill(view, "#proof-seeds input", "1")
        _fill(view, "#proof-steps input", "2")
        view.click("#proof-start")
        _says(view, "#job-state", "running: evaluate")
        view.close()
        view = _visit(page, port)
        _says(view, "#job-state", "done: evaluate", 240)
        _open(view, "Proof")
        _says(view, "#proof-table", "ours")
        _says(view, "#proof-verdict", json.loads((through / "scores.json").read_text())["localization"]["verdict"][:40])
        view.wait_for_selector("#proof-curves canvas, #proof-curves svg")
        _says(view, "#proof-legend", "real-only")
        view.wait_for_selector("#proof-sheets img")
        view.close()
    finally:
        close(served)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_control_has_a_name_every_text_can_be_read_and_nothing_is_cut(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    try:
        for tab in ("Data", "Learn", "Draw", "Batch", "Review", "Proof", "Export"):
            _open(page, tab)
            page.wait_for_timeout(1000)  # what the tab is given when it opens is there
            assert (tab, nameless(page), pale(page), wide(page)) == (tab, [], [], [])
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


def test_what_goes_wrong_is_said_on_the_page(page: Page) -> None:
    _open(page, "Export")
    _fill(page, "#export-folder textarea, #export-folder input", "data")
    page.click("#export-start")
    _says(page, "body", "is not empty and not an export of ours")


def test_a_verdict_by_hand_stays_and_one_that_comes_too_late_is_refused(base: Path) -> None:
    run = shutil.copytree(base / "run", base / "judged", ignore=shutil.ignore_patterns("studio"))
    desk = Desk(run)
    kept = desk.pairs("", "kept")
    record = desk.decide(kept[0]["image"], False)
    assert not record["accepted"] and len(desk.pairs("", "kept")) == len(kept) - 1
    with pytest.raises(RunError, match="was judged meanwhile"):
        desk.decide(kept[0]["image"], False)
    desk.judge(visible=0.0, agreement=None, strict=0.0, refit=True)
    after = next(each for each in desk.pairs("", "rejected") if each["seed"] == record["seed"])
    assert after["reasons"] == ["rejected by hand"]
    with pytest.raises(ConfigError, match="two attempts at one pair cannot both be kept"):
        _two_attempts(run, after)
    back = desk.decide(after["image"], True)
    assert back["accepted"] and back["reasons"] == ["kept by hand"] and back["image"] == kept[0]["image"]
    desk.judge(visible=1000.0, agreement=None, strict=0.0, refit=False)
    (only,) = desk.pairs("", "kept")
    assert only["seed"] == record["seed"] and only["reasons"] == ["kept by hand"]


def test_two_tabs_that_judge_one_pair_do_not_overrule_each_other_unseen(base: Path) -> None:
    run = shutil.copytree(base / "run", base / "twice", ignore=shutil.ignore_patterns("studio"))
    first, second = Desk(run), Desk(run)
    shown = [desk.pairs("", "kept")[0] for desk in (first, second)]  # each tab shows it as it was
    before = [record["seed"] for record in first.pairs("", "kept")]
    first.decide(shown[0]["image"], True, shown[0]["reasons"])
    with pytest.raises(RunError, match=r"was judged meanwhile \(kept by hand\); look again"):
        second.decide(shown[1]["image"], False, shown[1]["reasons"])
    assert [record["seed"] for record in first.pairs("", "kept")] == before
    again = second.decide(shown[1]["image"], True, shown[1]["reasons"])  # they agree
    assert again["reasons"] == ["kept by hand"]
    assert second.decide(again["image"], False, again["reasons"])["reasons"] == ["rejected by hand"]  # having looked


def _two_attempts(run: Path, record: dict) -> None:
    """Ask to keep an attempt and another one at the same pair."""
    lines = [json.loads(line) for line in (run / "manifest.jsonl").read_text().splitlines()]
    twin = {**record, "attempt": 9, "image": record["image"].replace(f"-{record['attempt']}.png", "-9.png")}
    shutil.copy(run / record["image"], run / twin["image"])
    (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, twin]))
    try:
        decide(run, {record["image"]: True, twin["image"]: True})
    finally:
        (run / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / twin["image"]).unlink()


def test_names_and_pictures_from_outside_are_checked(base: Path, tmp_path: Path) -> None:
    desk = Desk(base / "run")
    image, marks = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), bool)
    marks[4:9, 5:12] = True
    for product, defect, name in (
        ("../x", "hole", "a.png"),
        ("plate", "a/b", "a.png"),
        ("plate", "hole", "../../a.png"),
        ("plate", "hole", "a\0.png"),
        ("plate", ".git", "a.png"),
        ("plate", "", "a"),
    ):
        with pytest.raises(DataError, match="give a plain name"):
            desk.save_label(product, defect, marks, name, image)
    with pytest.raises(DataError, match="the mask is 30 x 20, the image 10 x 20"):
        desk.save_label("plate", "hole", marks, "a.png", image[:, :10])
    with pytest.raises(DataError, match="the mask is 30 x 20, the image 170 x 150"):
        desk.save_label("plate", "hole", marks, "4.png")
    with pytest.raises(DataError, match="is there already; give another name"):
        desk.save_label("plate", "hole", marks, "4.png", image)
    with pytest.raises(DataError, match="is what the folder of normal images is called"):
        desk.save_label("plate", "good", marks, "new.png", image)
    with pytest.raises(DataError, match=r"no image gone\.png"):
        desk.save_label("plate", "hole", marks, "gone.png")
    with pytest.raises(ConfigError, match="choose the same defects of each product"):
        desk.learn(["tile/crack", "wood/scratch"], None, "default")
    fake = tmp_path / "picture.png"
    fake.write_bytes(b"MZ\x90\x00 not a picture")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        desk.opened(fake)
    with pytest.raises(DataError, match="is no normal image of plate"):
        desk.draw("plate/hole", str(fake), None, 1.0, 0)
    with pytest.raises(DataError, match="is no normal image of plate"):
        desk.normal("plate/hole", str(base / "data" / "plate" / "test" / "hole" / "4.png"))
    assert desk.normal("plate/hole", desk.normals("plate")[0]).shape == (150, 170, 3)
    for word in ("plate", "/hole", "plate/"):
        with pytest.raises(ConfigError, match="expected product/defect"):
            desk.draw_many(1, [word], "1")
    own = Desk(base / "run", tmp_path / "own")
    assert own.save_label("board", "dent", marks, "first.jpg", image).is_file()
    assert own.products() == {"board": ["dent"]} and (own.label("board", "dent", "first.png")[1] == marks).all()


def test_a_job_is_seen_by_another_page_and_stopped(tmp_path: Path, base: Path) -> None:
    jobs, words = Jobs(tmp_path), ["train", str(base / "data"), "--output", str(tmp_path / "run"), "--prior", str(base / "prior"),
                                   "--config", str(base / "small.toml"), "--max-train-steps", "100000"]  # fmt: skip
    assert jobs.state() is None and jobs.start(words).running
    other = Jobs(tmp_path)
    with pytest.raises(RunError, match="is still running"):
        other.start(["check", "x"])
    elsewhere = Jobs(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="a studio of another run has work under way"):
        elsewhere.start(["check", "x"])
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "train_log.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.2)
    with pytest.raises(RunError, match="is running already"):
        other.add(words)
    for _ in range(2):  # twice the same waits once
        other.add(["--version"])
    other.pause(60)
    assert jobs.process is not None and jobs.process.wait(60) == 130
    now = jobs.state()
    assert now is not None and now.says.startswith("stopped; start it again to go on: train")
    assert jobs.line() == Line(held=True, waiting=(tuple(words), ("--version",)))
    jobs.clear()
    assert jobs.line() == Line()
    assert elsewhere.start(["--version"]).words == ("--version",)  # the devices are free again
    assert elsewhere.process is not None and elsewhere.process.wait(120) == 0


def test_what_waits_is_done_in_its_order_also_after_the_studio_was_opened_again(tmp_path: Path) -> None:
    first = Jobs(tmp_path)
    first.pause()  # nothing runs
    assert first.line() == Line(held=True) and first.state() is None
    first.add(["check", str(tmp_path / "nowhere")])
    first.add(["--version"])
    assert first.line().held is False
    again = Jobs(tmp_path)
    again.add(["--help"])
    assert again.line().waiting[-1] == ("--help",)
    with again.tended():
        assert again.line().held, "a folder that was handed over begins nothing by itself"
        again.go_on()
        until = time.monotonic() + 120
        while time.monotonic() < until and not ((now := again.state()) and now.words == ("--help",) and now.code == 0):
            time.sleep(0.2)
    line, now = again.line(), again.state()
    assert now is not None and now.says == "done: --help" and not line.waiting
    failed, done = line.past
    assert "check" in failed and done == "done: --version"
    assert failed.startswith(("failed (exit 1): check", "ended: check"))  # who did not start it cannot know


def test_who_may_reach_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --auth"):
        studio(tmp_path, host="0.0.0.0", port=_port())
    with pytest.raises(ConfigError, match="expected USER:PASSWORD"):
        studio(tmp_path, port=_port(), auth="nobody")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match="give another --port"):
            studio(tmp_path, port=taken.getsockname()[1])
    served = studio(tmp_path / "one", port=_port(), wait=False)
    try:
        with pytest.raises(RunError, match="another studio is open on this run"):
            studio(tmp_path / "one", port=_port(), wait=False)
    finally:
        close(served)


def test_a_mask_goes_where_the_data_set_has_its_product_and_takes_no_other_s_place(base: Path, tmp_path: Path) -> None:
    data = shutil.copytree(base / "data" / "plate", tmp_path / "single")
    desk = Desk(base / "run", data)
    image, marks = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), bool)
    marks[4:9, 5:12] = True
    before = read_folder(data).products
    with pytest.raises(DataError, match="this data set is the one product single; give that name"):
        desk.save_label("plate", "hole", marks, "new.png", image)
    assert desk.save_label("single", "hole", marks, "new.png", image) == data / "ground_truth" / "hole" / "new_mask.png"
    after = read_folder(data).products
    assert list(after) == list(before) == ["single"] and len(after["single"].defects["hole"]) == len(before["single"].defects["hole"]) + 1
    Image.fromarray(image).save(data / "test" / "hole" / "zz.bmp")
    Image.fromarray(marks).save(data / "ground_truth" / "hole" / "zz.png")
    with pytest.raises(DataError, match="give another name"):
        desk.save_label("single", "hole", marks, "zz.png", image)


def test_where_another_studio_has_the_devices_a_pair_stays_and_what_is_asked_for_waits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = shutil.copytree(base / "run", tmp_path / "run")
    (run / "studio").mkdir(exist_ok=True)
    desk, manifest = Desk(run, base / "data"), (run / "manifest.jsonl").read_bytes()
    image = next(record["image"] for record in map(json.loads, manifest.decode().splitlines()) if record["accepted"])
    with hold(_devices(run / "studio"), "held"):
        with pytest.raises(RunError, match="a studio of another run has work under way"):
            desk.redraw(image)
        assert (run / "manifest.jsonl").read_bytes() == manifest
        desk.draw_many(3, [], "1")
        assert [words[0] for words in desk.jobs.line().waiting] == ["generate"]
    desk.jobs.clear()


def test_a_picture_without_a_usable_mask_can_get_one(base: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    desk = Desk(base / "run", data)
    place, truth = data / "plate" / "test" / "hole", data / "plate" / "ground_truth" / "hole"
    image = np.full((20, 30, 3), 90, np.uint8)
    for name, folder in (("new.png", place), ("only.png", data / "plate" / "test" / "dent")):
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
    assert "new.png" in desk.labelled("plate", "hole") and desk.kinds()["plate"] == ["dent", "hole", "stain"]
    assert desk.products()["plate"] == ["hole", "stain"], "what cannot be learned is not offered for it"
    marks = np.zeros((20, 30), bool)
    marks[4:9, 5:12] = True
    for defect, name in (("hole", "new.png"), ("dent", "only.png")):
        assert not desk.label("plate", defect, name)[1].any()
        assert desk.save_label("plate", defect, marks, name) == data / "plate" / "ground_truth" / defect / f"{Path(name).stem}_mask.png"
        assert np.array_equal(desk.label("plate", defect, name)[1], marks)
    Image.fromarray(marks[:10]).save(truth / "new_mask.png")
    shown, mask, wrong = desk.label("plate", "hole", "new.png")
    assert shown.shape == (20, 30, 3) and not mask.any() and wrong == "new_mask.png is 30 x 10, the image 30 x 20"
    (truth / "new_mask.png").write_bytes(b"junk")
    assert "cannot be read as a picture" in desk.label("plate", "hole", "new.png")[2]
    assert desk.save_label("plate", "hole", marks, "new.png") == truth / "new_mask.png"
    assert np.array_equal(desk.label("plate", "hole", "new.png")[1], marks)


def test_a_mask_of_another_kind_gives_way_to_a_picture_without_loss(base: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    desk, truth = Desk(base / "run", data), data / "plate" / "ground_truth" / "hole"
    name = desk.labelled("plate", "hole")[0]
    image, mask, _ = desk.label("plate", "hole", name)
    (old,) = truth.glob(f"{Path(name).stem}_mask.*")
    Image.fromarray(np.asarray(Image.open(old))).save(old.with_suffix(".bmp"))
    old.unlink()
    assert desk.save_label("plate", "hole", ~mask, name) == old and not old.with_suffix(".bmp").exists()
    assert np.array_equal(desk.label("plate", "hole", name)[1], ~mask)
    desk.save_label("plate", "hole", mask, "new.png", image)
    with pytest.raises(DataError, match="is there already"):  # one file on a disk that tells no N from n
        desk.save_label("plate", "hole", mask, "New.png", image)


def test_a_training_goes_on_with_what_it_began_with(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(run: Path, *defects: str) -> list[str]:
        desk, words = Desk(run, base / "data"), list[list[str]]()
        monkeypatch.setattr(desk.jobs, "add", words.append)
        desk.learn(defects, None, "default")
        return words[0][words[0].index("--preview-steps") + 2 :]

    assert asked(base / "run") == [] and asked(tmp_path / "new") == []
    part = Run.create(tmp_path / "part")
    record = json.loads((base / "run" / "split.json").read_text())
    record["files"] = [file for file in record["files"] if file["defect"] != "stain"]
    part.split.write_text(json.dumps(record))
    assert asked(part.folder) == ["--product", "plate", "--defect", "hole"]
    part.config.write_bytes((base / "run" / "config.toml").read_bytes())
    part.update(extended="/of/others/run")
    assert asked(part.folder)[4:] == ["--extend", "/of/others/run", "--preset", "default"]
    assert asked(part.folder, "plate/stain") == ["--product", "plate", "--defect", "stain"]


def test_drawing_follows_what_the_run_s_settings_have_become(base: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(base / "run", tmp_path / "run"))
    desk = Desk(run, base / "data")
    normal = desk.normals("plate")[0]
    desk.draw("plate/hole", normal, None, 1.0, 3)
    first = desk.pipe
    desk.draw("plate/hole", normal, None, 1.0, 4)
    assert desk.pipe is first is not None
    Run.open(run).update(matched_masks={"asked": "x", "for": ["plate/hole"]})
    desk.draw("plate/hole", normal, None, 1.0, 3)
    assert desk.pipe is not first and desk.pipe[1].settings.masks.kind(("plate", "hole")) == "matched"


def test_what_follows_on_a_failure_is_held(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    with jobs.tended():
        jobs.add(["check", str(tmp_path / "nowhere")])
        jobs.add(["--version"])
        until = time.monotonic() + 120
        while time.monotonic() < until and not jobs.line().held:
            time.sleep(0.2)
        now = jobs.state()
        assert now is not None and now.says.startswith("failed (exit 1): check") and jobs.line().waiting == (("--version",),)
        jobs.add(["--help"])  # whoever asks for more has seen it
        while time.monotonic() < until and not ((now := jobs.state()) and now.words == ("--help",) and now.code == 0):
            time.sleep(0.2)
    assert now is not None and now.says == "done: --help"


def test_an_interrupt_before_the_command_hears_it_is_no_failure(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    jobs.start(["--version"])
    assert jobs.process is not None
    jobs.process.send_signal(signal.SIGINT)
    jobs.process.wait(60)
    now = jobs.state()
    assert now is not None and not now.failed and now.code in (0, 130, -signal.SIGINT)


def test_a_pair_that_cannot_be_shown_leaves_the_others(base: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(base / "run", tmp_path / "run"))
    desk = Desk(run, base / "data")
    first, second = desk.pairs("", "all")[:2]
    (run / first["image"]).write_bytes(b"junk")
    assert desk.thumbnail(first).size == (160, 160) and desk.thumbnail(second).size[0] == 160
    assert len(desk.show({name: value for name, value in second.items() if name != "touched_box"})) >= 3
    for odd in ({"measures": {"change": None}}, {"severity": None}, {"measures": None}):
        assert second["defect"] in _details(second | odd, 0, 1)


def test_no_severity_is_that_of_the_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, asked = Desk(base / "run"), []
    monkeypatch.setattr(desk.jobs, "add", asked.append)
    desk.draw_many(2, [], " ")
    desk.draw_many(2, [], "0.5:1.5")
    assert [each[4:] for each in asked] == [[], ["--severity", "0.5:1.5"]]
