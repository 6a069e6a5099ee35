"""The report in a real browser: by day, by night, on a telephone, on paper; and it asks nobody for anything."""

import json
import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from anomalydiffusion.report.page import report
from tests.app.looks import pale

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAPER = 718  # pixels between the browser's own margins on A4
SURE = {"mean": 41.7, "low": 38.0, "high": 45.5}


@pytest.mark.skipif(not CHROMIUM, reason="no chromium: install Debian's package of that name, or name one in CHROMIUM")
def test_it_can_be_read_by_day_by_night_on_a_telephone_and_on_paper(run: Path) -> None:
    arms = {name: dict.fromkeys(("pixel_ap", "pixel_auroc", "pro", "f1_max"), SURE) for name in ("real-only", "ours", "blended patches")}
    curves = {"recall": [0, 0.5, 1], "precision": {arm: [1.0, 0.2 * number, 0.1] for number, arm in enumerate(arms, 1)}}
    about = {"arms": arms, "verdict": "Use it.", "seeds": [0, 1, 2], "curves": curves}
    (run / "scores.json").write_text(json.dumps({"localization": about}))
    (run / "train_log.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(20)))
    address = report(run).resolve().as_uri()
    asked: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        view = browser.new_page()
        view.on("request", lambda request: asked.append(request.url))
        view.goto(address)
        strokes = "[...document.querySelectorAll('polyline.arm')].map(each => getComputedStyle(each).stroke)"
        assert len(set(view.evaluate(strokes))) == 3, "a colour for each arm"
        grounds = {}
        for media in ("screen", "print"):
            for scheme in ("light", "dark"):
                view.emulate_media(media=media, color_scheme=scheme)
                for width in (PAPER,) if media == "print" else (1280, 390):
                    view.set_viewport_size({"width": width, "height": 900})
                    assert (media, scheme, width, pale(view)) == (media, scheme, width, [])
                    assert view.evaluate("document.documentElement.scrollWidth") <= width
                grounds[media, scheme] = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert view.evaluate("[...document.querySelectorAll('table')].every(each => each.getBoundingClientRect().right <= innerWidth)")
        hidden = "[...document.querySelectorAll('details')].map(each => each.checkVisibility())"
        assert not any(view.evaluate(hidden)), "what is closed leaves no line on paper"
        view.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert all(view.evaluate(hidden))
        assert view.pdf(format="A4").startswith(b"%PDF")
        browser.close()
    assert grounds["print", "light"] == grounds["print", "dark"] == "rgb(255, 255, 255)"
    assert grounds["screen", "light"] != grounds["screen", "dark"]
    assert [url for url in asked if not url.startswith("data:")] == [address]
