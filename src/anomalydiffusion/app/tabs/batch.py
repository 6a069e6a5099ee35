"""Many pairs, in a process that outlives the page."""

from __future__ import annotations

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tabs.parts import gr, told, whole

__all__ = ["batch_tab"]

MOST = 1_000_000  # pairs of a defect type: each is planned in memory


def batch_tab(desk: Desk) -> None:
    with gr.Tab("Batch", id="batch"):
        gr.Markdown(
            "Many pairs, each judged before it is kept. It goes on when this page is closed, and where it was when it is started again."
        )
        with gr.Row():
            num = gr.Number(40, label="Kept pairs of each defect type", precision=0, minimum=1, maximum=MOST, elem_id="batch-num")
            severity = gr.Textbox("1", label="Severity (1, or a range such as 0.5:1.5)", elem_id="batch-severity")
            chosen = gr.Dropdown([], multiselect=True, label="Only these (none = all)", scale=2, elem_id="batch-defects")
        with gr.Row():
            start = gr.Button("Draw them, or go on", variant="primary", elem_id="batch-start")
            stop = gr.Button("Pause", elem_id="batch-stop")
        start.click(told(lambda num, severity, chosen: desk.draw_many(whole(num, "pairs"), chosen or [], severity) and None),
                    [num, severity, chosen], None)  # fmt: skip
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        chosen.focus(told(lambda: gr.Dropdown(desk.defects())), None, chosen)
