"""`generate --mirror`: what a run's manifest names is elsewhere too, whole, once, and nothing else is touched there."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import anomalydiffusion as ad
from anomalydiffusion.core.errors import ConfigError, GenerationError, RunError
from anomalydiffusion.core.manifest import Manifest
from anomalydiffusion.core.runs import Run
from tests.app.conftest import Spoken

URL = "memory://bucket/plates"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run with two pairs a type."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    if store.exists("/bucket"):
        store.rm("/bucket", recursive=True)


def named(run: Path) -> set[str]:
    return {record[name] for record in Manifest(run / "manifest.jsonl").pairs() for name in ("image", "mask", "requested_mask")}


def lies(store: Any, root: str) -> dict[str, bytes]:
    return {path.removeprefix(root).lstrip("/"): store.cat_file(path) for path in store.find(root)}


def same(run: Path, found: dict[str, bytes]) -> bool:
    """Whether all that the run's manifest names is there as it is here, with what it was drawn with, and no other pair."""
    pairs = {name for name in found if name.startswith("generated/")}
    beside = {"run.json", "config.toml", "split.json", "gate.json", "adapter/adapter.safetensors", "manifest.jsonl"}
    assert beside <= set(found) and not any(name.startswith(".") for name in found)
    return pairs == named(run) and all((run / name).read_bytes() == data for name, data in found.items())


def broken(monkeypatch: pytest.MonkeyPatch, when: Callable[[str], bool], error: BaseException) -> None:
    """Let copying of some files fail."""
    put = MemoryFileSystem.put_file

    def failing(self: Any, source: str, target: str, **given: Any) -> Any:
        if when(target):
            raise error
        return put(self, source, target, **given)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)


def copies(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[str]:
    """The files that are copied from now on."""
    sent, put = list[str](), kind.put_file

    def counted(self: Any, source: str, target: str, **given: Any) -> Any:
        sent.append(Path(source).name)
        return put(self, source, target, **given)

    monkeypatch.setattr(kind, "put_file", counted)
    return sent


def test_a_store_holds_what_the_manifest_names(
    run: Path, store: MemoryFileSystem, spoken: Spoken, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert spoken("generate", run, "--num", 3, "--mirror", URL, "--quiet") == (0, "")
    assert same(run, lies(store, "/bucket/plates")) and len(named(run)) >= 12
    sent = copies(monkeypatch, MemoryFileSystem)
    ad.generate(run, 3, mirror=URL, quiet=True)
    assert not any(name.endswith(".png") for name in sent)  # nothing that is there goes again
    ad.generate(run, 4, mirror=URL, workers=2, quiet=True)
    assert same(run, lies(store, "/bucket/plates")) and 4 <= sum(name.endswith(".png") for name in sent) < len(named(run))


def test_a_folder_loses_what_was_thrown_away(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "shelf" / "plates"
    ad.generate(run, 2, mirror=str(place), quiet=True)
    assert same(run, lies(LocalFileSystem(), str(place)))
    (place / "notes.txt").write_text("mine")
    before = named(run)
    ad.generate(run, 1, seed=5, mirror=f"file://{place}", resume=False, quiet=True)
    found = lies(LocalFileSystem(), str(place))
    assert found.pop("notes.txt") == b"mine" and same(run, found) and before - named(run)


def test_shards_copy_their_own_and_the_last_one_the_manifest(
    run: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    opened = Run.open(run)
    with opened.lock(shared=True):  # as if the other shard were still at work
        ad.generate(run, 4, shard="1/2", mirror=URL, quiet=True)
    found = lies(store, "/bucket/plates")
    assert "manifest.jsonl" not in found and sum(name.endswith(".png") for name in found) >= 4
    sent = copies(monkeypatch, MemoryFileSystem)
    ad.generate(run, 4, shard="2/2", mirror=URL, quiet=True)
    assert 4 <= sum(name.endswith(".png") for name in sent) < len(named(run))  # not what the other one has copied
    assert same(run, lies(store, "/bucket/plates"))


def test_what_could_not_be_copied_is_copied_by_the_same_command(
    run: Path, store: MemoryFileSystem, spoken: Spoken, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as now:
        broken(now, lambda target: target.endswith("000002.png"), PermissionError("access denied"))
        code, said = spoken("generate", run, "--num", 3, "--mirror", URL, "--quiet")
    assert code == 1 and said.count("\n") == 1
    assert said.startswith(f"error: --mirror {URL}: not all could be copied (PermissionError: access denied); the pairs are in {run}")
    assert "manifest.jsonl" not in lies(store, "/bucket/plates")  # it would name what is not there
    assert sum(record["accepted"] for record in Manifest(run / "manifest.jsonl").pairs()) == 6
    sent = copies(monkeypatch, MemoryFileSystem)
    assert spoken("generate", run, "--num", 3, "--mirror", URL, "--quiet") == (0, "")
    assert same(run, lies(store, "/bucket/plates"))
    assert {name for name in sent if name.endswith(".png")} == {"000002.png"}  # what had been copied is remembered


def test_a_fault_that_passes_is_no_fault(run: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([True])
    broken(monkeypatch, lambda target: target.endswith("000002.png") and next(times, False), ConnectionError("reset"))
    ad.generate(run, 3, mirror=URL, quiet=True)
    assert same(run, lies(store, "/bucket/plates"))


def test_what_is_written_over_is_not_named_there(run: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    ad.generate(run, 2, mirror=URL, quiet=True)
    with monkeypatch.context() as now:
        broken(now, lambda target: "adapter" in target, KeyboardInterrupt())  # when the pairs are there, and the manifest is not
        with pytest.raises(KeyboardInterrupt):
            ad.generate(run, 2, seed=5, resume=False, mirror=URL, quiet=True)
    assert "manifest.jsonl" not in lies(store, "/bucket/plates")
    ad.generate(run, 2, seed=0, resume=False, mirror=URL, quiet=True)
    assert same(run, lies(store, "/bucket/plates"))


def test_places_that_are_not_this_run_s_are_refused(run: Path, store: MemoryFileSystem, tmp_path: Path) -> None:
    before = (run / "manifest.jsonl").read_bytes()
    for place in (run / "copy", run, tmp_path):
        with pytest.raises(ConfigError, match="give a folder of its own"):
            ad.generate(run, 3, mirror=str(place), quiet=True)
    for unknown in ("nowhere://bucket", "s3://", "github://x"):
        with pytest.raises((ConfigError, GenerationError), match=f"--mirror {unknown}"):
            ad.generate(run, 3, mirror=unknown, quiet=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else than a copy of"):
        ad.generate(run, 3, mirror=str(tmp_path / "full"), quiet=True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    other = {**json.loads((run / "run.json").read_text()), "created": "2020-01-01T00:00:00+00:00"}
    for text in (json.dumps(other), "[]", "{"):
        store.pipe_file("/bucket/plates/run.json", text.encode())
        with pytest.raises(RunError, match="give an empty place"):
            ad.generate(run, 3, mirror=URL, quiet=True)
    assert (run / "manifest.jsonl").read_bytes() == before and set(lies(store, "/bucket")) == {"plates/run.json"}
    picture = run / next(name for name in sorted(named(run)) if "mask" not in name)
    with pytest.raises(ConfigError, match="leave --mirror away"):
        ad.generate(run, like=picture, mirror=URL, quiet=True)


def test_a_manifest_there_that_names_other_places_deletes_nothing(run: Path, store: MemoryFileSystem) -> None:
    ad.generate(run, 2, mirror=URL, quiet=True)
    store.pipe_file("/bucket/letter.png", b"mine")
    record = Manifest(run / "manifest.jsonl").pairs()[0]
    evil = [json.dumps({**record, name: "../letter.png"}) for name in ("image", "mask", "requested_mask")]
    store.pipe_file("/bucket/plates/manifest.jsonl", "\n".join(evil).encode())
    ad.generate(run, 2, mirror=URL, quiet=True)
    assert store.cat_file("/bucket/letter.png") == b"mine" and same(run, lies(store, "/bucket/plates"))
