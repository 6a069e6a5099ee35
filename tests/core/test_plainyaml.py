"""YAML from others is plain values or one `ValueError`, and never more than it looks."""

import pytest
import yaml

from anomalydiffusion.core.plainyaml import read_yaml_text


def test_plain_values_are_read() -> None:
    whole = {"names": {0: "crack", 1: "hole"}, "train": ["a", "b"], "scale": 0.5, "none": None}
    assert read_yaml_text(yaml.safe_dump(whole)) == whole
    assert read_yaml_text("a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}


def test_merges_that_unfold_without_end_are_refused_at_once() -> None:
    bomb = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
    with pytest.raises(ValueError, match="merge keys"):
        read_yaml_text(bomb)


@pytest.mark.parametrize(
    "text",
    ["a: !!bool maybe", "a: !!int ''", "a: !!timestamp x", "a: " + "1:" * 300 + "1.5", "[" * 900, "a: " + "9" * 5000, "a: *b", "a: [",
     "2001-99-99", "? [a]\n: b", "!!python/object/apply:os.system ['true']", "a: \x07"],
)  # fmt: skip
def test_whatever_is_wrong_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_yaml_text(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "a: [" + "[" * 101 + "]" * 102])
def test_deep_brackets_are_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="brackets in brackets"):
        read_yaml_text(text)
    assert read_yaml_text("[" * 99 + "]" * 99)
