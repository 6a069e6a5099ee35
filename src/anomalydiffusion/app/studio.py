"""The web page: words and brush strokes -> the desk -> pictures and tables."""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.desk import VERDICTS, Desk
from anomalydiffusion.app.progress import say
from anomalydiffusion.app.settings import PRESETS
from anomalydiffusion.app.tables import figure_text
from anomalydiffusion.core.errors import AnomalyDiffusionError, ConfigError, RunError
from anomalydiffusion.core.runs import hold
from anomalydiffusion.report.layouts import FORMATS
from anomalydiffusion.report.sheets import outlined

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing leaves the machine

try:
    import gradio as gr
    import pandas as pd
except ImportError as missing:
    raise ConfigError(f"the studio needs gradio ({missing}): pip install 'anomalydiffusion[studio]'") from missing

__all__ = ["build", "close", "studio"]

BRUSH = "#ff2d55"
MOST = 60  # pairs of one page of the review
UPLOAD = "64mb"
STROKES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "is added to the mask": np.logical_or, "is taken from the mask": lambda old, new: old & ~new, "is the mask": lambda old, new: new,
}  # fmt: skip
TASKS = ["localization", "classification", "quality"]
FONT = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "sans-serif"]  # of the machine: none is fetched
CSS = """
.gradio-container {max-width: 1240px !important; width: 100% !important; min-width: 0 !important; margin: 0 auto !important}
"""
KEYS = """
<script>
document.addEventListener('keydown', event => {
  if (event.target.closest('input, textarea, [contenteditable]') || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = {a: 'review-keep', r: 'review-reject', n: 'review-next', p: 'review-previous'}[event.key];
  const found = button && document.getElementById(button);
  if (found && found.offsetParent) found.click();
});
</script>
"""


def told(call: Callable[..., Any]) -> Callable[..., Any]:
    """What goes wrong is said on the page, in one line, and nothing is lost."""

    @functools.wraps(call)
    def wrapped(*args: Any) -> Any:
        try:
            return call(*args)
        except (AnomalyDiffusionError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def _whole(value: float | None, what: str) -> int:
    if value is None:
        raise ConfigError(f"{what}: give a number")
    return int(value)


def _marks(value: dict[str, Any] | None) -> np.ndarray | None:
    """What was painted over the picture in an editor, bool of the picture's size; None without a picture."""
    if not value or value.get("background") is None:
        return None
    height, width = value["background"].shape[:2]
    marks = np.zeros((height, width), bool)
    for layer in value["layers"] or []:
        painted = layer[..., 3] > 127
        if painted.shape != marks.shape:
            rows = np.arange(height) * painted.shape[0] // height
            painted = painted[rows][:, np.arange(width) * painted.shape[1] // width]
        marks |= painted
    return marks


def _canvas(image_HWC: np.ndarray, marks_HW: np.ndarray | None = None) -> dict[str, Any]:
    """A picture for an editor, with a line around what is marked: gradio's editor shows no layer that it is given."""
    if marks_HW is not None and marks_HW.any():
        image_HWC = outlined("", image_HWC, marks_HW, max(image_HWC.shape[:2])).image_HWC
    return {"background": image_HWC, "layers": [], "composite": None}


def _editor(label: str, name: str) -> Any:
    return gr.ImageEditor(
        label=label, elem_id=name, type="numpy", format="png", image_mode="RGBA", sources=(), transforms=(),
        layers=False, height=420,
        brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed", default_size=10), eraser=gr.Eraser(default_size=14),
    )  # fmt: skip


def _data_tab(desk: Desk, movable: bool) -> None:
    with gr.Tab("Data", id="data"):
        gr.Markdown("Normal and defect images in MVTec AD layout. The first third of each defect type is learned from.")
        with gr.Row():
            folder = gr.Textbox(str(desk.given or ""), label="Data folder", interactive=movable, scale=4, elem_id="data-folder")
            read = gr.Button("Look", variant="primary", scale=1, elem_id="data-look")
        found = gr.Dataframe(headers=["product", "defect", "images", "learned from", "normal", "normal, for tests"], label="What is there",
                             interactive=False, elem_id="data-found")  # fmt: skip
        problems = gr.Dataframe(headers=["level", "file", "what", "what to do"], label="Problems", interactive=False, wrap=True,
                                elem_id="data-problems")  # fmt: skip
        with gr.Accordion("Draw or mend a mask", open=False, elem_id="data-masks"):
            with gr.Row():
                product = gr.Dropdown([], label="Product", allow_custom_value=True, elem_id="label-product")
                defect = gr.Dropdown([], label="Defect type", allow_custom_value=True, elem_id="label-defect")
                name = gr.Dropdown([], label="Image", elem_id="label-image")
            upload = gr.Image(
                label="or a new image", type="filepath", image_mode=None, sources=["upload"], height=120, elem_id="label-upload"
            )
            how = gr.Radio(list(STROKES), value=next(iter(STROKES)), label="What is painted", elem_id="label-how")
            editor = _editor("Paint the defect; the line is around the mask as it is", "label-editor")
            save = gr.Button("Save the mask", elem_id="label-save")
            saved = gr.Markdown(elem_id="label-saved")

        @told
        def on_look(text: str) -> tuple[Any, ...]:
            if movable:
                desk.given = Path(text).expanduser() if text.strip() else None
            rows, wrong = desk.look()
            known = desk.products() if rows else {}
            first = next(iter(known), None)
            return rows, wrong, gr.Dropdown(list(known), value=first), gr.Dropdown(known.get(first or "", []), value=None)

        @told
        def on_product(product: str) -> Any:
            return gr.Dropdown(desk.products().get(product, []), value=None)

        @told
        def on_defect(product: str, defect: str) -> Any:
            known = desk.products()
            return gr.Dropdown(desk.labelled(product, defect) if defect in known.get(product, []) else [], value=None)

        @told
        def on_name(product: str, defect: str, name: str | None) -> tuple[Any, Any]:
            return (_canvas(*desk.label(product, defect, name)), None) if name else (gr.skip(), gr.skip())

        @told
        def on_upload(path: str | None) -> tuple[Any, Any]:
            return (_canvas(desk.opened(Path(path))), None) if path else (gr.skip(), gr.skip())

        @told
        def on_save(product: str, defect: str, name: str | None, path: str | None, how: str, value: dict[str, Any] | None) -> str:
            marks = _marks(value)
            if marks is None or not (name or path):
                raise ConfigError("choose an image, or drop a new one, first")
            new = None if name else desk.opened(Path(str(path)))
            if name:
                marks = STROKES[how](desk.label(product, defect, name)[1], marks)
            return f"Saved: {desk.save_label(product or '', defect or '', marks, name or Path(str(path)).name, new)}"

        read.click(on_look, folder, [found, problems, product, defect])
        product.change(on_product, product, defect)
        defect.change(on_defect, [product, defect], name)
        name.change(on_name, [product, defect, name], [editor, upload])
        upload.change(on_upload, upload, [editor, name])
        save.click(on_save, [product, defect, name, upload, how, editor], saved)


def _learn_tab(desk: Desk) -> list[Any]:
    with gr.Tab("Learn", id="learn"):
        gr.Markdown("Learn the defects from their few images. A stopped training goes on where it was.")
        with gr.Row():
            steps = gr.Number(None, label="Steps (empty: as the preset, or the run, says)", precision=0, minimum=1, elem_id="learn-steps")
            preset = gr.Dropdown(list(PRESETS), value="default", label="Preset", elem_id="learn-preset")
            chosen = gr.Dropdown([], multiselect=True, label="Only these (none = all)", scale=2, elem_id="learn-defects")
        with gr.Row():
            start = gr.Button("Learn, or go on", variant="primary", elem_id="learn-start")
            stop = gr.Button("Stop", elem_id="learn-stop")
        curve = gr.LinePlot(x="step", y="loss", label="Loss", height=260, elem_id="learn-curve")

        @told
        def on_start(steps: float | None, preset: str, chosen: list[str]) -> None:
            desk.learn(chosen or [], None if steps is None else int(steps), preset)

        @told
        def on_focus() -> Any:
            return gr.Dropdown([f"{product}/{defect}" for product, own in desk.products().items() for defect in own])

        start.click(on_start, [steps, preset, chosen], None)
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        chosen.focus(on_focus, None, chosen)
    return [curve]


def _draw_tab(desk: Desk) -> None:
    with gr.Tab("Draw", id="draw") as tab:
        gr.Markdown("One defect on one normal image. Paint where it shall be, or leave that empty and let a mask be proposed.")
        with gr.Row():
            word = gr.Dropdown([], label="Defect", elem_id="draw-defect")
            normal = gr.Dropdown([], label="Normal image", elem_id="draw-normal")
            severity = gr.Slider(0, 3, value=1, step=0.1, label="Severity", elem_id="draw-severity")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="draw-seed")
        editor = _editor("Paint the mask", "draw-editor")
        draw = gr.Button("Draw", variant="primary", elem_id="draw-start")
        pictures = gr.Gallery(label="What was drawn", columns=5, format="png", object_fit="contain", height=260, elem_id="draw-result")

        @told
        def on_open() -> Any:
            known = desk.defects()
            return gr.Dropdown(known, value=known[0] if known else None)

        @told
        def on_word(word: str | None) -> Any:
            files = desk.normals(word.split("/")[0]) if word else []
            return gr.Dropdown([(Path(path).name, path) for path in files], value=files[0] if files else None)

        @told
        def on_normal(path: str | None) -> Any:
            return _canvas(desk.opened(Path(path))) if path else None

        @told
        def on_draw(word: str | None, path: str | None, severity: float, seed: float, value: dict[str, Any] | None) -> Any:
            if not word or not path:
                raise ConfigError("choose a defect and a normal image; there are none before the run has learned")
            return desk.draw(word, path, _marks(value), severity, _whole(seed, "seed"))

        tab.select(on_open, None, word)
        word.change(on_word, word, normal)
        normal.change(on_normal, normal, editor)
        draw.click(on_draw, [word, normal, severity, seed, editor], pictures)


def _batch_tab(desk: Desk) -> None:
    with gr.Tab("Batch", id="batch"):
        gr.Markdown(
            "Many pairs, each judged before it is kept. It goes on when this page is closed, and where it was when it is started again."
        )
        with gr.Row():
            num = gr.Number(40, label="Kept pairs of each defect type", precision=0, minimum=1, elem_id="batch-num")
            severity = gr.Textbox("1", label="Severity (1, or a range such as 0.5:1.5)", elem_id="batch-severity")
            chosen = gr.Dropdown([], multiselect=True, label="Only these (none = all)", scale=2, elem_id="batch-defects")
        with gr.Row():
            start = gr.Button("Draw them, or go on", variant="primary", elem_id="batch-start")
            stop = gr.Button("Pause", elem_id="batch-stop")
        start.click(told(lambda num, severity, chosen: desk.draw_many(_whole(num, "pairs"), chosen or [], severity) and None),
                    [num, severity, chosen], None)  # fmt: skip
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        chosen.focus(told(lambda: gr.Dropdown(desk.defects())), None, chosen)


def _review_tab(desk: Desk) -> None:
    with gr.Tab("Review", id="review") as tab:
        gr.Markdown("Keep or reject by hand: keys A and R, N and P for the next and the one before. What you say, no gate overrules.")
        with gr.Row():
            word = gr.Dropdown([("all", "")], value="", label="Defect", elem_id="review-defect")
            verdict = gr.Radio(list(VERDICTS), value="kept", label="Show", elem_id="review-verdict")
            sheet = gr.Number(1, label=f"Page, {MOST} pairs each", precision=0, minimum=1, elem_id="review-page")
        records, at = gr.State([]), gr.State(0)
        grid = gr.Gallery(label="Pairs", columns=6, format="png", object_fit="contain", allow_preview=False, height=360,
                          elem_id="review-grid")  # fmt: skip
        pictures = gr.Gallery(label="This pair", columns=5, format="png", object_fit="contain", height=260, elem_id="review-pair")
        about = gr.Markdown(elem_id="review-about")
        with gr.Row():
            before = gr.Button("Previous", elem_id="review-previous")
            keep = gr.Button("Keep", variant="primary", elem_id="review-keep")
            reject = gr.Button("Reject", variant="stop", elem_id="review-reject")
            after = gr.Button("Next", elem_id="review-next")
        with gr.Accordion("Judge all anew", open=False, elem_id="review-judge"):
            with gr.Row():
                visible = gr.Slider(0, 5, value=1, step=0.1, label="Visible: change over the surface's own variation")
                strict = gr.Slider(0, 5, value=3, step=0.5, label="Deviations below what real defects score (0 = not asked)")
                agreement = gr.Slider(0, 1, value=0, step=0.05, label="Label's overlap with what is seen (0 = from the shots)")
                refit = gr.Checkbox(False, label="Fit labels to what is seen")
            judge = gr.Button("Judge anew", elem_id="review-judge-start")
            judged = gr.Markdown(elem_id="review-judged")

        def page(word: str, verdict: str, sheet: float) -> tuple[Any, ...]:
            first = (max(1, int(sheet or 1)) - 1) * MOST
            found = desk.pairs(word, verdict)[first : first + MOST]
            words = [("all", ""), *((name, name) for name in desk.defects())]
            return gr.Dropdown(words, value=word), found, [(desk.thumbnail(each), _caption(each)) for each in found]

        def pair(found: list[dict[str, Any]], index: int) -> tuple[Any, ...]:
            if not found:
                return 0, [], "Nothing to show."
            index = min(max(index, 0), len(found) - 1)
            return index, desk.show(found[index]), _details(found[index], index, len(found))

        @told
        def on_open(word: str, verdict: str, sheet: float) -> tuple[Any, ...]:
            first, known = page(word, verdict, sheet), desk.gate()
            return *first, *pair(first[1], 0), known.visible, known.strict, known.agreement or 0, known.refit

        @told
        def on_select(found: list[dict[str, Any]], event: gr.SelectData) -> tuple[Any, ...]:
            return pair(found, int(event.index))

        @told
        def on_decide(found: list[dict[str, Any]], index: int, word: str, verdict: str, sheet: float, kept: bool) -> tuple[Any, ...]:
            if not found:
                raise ConfigError("there is no pair to judge")
            judged = desk.decide(found[index]["image"], kept)
            first = page(word, verdict, sheet)
            stays = any(each["seed"] == judged["seed"] for each in first[1])
            return *first, *pair(first[1], index + stays)

        @told
        def on_judge(visible: float, strict: float, agreement: float, refit: bool) -> str:
            found = desk.judge(visible=visible, agreement=agreement or None, strict=strict, refit=refit)
            return "; ".join(f"{name}: {own['kept']} of {own['drawn']} kept, before {own['kept_before']}" for name, own in found.items())

        shown, asked = [word, records, grid, at, pictures, about], [word, verdict, sheet]
        opened = [*shown, visible, strict, agreement, refit]
        gr.on([tab.select, word.input, verdict.change, sheet.change], on_open, asked, opened)
        grid.select(on_select, records, [at, pictures, about])
        keep.click(lambda *given: on_decide(*given, True), [records, at, *asked], shown)
        reject.click(lambda *given: on_decide(*given, False), [records, at, *asked], shown)
        after.click(told(lambda found, index: pair(found, index + 1)), [records, at], [at, pictures, about])
        before.click(told(lambda found, index: pair(found, index - 1)), [records, at], [at, pictures, about])
        judge.click(on_judge, [visible, strict, agreement, refit], judged).then(on_open, asked, opened)


def _caption(record: dict[str, Any]) -> str:
    return f"{record['defect']} {Path(record['image']).stem}{'' if record['accepted'] else ', rejected'}"


def _details(record: dict[str, Any], index: int, count: int) -> str:
    reasons = f" ({', '.join(record['reasons'])})" if record["reasons"] else ""
    measures = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in record["measures"].items())
    verdict = "kept" if record["accepted"] else "rejected"
    origin = f"seed {record['seed']}, severity {record['severity']:.2f}"
    return f"**{index + 1} of {count}: {_caption(record)}** {verdict}{reasons}; {origin}; {measures}"


def _proof_tab(desk: Desk) -> None:
    with gr.Tab("Proof", id="proof") as tab:
        gr.Markdown("The same detector with and without the pairs, on held-out real images that chose nothing. Three seeds give a verdict.")
        with gr.Row():
            task = gr.Dropdown(TASKS, value=TASKS[0], label="Task", elem_id="proof-task")
            seeds = gr.Number(3, label="Seeds", precision=0, minimum=1, elem_id="proof-seeds")
            baselines = gr.Checkbox(False, label="Also what one would do without us", elem_id="proof-baselines")
        with gr.Row():
            start = gr.Button("Prove, or go on", variant="primary", elem_id="proof-start")
            stop = gr.Button("Stop", elem_id="proof-stop")
            look = gr.Button("Show what was found", elem_id="proof-look")
        verdict = gr.Markdown(elem_id="proof-verdict")
        table = gr.Dataframe(label="Figures", interactive=False, elem_id="proof-table")
        sheets = gr.Gallery(label="Best and worst test images", columns=2, format="png", elem_id="proof-sheets")

        @told
        def on_look(task: str) -> tuple[Any, ...]:
            found = desk.scores().get(task)
            if not found:
                return f"No {task} yet.", None, []
            heads, rows = figure_text(found["arms"])
            words = found.get("verdict", f"{found.get('extractor', '')}, split {found['split_digest']}")
            return (
                f"**{words}**",
                pd.DataFrame(rows, columns=heads),
                [desk.opened(path) for path in desk.tested()] if task == TASKS[0] else [],
            )

        start.click(
            told(lambda task, seeds, baselines: desk.prove(task, _whole(seeds, "seeds"), baselines) and None),
            [task, seeds, baselines],
            None,
        )
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        gr.on([tab.select, look.click, task.change], on_look, task, [verdict, table, sheets])


def _export_tab(desk: Desk, movable: bool) -> None:
    with gr.Tab("Export", id="export"):
        with gr.Row():
            format = gr.Dropdown(list(FORMATS), value=next(iter(FORMATS)), label="Format", elem_id="export-format")
            name = gr.Textbox("export", label="New folder" if movable else "New folder, beside the run's", elem_id="export-folder")
            go = gr.Button("Export the kept pairs", variant="primary", elem_id="export-start")
        done = gr.Markdown(elem_id="export-done")

        @told
        def on_export(format: str, name: str) -> str:
            if not movable and (Path(name).name != name or name in ("", ".", "..")):
                raise ConfigError(f"'{name}': give a plain name, without folders")
            return f"Done: {desk.hand_out(format, desk.folder.parent / name)}"

        go.click(on_export, [format, name], done)


def build(desk: Desk, *, movable: bool = True) -> Any:
    """The page of a desk. `movable`: its user may name other folders of this machine."""
    with gr.Blocks(title="anomalydiffusion studio", analytics_enabled=False) as page:
        gr.Markdown(f"# anomalydiffusion studio\n`{desk.folder.name}`")
        with gr.Tabs():
            _data_tab(desk, movable)
            (curve,) = _learn_tab(desk)
            _draw_tab(desk)
            _batch_tab(desk)
            _review_tab(desk)
            _proof_tab(desk)
            _export_tab(desk, movable)
        state = gr.Textbox(label="Work", interactive=False, elem_id="job-state")
        lines = gr.Textbox(label="What it says", lines=3, max_lines=12, interactive=False, elem_id="job-lines")

        @told
        def tick() -> tuple[Any, ...]:
            job = desk.jobs.state()
            return (
                job.says if job else "nothing runs",
                "\n".join(job.lines) if job else "",
                pd.DataFrame(desk.losses(), columns=["step", "loss"]),
            )

        gr.Timer(2.0).tick(tick, None, [state, lines, curve], show_progress="hidden")
        page.load(tick, None, [state, lines, curve])
    return page


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def studio(
    run: Path | str = "run", *, data: Path | None = None, host: str = "127.0.0.1", port: int = 7860, auth: str | None = None,
    wait: bool = True,
) -> Any:  # fmt: skip
    """Serve the page for one run, which need not exist yet; with `wait` until it is interrupted, else it is returned, to be closed.

    `auth` is "user:password", and must be given for a `host` that others can reach; who must log in may not name folders. Raises
    `ConfigError` for that, `RunError` where the port is taken or another studio works on this run.
    """
    run = Path(run)
    if not _loopback(host) and auth is None:
        raise ConfigError(f"--host {host}: others can reach that; give --auth USER:PASSWORD too")
    if auth is not None and not all(auth.partition(":")[::2]):
        raise ConfigError("--auth: expected USER:PASSWORD")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(f"{host}:{port}: cannot be used ({error.strerror}); give another --port") from error
    (run / "studio").mkdir(parents=True, exist_ok=True)
    desk = Desk(run, data)
    page = build(desk, movable=_loopback(host) and auth is None)
    with ExitStack() as held:
        held.enter_context(hold(run / "studio" / ".lock", f"{run}: another studio is open on this run; use that, or close it"))
        _, address, _ = page.queue(default_concurrency_limit=1).launch(
            server_name=host, server_port=port, auth=tuple(auth.split(":", 1)) if auth else None, quiet=True, prevent_thread_lock=True,
            share=False, inbrowser=False, show_error=True, max_file_size=UPLOAD, footer_links=[], ssr_mode=False, css=CSS, head=KEYS,
            theme=gr.themes.Default(font=FONT, font_mono=["ui-monospace", "Consolas", "monospace"]),
        )  # fmt: skip
        say(f"studio: {address}")
        if wait:
            page.block_thread()
        else:
            page.held = held.pop_all()  # until `close`
    return page


def close(page: Any) -> None:
    """Stop serving a page that `studio` returned; what it started goes on."""
    page.close(verbose=False)
    page.held.close()
