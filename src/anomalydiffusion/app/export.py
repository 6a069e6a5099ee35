"""Hand a run to other tools: its pairs, or the vectors that it learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomalydiffusion.core.errors import ConfigError, RunError
from anomalydiffusion.core.runs import Run, replace_folder, write_atomic
from anomalydiffusion.report import export as pairs
from anomalydiffusion.report.export import ExportSummary

__all__ = ["export"]

EMBEDDINGS = "embeddings"
FILE = "learned_embeds.safetensors"  # the name that diffusers looks for


def export(
    run: Path | str, output: Path | str, format: str = "mvtec", *, product: Sequence[str] | None = None,
    defect: Sequence[str] | None = None, normals: bool = True, together: int = 1, contents: str = "synthetic",
) -> ExportSummary:  # fmt: skip
    """Copy the accepted pairs of `run` to the new folder `output` in one of `report.export.FORMATS`, or its vectors: `embeddings`.

    `embeddings`: `<product>/<defect>/learned_embeds.safetensors` for each defect, one tensor k x D under the name
    `<product-defect>`, which diffusers' `load_textual_inversion` reads. They are e_a alone: what mask encoder and LoRA add stays
    in the run. `together`: so many defects are in one picture at most. `contents`: the pairs alone (`synthetic`), the real defects that
    were learned from (`real`), or both (`mixed`). Raises `ConfigError` on an unknown format or name, `RunError`
    on what is missing, changed or cannot be written.
    """
    run, output = Path(run), Path(output)
    if format != EMBEDDINGS:
        if format not in pairs.FORMATS:
            raise ConfigError(f"format '{format}' is not known; known: {', '.join([*pairs.FORMATS, EMBEDDINGS])}")
        return pairs.export(run, output, format, product=product, defect=defect, normals=normals, together=together,
                            contents=contents)  # fmt: skip
    if together != 1 or contents != "synthetic":
        raise ConfigError(f"format '{EMBEDDINGS}' writes vectors, no pictures: leave out together and contents")
    from safetensors.torch import save  # only here: pairs are copied without torch

    from anomalydiffusion.app.opened import among
    from anomalydiffusion.conditioning.adapter import Adapter

    vectors = Adapter.vectors_of(Run.open(run).adapter)
    keys = among(sorted(vectors), product, defect)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output}: exists already; name a new folder")
    chosen = {key: vectors[key] for key in keys}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(output) as part:
            for (name, kind), own in chosen.items():
                write_atomic(part / name / kind / FILE, save({f"<{name}-{kind}>": own.contiguous()}))
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error}); check free space and permissions") from error
    return ExportSummary(format=format, output=output.resolve(), counts={key: len(own) for key, own in chosen.items()}, normals={})
