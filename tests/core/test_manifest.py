"""The manifest keeps every whole line, whatever kills the writer."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalydiffusion.core.errors import RunError
from anomalydiffusion.core.manifest import Manifest, accepted, fault
from tests.hostile import ODD, spoilt

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "run" / "manifest.jsonl")


def test_what_is_appended_is_read_back_in_order(manifest: Manifest) -> None:
    assert manifest.records() == []
    written = [{"product": "tile", "seed": seed, "measures": {"a": 0.5}, "reasons": []} for seed in range(5)]
    for record in written:
        manifest.append(record)
    assert manifest.records() == written
    assert manifest.path.read_bytes().count(b"\n") == 5


@settings(max_examples=25, deadline=None)
@given(records=st.lists(st.dictionaries(st.text(), PLAIN, max_size=4), max_size=5))
def test_any_plain_record_survives(tmp_path_factory: pytest.TempPathFactory, records: list[dict]) -> None:
    manifest = Manifest(tmp_path_factory.mktemp("m") / "manifest.jsonl")
    manifest.rewrite(records)
    assert manifest.records() == records


def test_numpy_values_paths_and_infinities_become_plain(manifest: Manifest) -> None:
    manifest.append({"seed": np.int64(7), "box": np.array([1, 2]), "image": Path("a") / "b.png", "m": {"x": np.float32("nan")},
                     "ok": np.bool_(True), "pair": (1, float("inf"))})  # fmt: skip
    assert manifest.records() == [{"seed": 7, "box": [1, 2], "image": "a/b.png", "m": {"x": None}, "ok": True, "pair": [1, None]}]


@pytest.mark.parametrize("cut", [1, 20, 70_000])
def test_a_cut_line_is_moved_away_before_the_next(manifest: Manifest, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    manifest.append({"seed": 1})
    manifest.append({"seed": 2, "long": "x" * 100_000})
    whole = manifest.path.read_bytes()
    manifest.path.write_bytes(whole[:-cut] if cut > 1 else whole[:-2])
    with caplog.at_level(logging.WARNING):
        assert manifest.records() == [{"seed": 1}]
        manifest.append({"seed": 3})
    assert manifest.records() == [{"seed": 1}, {"seed": 3}]
    assert "cut short" in caplog.text and "manifest.rejected.jsonl" in caplog.text
    [kept] = map(json.loads, (manifest.path.parent / "manifest.rejected.jsonl").read_text().splitlines())
    assert kept["text"].startswith('{"seed": 2') and kept["offset"] == len(b'{"seed": 1}\n')


def test_a_whole_record_without_its_newline_counts_and_stays(manifest: Manifest) -> None:
    manifest.append({"seed": 1})
    manifest.path.write_bytes(manifest.path.read_bytes().rstrip(b"\n"))
    assert manifest.records() == [{"seed": 1}]
    manifest.append({"seed": 2})
    assert manifest.records() == [{"seed": 1}, {"seed": 2}]
    assert not (manifest.path.parent / "manifest.rejected.jsonl").exists()


@pytest.mark.parametrize("damage", [b"{nonsense", b"\x00\x00\x00", b"[1, 2]", b"\xff\xfe{}", b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}"])
def test_a_damaged_line_is_skipped_and_named(manifest: Manifest, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    manifest.append({"seed": 1})
    with manifest.path.open("ab") as file:
        file.write(damage + b"\n\n")
    manifest.append({"seed": 2})
    with caplog.at_level(logging.WARNING):
        assert manifest.records() == [{"seed": 1}, {"seed": 2}]
    [message] = caplog.messages
    assert f"{manifest.path}, line 2" in message


def test_rewrite_replaces_everything(manifest: Manifest) -> None:
    manifest.append({"seed": 1})
    manifest.rewrite([{"seed": 8}, {"seed": 9}])
    manifest.append({"seed": 10})
    assert manifest.records() == [{"seed": 8}, {"seed": 9}, {"seed": 10}]
    assert [path.name for path in manifest.path.parent.iterdir()] == ["manifest.jsonl"]


def test_a_manifest_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        Manifest(tmp_path / "manifest.jsonl").append({})
    with pytest.raises(RunError, match="cannot be read"):
        Manifest(tmp_path / "manifest.jsonl").records()


def _write_many(path: Path, worker: int) -> None:
    for index in range(12):
        Manifest(path).append({"worker": worker, "index": index, "pad": "x" * 5000})


def test_many_writers_lose_nothing(manifest: Manifest) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(manifest.path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    seen = [(record["worker"], record["index"]) for record in manifest.records()]
    assert sorted(seen) == [(worker, index) for worker in range(4) for index in range(12)]


def test_accepted_keeps_only_what_the_gate_kept() -> None:
    records = [{"seed": 1, "accepted": True}, {"seed": 2, "accepted": False}, {"seed": 3}, {"seed": 4, "accepted": "yes"}]
    assert accepted(records) == [{"seed": 1, "accepted": True}]


PAIR = {
    "product": "tile", "defect": "crack", "seed": 7, "attempt": 0, "image": "generated/tile/crack/images/000000.png",
    "mask": "generated/tile/crack/masks/000000.png", "requested_mask": "generated/tile/crack/masks/000000.png", "normal": "/data/n.png",
    "normal_sha256": "0" * 64, "mask_origin": "warped", "touched_box": [1, 2, 3, 4], "config_digest": "0" * 16, "accepted": True,
    "reasons": [], "image_sha256": "1" * 64, "mask_sha256": "2" * 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"product": "../evil"}, {"defect": ".."}, {"defect": None}, {"image": "../../x/000000.png"}, {"image": "/etc/000000.png"},
        {"image": "generated/tile/crack/images/picture.png"}, {"image": "000000.png"}, {"mask": "a\0b"},
        {"requested_mask": "../victim.png"}, {"requested_mask": "C:\\victim.png"},
        {"config_digest": "../../x"}, {"seed": "7"}, {"seed": True}, {"attempt": -1}, {"accepted": 1},
        {"reasons": "no"}, {"reasons": [None]}, {"touched_box": [1, 2]}, {"touched_box": [1, 2, 3, "4"]}, {"normal": None},
        {"mask_sha256": 5}, {"image_sha256": None},
    ],
)  # fmt: skip
def test_a_line_that_no_command_could_use_is_skipped_and_the_rest_survives(
    manifest: Manifest, caplog: pytest.LogCaptureFixture, other: dict
) -> None:
    assert fault(PAIR) == ""
    manifest.rewrite([PAIR, PAIR | other, PAIR | {"attempt": 1}])
    with caplog.at_level(logging.WARNING):
        assert [record["attempt"] for record in manifest.pairs()] == [0, 1]
    assert f"{manifest.path}, line 2: {next(iter(other))}" in caplog.text


@pytest.mark.parametrize("name", list(PAIR))
def test_a_line_without_what_commands_need_is_skipped(manifest: Manifest, name: str) -> None:
    manifest.rewrite([{key: value for key, value in PAIR.items() if key != name}, PAIR])
    assert manifest.pairs() == [PAIR]


@settings(max_examples=60, deadline=None)
@given(line=spoilt(PAIR))
def test_whatever_a_line_holds_the_others_are_read_and_it_is_kept_aside(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    manifest = Manifest(tmp_path_factory.mktemp("m") / "manifest.jsonl")
    manifest.path.write_bytes(json.dumps(PAIR).encode() + b"\n" + line + b"\n" + json.dumps(PAIR).encode() + b"\n")
    found = manifest.pairs()
    assert found[0] == found[-1] == PAIR and len(found) in (2, 3)
    manifest.rewrite(found, pairs=True)
    aside = manifest.path.with_name("manifest.rejected.jsonl")
    assert aside.exists() is (len(found) == 2) and manifest.pairs() == found
    if aside.exists():
        [kept] = map(json.loads, aside.read_text().splitlines())
        assert kept["line"] == 2 and kept["text"].encode() == line


def test_odd_values_anywhere_are_faults_or_harmless() -> None:
    for name in PAIR:
        for value in ODD:
            said = fault(PAIR | {name: value})
            assert isinstance(said, str) and len(said) < 1000


def test_lines_are_arranged_as_they_are_and_the_last_of_equals_stays(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    def order(record: dict) -> tuple:
        return record["defect"], record["attempt"]

    lines = [
        json.dumps(PAIR | {"defect": defect, "attempt": attempt, "seed": seed}).replace(": ", ":  ").encode()
        for seed, (defect, attempt) in enumerate([("hole", 1), ("hole", 0), ("crack", 0), ("hole", 1), ("crack", 2)])
    ]
    manifest.arrange(order)
    assert not manifest.path.exists(), "of no manifest none is made"
    manifest.path.parent.mkdir()
    manifest.path.write_bytes(b"\n".join([lines[0], lines[1], b"{half", *lines[2:]]))
    with caplog.at_level(logging.WARNING):
        manifest.arrange(order)
    assert manifest.path.read_bytes() == b"".join(lines[row] + b"\n" for row in (2, 4, 1, 3))
    [kept] = map(json.loads, manifest.path.with_name("manifest.rejected.jsonl").read_text().splitlines())
    assert kept == {"line": 3, "wrong": "not a JSON record", "text": "{half"} and "1 damaged lines are moved" in caplog.text
    before = manifest.path.stat()
    manifest.arrange(order)
    assert manifest.path.stat().st_ino == before.st_ino, "what is in order is not written again"


def test_what_many_records_say_is_in_memory_once(manifest: Manifest) -> None:
    manifest.rewrite([PAIR | {"normal": "/normals/" + "0" * 64}] * 2)
    first, second = manifest.pairs()
    assert first["normal"] is second["normal"] and next(iter(first)) is next(iter(second))


def test_rewriting_puts_damaged_lines_aside(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    manifest.append({"seed": 1})
    with manifest.path.open("ab") as file:
        file.write(b'{"seed": 2\n[3]\n\xff\n')
    with caplog.at_level(logging.WARNING):
        manifest.rewrite(manifest.records())
    assert manifest.records() == [{"seed": 1}] and "3 damaged lines are moved to manifest.rejected.jsonl" in caplog.text
    kept = [json.loads(line) for line in (manifest.path.parent / "manifest.rejected.jsonl").read_text().splitlines()]
    assert [line["text"] for line in kept] == ['{"seed": 2', "[3]", "\\xff"]
