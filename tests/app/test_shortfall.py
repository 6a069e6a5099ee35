"""Who gets too few pairs is told what to change, by what the gate said."""

import pytest

from anomalydiffusion.app.shortfall import REMEDIES, tell_shortfall
from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.generation.shards import Slot
from anomalydiffusion.quality.gate import Reason, reason_of

KEY = ("tile", "crack")
SLOTS = [Slot(key=KEY, index=index) for index in range(2)]


def _records(*reasons: list[str]) -> list[dict[str, object]]:
    return [{"product": KEY[0], "defect": KEY[1], "accepted": not each, "reasons": each} for each in reasons]


def test_every_reason_of_the_gate_has_its_own_remedy() -> None:
    assert set(REMEDIES) == set(Reason) and len(set(REMEDIES.values())) == len(REMEDIES)


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        ([["near copy of a.png"], ["near copy of b.png"], ["not visible"]], "near copy"),
        ([["looks like hole"], ["looks like fray", "not visible"]], "looks like another type"),
        ([["unlike the shots"], ["not visible"]], "not visible"),  # the first by name: the same in every run
    ],
)
def test_the_most_frequent_reason_decides_what_is_advised(reasons: list[list[str]], kind: str) -> None:
    with pytest.raises(GenerationError) as told:
        tell_shortfall(SLOTS, _records(*reasons), 5, quiet=True)
    assert f"mostly as '{kind}'" in str(told.value) and REMEDIES[kind] in str(told.value)


def test_the_quiet_are_told_of_what_is_missing_and_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    tell_shortfall(SLOTS, _records([], ["background changed"]), 5, quiet=True)
    said = capsys.readouterr().err
    assert "tile/crack: 1 short of 2; --attempts 10 goes on" in said and REMEDIES["background changed"] in said
    tell_shortfall(SLOTS, _records([], []), 5, quiet=True)
    assert capsys.readouterr().err == ""


def test_what_was_kept_by_hand_says_nothing_of_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {**_records([])[0], "reasons": ["kept by hand"]}
    tell_shortfall([*SLOTS, Slot(key=KEY, index=2)], [kept, kept, *_records(["not visible"])], 5, quiet=True)
    assert REMEDIES["not visible"] in capsys.readouterr().err


def test_what_a_person_rejected_is_no_reason_to_change_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    tell_shortfall(SLOTS, _records([], ["rejected by hand"]), 5, quiet=True)
    said = capsys.readouterr().err
    assert "1 short of 2; --attempts 10 goes on" in said and "--no-resume" not in said


def test_nothing_that_could_be_drawn_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(GenerationError, match=r"nothing could be drawn; the run's left_out\.jsonl says why"):
        tell_shortfall(SLOTS, [], 5, quiet=True)


def test_what_the_gate_does_not_say_stays_as_it_is() -> None:
    assert reason_of("scratched by hand") == "scratched by hand"
