"""The pairs one by one, to be kept or rejected by hand, and the gate's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomalydiffusion.app.desk import VERDICTS, Desk
from anomalydiffusion.app.tabs.parts import gr, told
from anomalydiffusion.core.errors import ConfigError, DataError
from anomalydiffusion.report.figures import text

__all__ = ["review_tab"]

MOST = 60  # pairs of one page of the review
FOUND = 3  # where they are in what a page shows


def review_tab(desk: Desk) -> None:
    with gr.Tab("Review", id="review") as tab:
        gr.Markdown(
            "Keep or reject by hand: keys A and R, N and P for the next and the one before. What you say, no gate overrules. "
            "D rejects a pair and draws others for it and for what else of its type is missing; they are here when the work below is done."
        )
        with gr.Row():
            word = gr.Dropdown([("all", "")], value="", label="Defect", elem_id="review-defect")
            verdict = gr.Radio(list(VERDICTS), value="kept", label="Show", elem_id="review-verdict")
            reason = gr.Dropdown([("any", "")], value="", label="Reason", elem_id="review-reason")
            sheet = gr.Number(1, label=f"Page, {MOST} pairs each", precision=0, minimum=1, maximum=10**6, elem_id="review-page")
        records, at = gr.State([]), gr.State(0)
        grid = gr.Gallery(label="Pairs", columns=6, format="png", object_fit="contain", allow_preview=False, height=430,
                          elem_id="review-grid")  # fmt: skip
        pictures = gr.Gallery(label="This pair", columns=5, format="png", object_fit="contain", height=280, elem_id="review-pair")
        about = gr.Markdown(elem_id="review-about")
        with gr.Row():
            before = gr.Button("Previous", elem_id="review-previous")
            keep = gr.Button("Keep", variant="primary", elem_id="review-keep")
            reject = gr.Button("Reject", variant="stop", elem_id="review-reject")
            redraw = gr.Button("Draw again", elem_id="review-redraw")
            after = gr.Button("Next", elem_id="review-next")
        with gr.Accordion("Judge all anew", open=False, elem_id="review-judge"):
            with gr.Row():
                visible = gr.Slider(0, 5, value=1, step=0.05, label="Visible: change over the surface's own variation",
                                    elem_id="review-visible")  # fmt: skip
                strict = gr.Slider(0, 10, value=3, step=0.1, label="Deviations below what real defects score (0 = not asked)",
                                   elem_id="review-strict")  # fmt: skip
                agreement = gr.Slider(0, 1, value=0, step=0.05, label="Label's overlap with what is seen (0 = from the shots)")
                refit = gr.Checkbox(False, label="Fit labels to what is seen")
            with gr.Row():
                suggest = gr.Button("Set the first two as my verdicts ask", elem_id="review-suggest")
                judge = gr.Button("Judge anew", variant="primary", elem_id="review-judge-start")
            judged = gr.Markdown(elem_id="review-judged")

        def page(word: str, verdict: str, reason: str, sheet: float) -> tuple[Any, ...]:
            known = desk.reasons(word, verdict)
            reason = reason if reason in known else ""
            every = desk.pairs(word, verdict, reason)
            number = min(max(1, int(sheet or 1)), max(1, -(-len(every) // MOST)))
            found = every[(number - 1) * MOST : number * MOST]
            words = [("all", ""), *((name, name) for name in desk.defects())]
            reasons = [("any", ""), *((f"{name} ({count})", name) for name, count in known.items())]
            several = len({each["product"] for each in found}) > 1
            shown = [(desk.thumbnail(each), _caption(each, several)) for each in found]
            return gr.Dropdown(words, value=word), gr.Dropdown(reasons, value=reason), number, found, shown

        def pair(found: list[dict[str, Any]], index: int) -> tuple[Any, ...]:
            if not found:
                return 0, [], "Nothing to show."
            index = min(max(index, 0), len(found) - 1)
            said = _details(found[index], index, len(found))
            try:
                return index, desk.show(found[index]), said
            except (DataError, TypeError, ValueError, OverflowError) as error:  # its files, or what its line says of them
                return index, [], f"{said}; cannot be shown: {error}"

        @told
        def on_open(word: str, verdict: str, reason: str, sheet: float) -> tuple[Any, ...]:
            first = page(word, verdict, reason, sheet)
            return *first, *pair(first[FOUND], 0)

        @told
        def on_limits() -> tuple[float, float, float, bool]:
            known = desk.gate()
            return known.visible, known.strict, known.agreement or 0, known.refit

        @told
        def on_select(found: list[dict[str, Any]], event: gr.SelectData) -> tuple[Any, ...]:
            return pair(found, int(event.index))

        @told
        def on_decide(found: list[dict[str, Any]], index: int, *given: Any) -> tuple[Any, ...]:
            *asked, kept = given
            if not found:
                raise ConfigError("there is no pair to judge")
            judged = desk.decide(found[index]["image"], kept, found[index]["reasons"])
            first = page(*asked)
            stays = any(each["seed"] == judged["seed"] for each in first[FOUND])
            return *first, *pair(first[FOUND], index + stays)

        @told
        def on_redraw(found: list[dict[str, Any]], index: int, *asked: Any) -> tuple[Any, ...]:
            if not found:
                raise ConfigError("there is no pair to draw again")
            desk.redraw(found[index]["image"])
            first = page(*asked)
            return *first, *pair(first[FOUND], index)

        @told
        def on_suggest() -> tuple[float, float, str]:
            found = desk.suggest()
            return found.visible, found.strict, f"{found.says}. Change them as you like; *Judge anew* makes them the run's."

        @told
        def on_judge(visible: float, strict: float, agreement: float, refit: bool) -> str:
            found = desk.judge(visible=visible, agreement=agreement or None, strict=strict, refit=refit)
            return "; ".join(f"{name}: {own['kept']} of {own['drawn']} kept, before {own['kept_before']}" for name, own in found.items())

        shown, asked = [word, reason, sheet, records, grid, at, pictures, about], [word, verdict, reason, sheet]
        limits = [visible, strict, agreement, refit]
        events = [tab.select, word.input, reason.input, verdict.change, sheet.change]
        gr.on(events, on_open, asked, shown, trigger_mode="always_last")  # what comes while it is at work is not dropped
        tab.select(on_limits, None, limits)
        grid.select(on_select, records, [at, pictures, about])
        keep.click(lambda *given: on_decide(*given, True), [records, at, *asked], shown)
        reject.click(lambda *given: on_decide(*given, False), [records, at, *asked], shown)
        redraw.click(on_redraw, [records, at, *asked], shown)
        after.click(told(lambda found, index: pair(found, index + 1)), [records, at], [at, pictures, about])
        before.click(told(lambda found, index: pair(found, index - 1)), [records, at], [at, pictures, about])
        suggest.click(on_suggest, None, [visible, strict, judged])
        judge.click(on_judge, limits, judged).then(on_open, asked, shown).then(on_limits, None, limits)


def _caption(record: dict[str, Any], several: bool) -> str:
    """`several`: products are shown together."""
    name = f"{record['product']}/{record['defect']}" if several else record["defect"]
    return f"{name} {int(Path(record['image']).stem.split('-')[0])}{'' if record['accepted'] else ', rejected'}"


def _details(record: dict[str, Any], index: int, count: int) -> str:
    reasons = f" ({', '.join(record['reasons'])})" if record["reasons"] else ""
    known = record.get("measures")
    measures = ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in known.items()) if isinstance(known, dict) else ""
    verdict = "kept" if record["accepted"] else "rejected"
    origin = f"seed {record['seed']}, severity {text(record.get('severity'))}"
    name = f"{record['product']}/{record['defect']} {Path(record['image']).stem}"
    return f"**{index + 1} of {count}: {name}** {verdict}{reasons}; {origin}; {measures}"
