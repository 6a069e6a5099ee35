"""Learning the defects: start it, stop it, watch its loss."""

from __future__ import annotations

from typing import Any

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.settings import PRESETS
from anomalydiffusion.app.tabs.parts import gr, told

__all__ = ["learn_tab"]


def learn_tab(desk: Desk) -> list[Any]:
    with gr.Tab("Learn", id="learn"):
        gr.Markdown("Learn the defects from their few images. A stopped training goes on where it was.")
        with gr.Row():
            steps = gr.Number(
                None, label="Steps (empty: as the preset, or the run, says)", precision=0, minimum=1, maximum=10**7, elem_id="learn-steps"
            )
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
