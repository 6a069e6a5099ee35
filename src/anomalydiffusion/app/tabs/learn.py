"""Learning the defects: start it, stop it, watch its loss and what it draws by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.settings import PRESETS
from anomalydiffusion.app.tabs.parts import Live, gr, pd, told

__all__ = ["learn_tab"]


def learn_tab(desk: Desk) -> list[Live]:
    with gr.Tab("Learn", id="learn"):
        gr.Markdown("Learn the defects from their few images. A stopped training goes on where it was.")
        with gr.Row():
            steps = gr.Number(
                0, label="Steps (0: as the preset, or the run, says)", precision=0, minimum=0, maximum=10**7, elem_id="learn-steps"
            )
            preset = gr.Dropdown(list(PRESETS), value="default", label="Preset (of a new run)", elem_id="learn-preset")
            chosen = gr.Dropdown([], multiselect=True, label="Only these (none = all)", scale=2, elem_id="learn-defects")
        with gr.Row():
            start = gr.Button("Learn, or go on", variant="primary", elem_id="learn-start")
            stop = gr.Button("Stop", elem_id="learn-stop")
        with gr.Row():
            curve = gr.LinePlot(x="step", y="loss", label="Loss", height=300, min_width=300, elem_id="learn-curve")
            sheet = gr.Image(label="What it draws by now, ten times in a training", format="png", interactive=False, min_width=300,
                             buttons=["fullscreen"], alt_text="A defect of each type, drawn with what is learned so far",
                             elem_id="learn-preview")  # fmt: skip

        @told
        def on_start(steps: float | None, preset: str, chosen: list[str]) -> None:
            desk.learn(chosen or [], int(steps) if steps else None, preset)

        @told
        def on_focus() -> Any:
            return gr.Dropdown([f"{product}/{defect}" for product, own in desk.products().items() for defect in own])

        start.click(on_start, [steps, preset, chosen], None)
        stop.click(told(lambda: desk.jobs.stop() and None), None, None)
        chosen.focus(on_focus, None, chosen)
    return [
        Live(part=curve, read=lambda: list(desk.losses()), show=lambda points: pd.DataFrame(points, columns=["step", "loss"])),
        Live(part=sheet, read=desk.preview, show=lambda found: desk.opened(Path(found[0])) if found else None),
    ]
