"""Whether the pairs help: start the proof, and look at what it found."""

from __future__ import annotations

from html import escape
from typing import Any

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tables import figure_text
from anomalydiffusion.app.tabs.parts import gr, pd, told, whole

__all__ = ["proof_tab"]

COLOURS = {  # read by day and by night
    "real-only": "#7d8590", "ours": "#0f9d8f", "perlin": "#c77700", "cutpaste": "#8a63d2", "poisson": "#3b82c4", "ours+best": "#b8477f",
    "more-real": "#6f8a00", "garbage": "#a06a5a",
}  # fmt: skip
TASKS = ["localization", "classification", "quality"]


def _legend(arms: list[str]) -> str:
    """Each arm's name beside its colour, on as many lines as the page needs."""
    chip = "display:inline-block;width:18px;height:3px;margin-right:7px;vertical-align:middle;background:"
    names = "".join(f'<span><i style="{chip}{COLOURS.get(arm, "#888888")}"></i>{escape(arm)}</span>' for arm in arms)
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 18px">{names}</div>'


def proof_tab(desk: Desk) -> None:
    with gr.Tab("Proof", id="proof") as tab:
        gr.Markdown("The same detector with and without the pairs, on held-out real images that chose nothing. Three seeds give a verdict.")
        with gr.Row():
            task = gr.Dropdown(TASKS, value=TASKS[0], label="Task", elem_id="proof-task")
            seeds = gr.Number(3, label="Seeds", precision=0, minimum=1, maximum=100, elem_id="proof-seeds")
            steps = gr.Number(0, label="Training steps of each (0: as the run says)", precision=0, minimum=0, maximum=10**7,
                              elem_id="proof-steps")  # fmt: skip
        with gr.Row():
            baselines = gr.Checkbox(False, label="Also what one would do without us", elem_id="proof-baselines")
            controls = gr.Checkbox(False, label="Also whether this comparison can tell help from harm", elem_id="proof-controls")
        with gr.Row():
            start = gr.Button("Prove, or go on", variant="primary", elem_id="proof-start")
            stop = gr.Button("Stop", elem_id="proof-stop")
            look = gr.Button("Show what was found", elem_id="proof-look")
        verdict = gr.Markdown(elem_id="proof-verdict")
        table = gr.Dataframe(label="Figures", interactive=False, elem_id="proof-table")
        legend = gr.HTML(visible=False, elem_id="proof-legend")  # gradio's own is one line, cut where the page is narrow
        curves = gr.LinePlot(x="recall", y="precision", color="arm", color_title=" ", color_map=COLOURS, height=300, visible=False,
                             label="Precision by recall, of pixels: higher is better", elem_id="proof-curves")  # fmt: skip
        sheets = gr.Gallery(label="Best and worst test images", columns=2, format="png", object_fit="contain", elem_id="proof-sheets")

        @told
        def on_look(task: str) -> tuple[Any, ...]:
            found = desk.scores().get(task)
            if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
                return f"No {task} yet.", None, gr.HTML(visible=False), gr.LinePlot(visible=False), []
            heads, rows = figure_text(found["arms"])
            words = found.get("verdict", f"{found.get('extractor', '')}, split {found['split_digest']}")
            lines = found.get("curves") or {"recall": [], "precision": {}}
            points = [(arm, *point) for arm, own in lines["precision"].items() for point in zip(lines["recall"], own, strict=True)]
            return (
                f"**{words}**",
                pd.DataFrame(rows, columns=heads),
                gr.HTML(_legend(list(lines["precision"])), visible=bool(points)),
                gr.LinePlot(pd.DataFrame(points, columns=["arm", "recall", "precision"]), visible=bool(points)),
                [desk.opened(path) for path in desk.tested()] if task == TASKS[0] else [],
            )

        @told
        def on_start(task: str, seeds: float | None, steps: float | None, baselines: bool, controls: bool) -> None:
            desk.prove(task, whole(seeds, "seeds"), baselines, controls, int(steps) if steps else None)

        start.click(on_start, [task, seeds, steps, baselines, controls], None)
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        gr.on([tab.select, look.click, task.change], on_look, task, [verdict, table, legend, curves, sheets])
