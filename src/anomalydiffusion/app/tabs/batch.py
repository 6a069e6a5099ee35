"""Many pairs, by commands that wait for each other and outlive the page."""

from __future__ import annotations

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tabs.parts import Live, gr, pd, told, whole

__all__ = ["batch_tab"]

MOST = 1_000_000  # pairs of a defect type: each is planned in memory


def batch_tab(desk: Desk) -> list[Live]:
    with gr.Tab("Batch", id="batch"):
        gr.Markdown(
            "Many pairs, each judged before it is kept. What you ask for while something runs waits in line; all of it goes on when this "
            "page is closed, and where it was when it is started again."
        )
        with gr.Row():
            num = gr.Number(40, label="Kept pairs of each defect type", precision=0, minimum=1, maximum=MOST, elem_id="batch-num")
            severity = gr.Textbox("", label="Severity: 1, or 0.5:1.5 (empty = the run's)", elem_id="batch-severity")
            chosen = gr.Dropdown([], multiselect=True, label="Only these (none = all)", scale=2, elem_id="batch-defects")
        with gr.Row():
            start = gr.Button("Draw them, or go on", variant="primary", elem_id="batch-start")
            stop = gr.Button("Pause", elem_id="batch-stop")
            on = gr.Button("Go on", elem_id="batch-on")
            clear = gr.Button("Clear what waits", elem_id="batch-clear")
        with gr.Row():
            line = gr.Dataframe(headers=["state", "what"], label="In line", interactive=False, wrap=True, min_width=300,
                                column_widths=["30%", "70%"], elem_id="batch-line")  # fmt: skip
            counts = gr.Dataframe(headers=["defect", "kept", "drawn"], label="Pairs so far", interactive=False, min_width=300,
                                  elem_id="batch-counts")  # fmt: skip
        start.click(told(lambda num, severity, chosen: desk.draw_many(whole(num, "pairs"), chosen or [], severity)),
                    [num, severity, chosen], None)  # fmt: skip
        stop.click(told(desk.jobs.pause), None, None)
        on.click(told(desk.jobs.go_on), None, None)
        clear.click(told(desk.jobs.clear), None, None)
        chosen.focus(told(lambda: gr.Dropdown(desk.defects())), None, chosen)
    return [
        Live(part=line, read=desk.jobs.rows, show=lambda rows: pd.DataFrame(rows, columns=["state", "what"])),
        Live(part=counts, read=desk.counts, show=lambda rows: pd.DataFrame(rows, columns=["defect", "kept", "drawn"])),
    ]
