"""The data set: what is there, what is wrong with it, and masks that are painted or mended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tabs.parts import canvas_of, editor_of, gr, marks_of, told
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.core.names import placed_at

__all__ = ["data_tab"]

STROKES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "is added to the mask": np.logical_or, "is taken from the mask": lambda old, new: old & ~new, "is the mask": lambda old, new: new,
}  # fmt: skip


def known_data(desk: Desk) -> str:
    """The data set's folder, if it is known already."""
    try:
        return str(desk.data)
    except DataError:
        return ""


def data_tab(desk: Desk, movable: bool) -> None:
    with gr.Tab("Data", id="data"):
        gr.Markdown("Normal and defect images in MVTec AD layout. The first third of each defect type is learned from.")
        with gr.Row():
            folder = gr.Textbox(known_data(desk), label="Data folder", interactive=movable, scale=4, elem_id="data-folder")
            read = gr.Button("Look", variant="primary", scale=1, elem_id="data-look")
        found = gr.Dataframe(headers=["product", "defect", "images", "learned from", "normal", "normal, for tests"], label="What is there",
                             interactive=False, elem_id="data-found")  # fmt: skip
        problems = gr.Dataframe(headers=["level", "file", "what", "what to do"], label="Problems", interactive=False, wrap=True,
                                column_widths=["10%", "30%", "30%", "30%"], elem_id="data-problems")  # fmt: skip
        with gr.Accordion("Draw or mend a mask", open=False, elem_id="data-masks"):
            with gr.Row():
                product = gr.Dropdown([], label="Product", allow_custom_value=True, elem_id="label-product")
                defect = gr.Dropdown([], label="Defect type", allow_custom_value=True, elem_id="label-defect")
                name = gr.Dropdown([], label="Image", elem_id="label-image")
            upload = gr.File(label="or a new image", type="filepath", height=120, elem_id="label-upload")  # read by us alone
            how = gr.Radio(list(STROKES), value=next(iter(STROKES)), label="What is painted",
                           info="The line in the picture is around the mask as it is.", elem_id="label-how")  # fmt: skip
            editor = editor_of("The mask", "label-editor")
            save = gr.Button("Save the mask", elem_id="label-save")
            saved = gr.Markdown(elem_id="label-saved")

        @told
        def on_look(text: str) -> tuple[Any, ...]:
            if movable:
                desk.given = placed_at(text) if text.strip() else None
            rows, wrong = desk.look()
            known = desk.kinds() if rows else {}
            first = next(iter(known), None)
            shown = wrong or [["ok", "", "nothing wrong", ""]]
            return rows, shown, gr.Dropdown(list(known), value=first), gr.Dropdown(known.get(first or "", []), value=None)

        @told
        def on_product(product: str) -> Any:
            return gr.Dropdown(desk.kinds().get(product, []), value=None)

        @told
        def on_defect(product: str, defect: str) -> Any:
            return gr.Dropdown(desk.labelled(product, defect), value=None)

        @told
        def on_name(product: str, defect: str, name: str | None) -> tuple[Any, Any]:
            if not name:
                return gr.skip(), gr.skip()
            image, mask, wrong = desk.label(product, defect, name)
            if wrong:
                gr.Warning(f"{wrong}: the mask begins empty")
            return canvas_of(image, mask), None

        @told
        def on_upload(path: str | None) -> tuple[Any, Any]:
            return (canvas_of(desk.opened(Path(path))), None) if path else (gr.skip(), gr.skip())

        @told
        def on_save(product: str, defect: str, name: str | None, path: str | None, how: str, value: dict[str, Any] | None) -> str:
            marks = marks_of(value)
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
