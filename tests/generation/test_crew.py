"""Whatever happens to its workers, a crew ends with the pairs that one process makes, each once."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from anomalydiffusion.core.errors import ConfigError, GenerationError, MaskError
from anomalydiffusion.core.runs import Run
from anomalydiffusion.generation.crew import Crew, Draw, ProcessCrew, fill_together
from anomalydiffusion.generation.rayed import RayCrew
from anomalydiffusion.generation.shards import FAILURES, Task, plan, write_pair
from tests.generation.test_shards import KEYS, _judge, _lines, _make, _run

NUM = 5
Trouble = Callable[[Path, Task], None]


class Drawing:
    """A worker's own: pairs that only their seeds decide, and what befalls it before each."""

    def __init__(self, folder: Path, trouble: Trouble | None = None) -> None:
        self.run, self.trouble = Run.open(folder), trouble

    def __call__(self, tasks: Sequence[Task]) -> list[dict]:
        out = []
        for task, pair in zip(tasks, _make(tasks), strict=True):
            if self.trouble:
                self.trouble(self.run.folder, task)
            out.append(write_pair(self.run, task, pair, _judge(pair), 0.0, ""))
        return out


def _die_once(folder: Path, task: Task) -> None:
    """Killed at two items, the first time that each is drawn."""
    mark = folder / f"died-{task.slot.key[1]}-{task.slot.index}"
    if task.slot.index in (1, 3) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _die_always(folder: Path, task: Task) -> None:
    if task.slot.key[1] == "hole" and task.slot.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def _refuse(folder: Path, task: Task) -> None:
    if task.slot.index == 2:
        raise MaskError(f"no mask fits number {task.slot.index}")


def _refuse_all_cracks(folder: Path, task: Task) -> None:
    if task.slot.key[1] == "crack":
        with (folder / "tried").open("a") as tried:
            tried.write("x")
        raise MaskError(f"no mask fits number {task.slot.index}")


def _cannot_begin() -> Draw:
    raise ConfigError("no such prior")


def _filled(folder: Path, crew: Crew, **over) -> list[dict]:
    return fill_together(Run.open(folder), plan(KEYS, NUM), crew, seed=3, batch_size=2, attempts=5, **over)


def _crew(kind: str, folder: Path, trouble: Trouble | None = None) -> Crew:
    Run.create(folder)
    build = partial(Drawing, folder, trouble)
    return ProcessCrew(2, build) if kind == "processes" else RayCrew("local", 2, build)


KINDS = ["processes", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pairs_are_those_of_one_process_also_where_workers_are_killed(kind: str, tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", num=NUM)
    made = _filled(tmp_path / "many", _crew(kind, tmp_path / "many", _die_once))
    assert len(made) == len(whole) and len(list((tmp_path / "many").glob("died-*"))) == 4
    assert _lines(tmp_path / "many") == _lines(tmp_path / "whole") and not (tmp_path / "many" / "left_out.jsonl").exists()
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole" / "generated").rglob("*.png")}
    assert files == {path.relative_to(tmp_path / "many"): path.read_bytes() for path in (tmp_path / "many" / "generated").rglob("*.png")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_always_kills_its_worker_is_left_out_and_named_and_nothing_else_is(kind: str, tmp_path: Path) -> None:
    made = _filled(tmp_path, _crew(kind, tmp_path, _die_always))
    kept = {(record["defect"], record["image"]) for record in made if record["accepted"]}
    assert len(kept) == 2 * NUM - 1
    (named,) = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert (named["defect"], named["index"]) == ("hole", 2)


def test_an_item_that_fails_is_left_out_with_its_error_and_tried_again_by_the_next_command(tmp_path: Path) -> None:
    made = _filled(tmp_path, _crew("processes", tmp_path, _refuse))
    named = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert [(each["defect"], each["error"]) for each in named] == [("crack", "no mask fits number 2"), ("hole", "no mask fits number 2")]
    assert len([record for record in made if record["accepted"]]) == 2 * NUM - 2
    again = _filled(tmp_path, _crew("processes", tmp_path))
    assert len([record for record in again if record["accepted"]]) == 2 * NUM and not (tmp_path / "left_out.jsonl").exists()


def test_a_defect_type_of_which_nothing_can_be_made_ends_the_command(tmp_path: Path) -> None:
    crew = _crew("processes", tmp_path, _refuse_all_cracks)
    with pytest.raises(MaskError, match="no mask fits number"):
        fill_together(Run.open(tmp_path), plan(KEYS, 20), crew, seed=3, batch_size=2, attempts=5)
    assert (tmp_path / "tried").stat().st_size < 20, "each is tried by itself once, and not all of them are"
    assert len((tmp_path / "left_out.jsonl").read_text().splitlines()) == FAILURES - 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_a_worker_from_beginning_is_said_as_it_is_and_nothing_was_touched(kind: str, tmp_path: Path) -> None:
    Run.create(tmp_path)
    touched = []
    crew = ProcessCrew(1, _cannot_begin) if kind == "processes" else RayCrew("local", 1, _cannot_begin)
    with pytest.raises(ConfigError, match=r"^no such prior$"):
        _filled(tmp_path, crew, once_ready=lambda: touched.append(1))
    assert not touched and not (tmp_path / "manifest.jsonl").exists()


def _always(folder: Path, task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_where_every_worker_is_lost_it_ends_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"workers were lost and nothing was made; is there memory enough for --workers 2"):
        _filled(tmp_path, _crew("processes", tmp_path, _always))


def _die_beginning(folder: Path, times: int) -> Draw:
    """A worker that is killed as it begins, the first `times` times."""
    if len(list(folder.glob("began-*"))) < times:
        (folder / f"began-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Drawing(folder, None)


def test_a_worker_that_is_lost_as_it_begins_is_replaced(tmp_path: Path) -> None:
    Run.create(tmp_path)
    made = _filled(tmp_path, ProcessCrew(2, partial(_die_beginning, tmp_path, 2)))
    assert len([record for record in made if record["accepted"]]) == 2 * NUM and len(list(tmp_path.glob("began-*"))) >= 2


def test_where_none_can_begin_it_ends_and_says_so(tmp_path: Path) -> None:
    Run.create(tmp_path)
    with pytest.raises(GenerationError, match=r"workers were lost and nothing was made"):
        _filled(tmp_path, ProcessCrew(2, partial(_die_beginning, tmp_path, 1000)))
    assert not (tmp_path / "manifest.jsonl").exists()


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_goes_on_with_the_others(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    whole = _run(tmp_path / "whole", num=NUM)
    Run.create(tmp_path / "many")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second, lines = cluster.add_node(num_cpus=1), []

        def lose(record: dict) -> None:
            lines.append(record)
            if len(lines) == 3:
                cluster.remove_node(second, allow_graceful=False)

        crew = RayCrew(cluster.address, 2, partial(Drawing, tmp_path / "many", _wait))
        made = _filled(tmp_path / "many", crew, progress=lose)
    finally:
        cluster.shutdown()
    assert len(made) == len(whole) and _lines(tmp_path / "many") == _lines(tmp_path / "whole")


def _wait(folder: Path, task: Task) -> None:
    time.sleep(0.5)  # so that both nodes have something to do


def _sleep(folder: Path, task: Task) -> None:
    (folder / f"pid-{os.getpid()}").touch()
    time.sleep(60)


def test_workers_end_when_their_command_is_killed(tmp_path: Path) -> None:
    begun = os.fork()
    if begun == 0:
        try:
            _filled(tmp_path, _crew("processes", tmp_path, _sleep))
        finally:
            os._exit(0)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    os.kill(begun, signal.SIGKILL)
    os.waitpid(begun, 0)
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_without_ray_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'anomalydiffusion\[ray\]'"):
        RayCrew("local", 1, partial(Drawing, tmp_path))


def test_workers_take_cards_only_where_they_compute_on_them(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="has room for 0 workers, not 1; it has no graphics card: give --device cpu"):
        RayCrew("local", 1, partial(Drawing, tmp_path), card=True)
