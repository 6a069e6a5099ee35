"""The kept pairs, the real defects, or both, for other tools."""

from __future__ import annotations

from pathlib import Path

from anomalydiffusion.app.desk import Desk
from anomalydiffusion.app.tabs.parts import gr, told
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.names import at_home, is_folder
from anomalydiffusion.report.export import CONTENTS
from anomalydiffusion.report.layouts import FORMATS

__all__ = ["export_tab"]


def export_tab(desk: Desk, movable: bool) -> None:
    with gr.Tab("Export", id="export"):
        with gr.Row():
            format = gr.Dropdown(list(FORMATS), value=next(iter(FORMATS)), label="Format", elem_id="export-format")
            most = gr.Number(1, label="Defects in one picture, at most", precision=0, minimum=1, elem_id="export-together")
            contents = gr.Dropdown(list(CONTENTS), value=CONTENTS[0], label="Contents", elem_id="export-contents")
            name = gr.Textbox("export", label="New folder" if movable else "New folder, beside the run's", elem_id="export-folder")
            go = gr.Button("Export", variant="primary", elem_id="export-start")
        done = gr.Markdown(elem_id="export-done")

        @told
        def on_export(format: str, most: float | None, contents: str, name: str) -> str:
            if not is_folder(name) and not (movable and name and "\0" not in name):
                raise ConfigError(f"'{name}': give a plain name, without folders")
            named = at_home(name) if movable else Path(name)
            return f"Done: {desk.hand_out(format, desk.folder.parent / named, int(most or 1), contents)}"

        go.click(on_export, [format, most, contents, name], done)
