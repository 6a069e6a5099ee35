"""Make the pictures of the studio's tabs, wide and narrow, from a small run on the demo data: `python docs/screenshots.py`."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import anomalydiffusion as ad
from anomalydiffusion.app.studio import close, studio
from anomalydiffusion.data.demo import make_demo

HERE = Path(__file__).resolve().parent / "studio"
WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}
COLOURS = 128  # of a picture's palette
TABS = ["Data", "Learn", "Draw", "Batch", "Review", "Proof", "Export"]


def small_run(work: Path, steps: int, pairs: int) -> Path:
    """A data set and a run with something to see in every tab, in `work`; what is there already is not made again."""
    data, run = work / "data", work / "run"
    if not data.exists():
        make_demo(data)
    ad.train(data, run, max_train_steps=steps, preview_steps=max(1, steps // 10))
    ad.generate(run, pairs)
    if not (run / "scores.json").exists():
        ad.evaluate(run, steps=10)
    return run


def go_to(page: Page, tab: str) -> None:
    """Open a tab, which a narrow page may keep in the menu behind its last one."""
    button = page.get_by_role("tab", name=tab, exact=True)
    if not button.is_visible():
        page.locator(".overflow-menu > button").click()
        button = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
    button.click()


def says(page: Page, place: str, text: str) -> None:
    """Wait until a part of the page shows a text."""
    page.locator(place).get_by_text(text).filter(visible=True).first.wait_for()


def prepare(page: Page, tab: str) -> None:
    """Do in a tab what its picture shall show."""
    go_to(page, tab)
    if tab == "Data":
        page.click("#data-look")
        says(page, "#data-found", "crack")
        page.click("#data-masks > button")
        for field, choice in (("#label-defect", "crack"), ("#label-image", "000.png")):
            page.click(f"{field} input")
            page.get_by_role("option", name=choice).click()
            page.wait_for_timeout(1000)  # the next field is given its choices
        page.locator("#label-editor canvas").first.wait_for()
    elif tab == "Learn":
        page.locator("#learn-curve canvas, #learn-curve svg").first.wait_for()
        page.locator("#learn-preview img").wait_for()
    elif tab == "Draw":
        page.wait_for_function("document.querySelector('#draw-normal input')?.value")
        page.locator("#draw-editor canvas").first.wait_for()
        page.wait_for_timeout(3000)  # the picture is laid out
        page.click("#draw-start")
        says(page, "#draw-result", "difference")
    elif tab == "Batch":
        says(page, "#batch-counts", "brick/crack")
        page.fill("#batch-num input", "1")  # they are there
        done = "document.querySelector('#batch-line').innerText.split('done').length"
        before = page.evaluate(done)
        page.click("#batch-start")
        page.wait_for_function(f"before => {done} > before", arg=before)
    elif tab == "Review":
        says(page, "#review-about", "1 of")
        page.click("#review-judge > button")
    elif tab == "Proof":
        says(page, "#proof-table", "real-only")
    page.mouse.move(0, 0)
    page.wait_for_timeout(3000)  # pictures and tables are laid out


def tabs(browser: Browser, address: str, width: str) -> Iterator[tuple[str, Page]]:
    """A page of one width, tab by tab."""
    across, down = WIDTHS[width]
    page = browser.new_page(viewport={"width": across, "height": down})
    page.set_default_timeout(60_000 * float(os.environ.get("PATIENCE", "1")))  # minutes
    page.goto(address)
    page.wait_for_selector("#data-look")
    for tab in TABS:
        prepare(page, tab)
        yield tab, page
    page.close()


def save(picture: bytes, tab: str, width: str) -> None:
    HERE.mkdir(exist_ok=True)
    name = f"{tab.lower()}_{width}.png"
    with Image.open(io.BytesIO(picture)) as shot:
        # by an octree, which keeps the few pixels of a coloured outline
        small = shot.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(HERE / name, optimize=True)
    print(f"{HERE / name}: {(HERE / name).stat().st_size // 1000} kB")  # noqa: T201


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--work", type=Path, default=Path("build/screenshots"), help="where demo data and run are kept")
    words.add_argument("--steps", type=int, default=40, help="training steps")
    words.add_argument("--pairs", type=int, default=2, help="pairs of each defect type")
    asked = words.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    os.chdir(asked.work)  # so that the page names no folder of this machine
    run = small_run(Path(), asked.steps, asked.pairs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    served = studio(run, data=Path("data"), port=port, wait=False)
    try:
        with sync_playwright() as player:
            found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
            browser = player.chromium.launch(executable_path=found, args=["--no-sandbox"])
            for width in WIDTHS:
                for tab, page in tabs(browser, f"http://127.0.0.1:{port}", width):
                    save(page.screenshot(full_page=True), tab, width)
            browser.close()
    finally:
        close(served)


if __name__ == "__main__":
    main()
