"""Slots are filled whatever stops the command between two lines of the manifest."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion.core.errors import ConfigError, GenerationError, MaskError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from anomalydiffusion.core.types import Mask, Pair, Provenance, Verdict
from anomalydiffusion.generation.shards import FAILURES, Shard, Task, discard, fill, next_batch, open_slots, plan, put_in_order

KEYS = [("tile", "crack"), ("tile", "hole")]


def _pair(task: Task) -> Pair:
    """A picture that only its seed decides."""
    generator = np.random.default_rng(task.seed)
    marked = np.zeros((12, 12), bool)
    marked[3:6, 3:6] = True
    mask = Mask(pixels_HW=marked, origin="warped", seed=task.seed)
    provenance = Provenance(
        product=task.slot.key[0], defect=task.slot.key[1], seed=task.seed, attempt=task.attempt, normal="n.png", normal_sha256="0",
        mask_origin="warped", touched_box=(3, 3, 6, 6), prior_digest="", adapter_digest="", config_digest="", steps=1, severity=1.0,
        version="0",
    )  # fmt: skip
    image = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Pair(image_HWC=image, mask=mask, normal_HWC=image, requested=mask, provenance=provenance)


def _make(batch: Sequence[Task]) -> list[Pair]:
    return [_pair(task) for task in batch]


def _judge(pair: Pair) -> Verdict:
    """About every third seed is refused."""
    keep = pair.provenance.seed % 3 != 0
    return Verdict(keep=keep, reasons=() if keep else ("not visible",))


def _run(folder: Path, num: int = 6, batch: int = 4, **over) -> list[dict]:
    run = Run.create(folder)
    return fill(run, plan(KEYS, num), over.pop("make", _make), over.pop("judge", _judge), seed=3, batch_size=batch, attempts=5, **over)


def _lines(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in Manifest(folder / "manifest.jsonl").records()]


def test_refused_seeds_are_recorded_and_drawn_again(tmp_path: Path) -> None:
    records = _run(tmp_path)
    kept = [record for record in records if record["accepted"]]
    refused = [record for record in records if not record["accepted"]]
    assert len(kept) == 12 and refused and all(record["reasons"] == ["not visible"] for record in refused)
    assert all((tmp_path / record["image"]).exists() and (tmp_path / record["mask"]).exists() for record in records)
    assert len({record["seed"] for record in records}) == len(records)


def test_a_slot_is_given_up_after_its_attempts(tmp_path: Path) -> None:
    records = _run(tmp_path, num=1, judge=lambda pair: Verdict(keep=False, reasons=("no",)))
    assert [record["attempt"] for record in records] == [0, 1, 2, 3, 4] * 2
    assert open_slots(plan(KEYS, 1), records, 5) == [] and len(open_slots(plan(KEYS, 1), records, 6)) == 2


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_interrupted_at_any_line_it_ends_like_undisturbed(tmp_path: Path, batch: int, stop: int) -> None:
    _run(tmp_path / "whole")

    count = 0

    def interrupt(record: dict) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", batch=batch, progress=interrupt)
    assert len(_lines(tmp_path / "cut")) == stop
    (tmp_path / "cut" / "generated" / ".part-left.png").write_bytes(b"half")
    _run(tmp_path / "cut", batch=batch)
    assert _lines(tmp_path / "cut") == _lines(tmp_path / "whole")
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole" / "generated").rglob("*.png")}
    again = {path.relative_to(tmp_path / "cut"): path.read_bytes() for path in (tmp_path / "cut" / "generated").rglob("*.png")}
    assert files == again


def test_more_pairs_keep_those_that_are_there(tmp_path: Path) -> None:
    _run(tmp_path, num=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "generated").rglob("*.png")}
    assert len([record for record in _run(tmp_path, num=5) if record["accepted"]]) == 10
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_a_seed_depends_on_slot_and_attempt_alone() -> None:
    first = next_batch([(slot, 0) for slot in plan(KEYS, 3)], 6, 1)
    assert [task.seed for task in first[2:]] == [task.seed for task in next_batch([(slot, 0) for slot in plan(KEYS, 3)][2:], 9, 1)]
    assert len({task.seed for task in first}) == 6


def test_a_maker_that_loses_pairs_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="4 pairs were asked for, 3 came"):
        _run(tmp_path, make=lambda batch: _make(batch)[1:])


def _without(*bad: tuple[str, int]):
    """A maker that cannot make some slots, given by defect and index."""

    def make(batch: Sequence[Task]) -> list[Pair]:
        for task in batch:
            if (task.slot.key[1], task.slot.index) in bad:
                raise MaskError(f"no mask fits {task.slot.index}")
        return _make(batch)

    return make


@pytest.mark.parametrize("batch", [1, 4])
def test_what_cannot_be_made_is_left_out_and_named_and_all_else_is_made(tmp_path: Path, batch: int) -> None:
    whole = _run(tmp_path / "whole", batch=batch)
    _run(tmp_path / "part", batch=batch, make=_without(("crack", 2), ("hole", 0)))
    gone = {"generated/tile/crack/images/000002.png", "generated/tile/hole/images/000000.png"}
    assert {record["image"] for record in whole if record["accepted"]} - {
        record["image"] for record in _lines(tmp_path / "part") if record["accepted"]
    } == gone
    named = [json.loads(line) for line in (tmp_path / "part/left_out.jsonl").read_text().splitlines()]
    said = [(each["defect"], each["index"], each["error"]) for each in named]
    assert said == [("crack", 2, "no mask fits 2"), ("hole", 0, "no mask fits 0")]
    _run(tmp_path / "part", batch=batch)
    assert _lines(tmp_path / "part") == _lines(tmp_path / "whole") and not (tmp_path / "part/left_out.jsonl").exists()


def test_what_a_shard_leaves_out_is_named_in_a_file_of_its_own_until_one_command_makes_it(tmp_path: Path) -> None:
    _part(tmp_path, Shard(number=1, count=2), make=_without(("crack", 2)))
    _part(tmp_path, Shard(number=2, count=2), make=_without(("crack", 3)))
    said = {path.name: json.loads(path.read_text())["error"] for path in tmp_path.glob("left_out*")}
    assert said == {"left_out-1-of-2.jsonl": "no mask fits 2", "left_out-2-of-2.jsonl": "no mask fits 3"}
    _part(tmp_path, Shard(number=1, count=2))
    assert [path.name for path in tmp_path.glob("left_out*")] == ["left_out-2-of-2.jsonl"]
    _run(tmp_path, num=6)
    assert not list(tmp_path.glob("left_out*"))


def test_a_defect_type_of_which_nothing_can_be_made_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=f"no mask fits {FAILURES - 1}"):
        _run(tmp_path, num=40, make=_without(*(("crack", index) for index in range(40))))
    assert len(_lines(tmp_path)) == 0


def test_failures_with_others_made_between_them_end_nothing(tmp_path: Path) -> None:
    _run(tmp_path, num=20, batch=1, make=_without(*(("crack", index) for index in range(1, 20, 2))))
    assert len((tmp_path / "left_out.jsonl").read_text().splitlines()) == 10 > FAILURES


def _part(folder: Path, shard: Shard, num: int = 6, make=_make, **over) -> list[dict]:
    run = Run.create(folder)
    with shard.lock(run):
        return fill(run, shard.of(plan(KEYS, num)), make, _judge, seed=3, batch_size=4, attempts=5, shard=shard, **over)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_shards_share_out_every_slot_and_end_with_what_one_command_makes(tmp_path: Path, count: int) -> None:
    whole = _run(tmp_path / "whole")
    shards = [Shard(number=number, count=count) for number in range(1, count + 1)]
    dealt = [slot for shard in shards for slot in shard.of(plan(KEYS, 6))]
    assert sorted(dealt, key=lambda slot: (slot.key, slot.index)) == plan(KEYS, 6)
    made = [record for shard in reversed(shards) for record in _part(tmp_path / "parts", shard)]
    assert len(made) == len(whole)
    put_in_order(Run.open(tmp_path / "parts"))
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_what_two_shards_of_another_count_made_twice_stays_once(tmp_path: Path) -> None:
    _run(tmp_path / "whole")
    manifest = Manifest(tmp_path / "parts" / "manifest.jsonl")
    _part(tmp_path / "parts", Shard(number=1, count=1))
    for record in manifest.records()[3:6]:
        manifest.append(record)
    put_in_order(Run.open(tmp_path / "parts"))
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_a_shard_is_one_commands_and_keeps_others_from_the_run_but_not_other_shards(tmp_path: Path) -> None:
    run, one, two = Run.create(tmp_path), Shard(number=1, count=2), Shard.parse("2/2")
    with one.lock(run):
        with two.lock(run):
            pass
        with pytest.raises(RunError, match="working on shard 1/2"), one.lock(run):
            pass
        with pytest.raises(RunError, match="another command is working on this run"), run.lock():
            pass
    with run.lock(), pytest.raises(RunError, match="another command is working on this run"), one.lock(run):
        pass


def test_half_written_files_of_others_are_left_alone(tmp_path: Path) -> None:
    Run.create(tmp_path)
    left = tmp_path / "generated" / "tile" / ".part-others.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    _part(tmp_path, Shard(number=1, count=2))
    assert left.exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "-1/2", "1/0", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n"):
        Shard.parse(text)


def test_lines_that_are_no_pairs_are_put_aside_and_the_pairs_are_made_all_the_same(tmp_path: Path) -> None:
    _run(tmp_path / "whole")
    _run(tmp_path / "odd", num=2)
    path = tmp_path / "odd" / "manifest.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    led_out = {**json.loads(first), "product": "../../evil"}
    path.write_bytes(first[:40] + b"\n" + b"".join(rest) + json.dumps(led_out).encode() + b"\n" + rest[0])  # one is cut, one is there twice
    _run(tmp_path / "odd")
    ended, whole = ([line for line in _lines(tmp_path / name) if line["accepted"]] for name in ("odd", "whole"))
    assert ended == whole and len(ended) == 12
    kept = [json.loads(line) for line in (tmp_path / "odd" / "manifest.rejected.jsonl").read_text().splitlines()]
    assert [line["text"][:20] for line in kept] == [first[:20].decode(), json.dumps(led_out)[:20]] and not (tmp_path / "evil").exists()


def test_throwing_pairs_away_leaves_no_damaged_line_lost(tmp_path: Path) -> None:
    _run(tmp_path, num=1)
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b"{nonsense\n")
    discard(Run.open(tmp_path), KEYS)
    assert not (tmp_path / "manifest.jsonl").exists() and "nonsense" in (tmp_path / "manifest.rejected.jsonl").read_text()
