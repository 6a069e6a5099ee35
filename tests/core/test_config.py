"""Settings survive TOML; what is unknown or of the wrong kind is refused by name."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import settings as budget

from anomalydiffusion.app.opened import run_settings
from anomalydiffusion.app.settings import Settings, resolve, to_toml
from anomalydiffusion.core.config import digest, dumps, from_dict, read_toml
from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.runs import Run
from tests.hostile import damaged, refused


def test_toml_round_trip() -> None:
    settings = resolve(seed=7, generate={"steps": 13, "ratio": [2.0, 3.0]}, prior='a "quoted" näme')
    again = from_dict(Settings, tomllib.loads(to_toml(settings)))
    assert again == settings and digest(again) == digest(settings)
    assert digest(resolve(seed=8)) != digest(resolve(seed=7))


def test_numbers_that_are_not_finite_are_written_as_toml_knows_them() -> None:
    again = tomllib.loads(dumps({"a": math.inf, "b": -math.inf, "c": [1.5, math.nan]}))
    assert (again["a"], again["b"], again["c"][0]) == (math.inf, -math.inf, 1.5) and math.isnan(again["c"][1])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sede": 1}, "unknown setting 'sede'"),
        ({"generate": {"stepz": 1}}, "unknown setting 'generate.stepz'"),
        ({"seed": "one"}, "seed: expected int"),
        ({"seed": True}, "seed: expected int"),
        ({"generate": {"steps": {"of": 3}}}, "generate.steps: expected int"),
        ({"train": {"loop": 3}}, "train.loop: expected a table"),
        ({"generate": 3}, "generate: expected a table"),
        ({"generate": {"ratio": [1.0]}}, "expected 2 values"),
        ({"generate": {"grain": "loud"}}, "expected one of 'measured'"),
        ({"generate": {"steps": 0}}, "^generate: steps = 0: expected at least 1$"),
        ({"generate": {"eta": 2.0}}, r"^generate: eta = 2\.0: expected 0\.\.1$"),
        (
            {"train": {"pool": {"ratio": [3.0, 2.0]}}},
            r"^train\.pool: ratio = \(3\.0, 2\.0\): expected two rising, finite numbers of at least 1$",
        ),
        ({"train": {"loop": {"mixed_precision": ""}}}, "^train.loop: mixed_precision '' is not known; known: no, bf16, auto$"),
        ({"preview_steps": 0}, "^preview_steps = 0: expected at least 1"),
    ],
)
def test_refusals(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_dict(Settings, values)


def test_what_a_file_says_is_refused_by_its_name_and_what_was_typed_is_not(tmp_path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[gate]\nstrict = -1\n")
    with pytest.raises(ConfigError) as refused:
        resolve(config=file)
    assert str(refused.value) == f"{file}: gate: strict = -1.0: expected 0..100"
    assert resolve(config=file, gate={"strict": 2.0}).gate.strict == 2
    file.write_text("[gate]\nstrict = 1\n", encoding="utf-8-sig")  # as Windows' editors save it
    with pytest.raises(ConfigError) as refused:
        resolve(config=file, gate={"strict": -1.0})
    assert str(refused.value) == "gate: strict = -1.0: expected 0..100"
    with pytest.raises(ConfigError) as refused:  # what the run itself says is not the file's fault
        resolve(config=file, base={"generate": {"eta": 3.0}})
    assert str(refused.value) == "generate: eta = 3.0: expected 0..1"
    file.write_text('preset = "nope"')
    with pytest.raises(ConfigError, match=r"c\.toml: unknown preset 'nope'"):
        resolve(config=file)
    run = Run.create(tmp_path / "run")
    run.config.write_text("[generate]\neta = 3.0\n")
    with pytest.raises(ConfigError) as refused:
        run_settings(run, gate={"strict": 1.0})
    assert str(refused.value) == f"{run.config}: generate: eta = 3.0: expected 0..1"


def test_a_table_is_named_once() -> None:
    for table, wrong in (("gate", {"strict": -1.0}), ("detector", {"side": 33}), ("classifier", {"side": 5}), ("masks", {"alike": 0}),
                         ("generate", {"eta": 2.0}), ("train", {"batch_size": 0}), ("adapt", {"own": 0.0}),
                         ("masks", {"source": "warped", "matched_for": ["a/b"]})):  # fmt: skip
        with pytest.raises(ConfigError) as refused:
            resolve(**{table: wrong})
        assert str(refused.value).count(f"{table}: ") == 1 and str(refused.value).startswith(f"{table}: "), refused.value


def test_the_command_line_wins_over_the_file_over_the_preset(tmp_path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('preset = "fast"\n[generate]\nseverity = 0.5\n')
    assert resolve(config=file, generate={"severity": (0.5, 2)}).generate.severity == (0.5, 2.0)
    with pytest.raises(ConfigError, match=r"generate\.severity: expected float, got 'much'"):
        resolve(generate={"severity": "much"})
    settings = resolve(config=file, generate={"severity": None, "steps": 7})
    assert (settings.generate.severity, settings.generate.steps, settings.train.loop.steps) == (0.5, 7, 300)
    plain = Settings().train.loop
    assert (settings.train.loop.warmup, settings.train.loop.checkpointing_steps) == (plain.warmup, plain.checkpointing_steps)
    with pytest.raises(ConfigError, match="known: default, paper, fast"):
        resolve("wild")


@budget(max_examples=40, deadline=None)
@given(data=damaged(to_toml(Settings()).encode()))
def test_a_damaged_file_is_settings_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("c") / "theirs.toml"
    path.write_bytes(data)
    refused(lambda: resolve(config=path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = " + "[" * 5000, r"theirs\.toml: not a TOML file .*; "),
        ("a = " + "9" * 5000, r"theirs\.toml: not a TOML file .*; "),
        ("preset = ['fast']", "unknown preset"),
        ("[generate]\nguidance = " + "9" * 400, "too large"),
        ("prior = " + "[" * 150 + "]" * 150, "prior: expected str"),
        ("x" * 5000 + " = 1", "unknown setting"),
    ],
)
def test_hostile_settings_get_one_short_line(tmp_path, text: str, says: str) -> None:
    (tmp_path / "theirs.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(config=tmp_path / "theirs.toml")
    assert len(str(caught.value)) < 1500


def test_a_folder_is_no_file_of_settings(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read .*; give a file"):
        read_toml(tmp_path)
