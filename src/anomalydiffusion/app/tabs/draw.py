"""One defect on one normal image, under a mask that is painted or proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tabs.parts import canvas_of, editor_of, gr, marks_of, told, whole
from anomalydiffusion.core.errors import ConfigError

__all__ = ["draw_tab"]


def draw_tab(desk: Desk) -> None:
    with gr.Tab("Draw", id="draw") as tab:
        gr.Markdown("One defect on one normal image. Paint where it shall be, or leave that empty and let a mask be proposed.")
        with gr.Row():
            word = gr.Dropdown([], label="Defect", elem_id="draw-defect")
            normal = gr.Dropdown([], label="Normal image", elem_id="draw-normal")
            severity = gr.Slider(0, 3, value=1, step=0.1, label="Severity", elem_id="draw-severity")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**53, elem_id="draw-seed")
        editor = editor_of("The mask", "draw-editor")
        draw = gr.Button("Draw", variant="primary", elem_id="draw-start")
        pictures = gr.Gallery(label="What was drawn", columns=5, format="png", object_fit="contain", height=280, elem_id="draw-result")

        @told
        def on_open(word: str | None) -> Any:
            known = desk.defects()
            return gr.Dropdown(known, value=word if word in known else known[0] if known else None)

        @told
        def on_word(word: str | None) -> Any:
            files = desk.normals(word.split("/")[0]) if word else []
            return gr.Dropdown([(Path(path).name, path) for path in files], value=files[0] if files else None)

        @told
        def on_normal(word: str | None, path: str | None) -> Any:
            return canvas_of(desk.normal(word, path)) if word and path else None

        @told
        def on_draw(word: str | None, path: str | None, severity: float, seed: float, value: dict[str, Any] | None) -> Any:
            if not word or not path:
                raise ConfigError("choose a defect and a normal image; there are none before the run has learned")
            return desk.draw(word, path, marks_of(value), severity, whole(seed, "seed"))

        tab.select(on_open, word, word)
        word.change(on_word, word, normal)
        normal.change(on_normal, [word, normal], editor)
        draw.click(on_draw, [word, normal, severity, seed, editor], pictures)
