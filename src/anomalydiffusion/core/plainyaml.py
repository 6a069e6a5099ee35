"""YAML of plain kinds: nothing is built, nothing unfolds without end, and every fault is a `ValueError`."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["read_yaml_text"]


DEEPEST = 100  # brackets in brackets; PyYAML's time grows with their square


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without merge keys (`<<`), by which a few lines unfold to more than any memory holds, or deep brackets."""

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"more than {DEEPEST} brackets in brackets", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read; write the lines out", node.start_mark)


def read_yaml_text(text: str) -> Any:
    """What a YAML text holds. Raises `ValueError` with one line on anything else."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML lets through whatever a wrong tag's value makes of it: KeyError, IndexError, OverflowError
        raise ValueError(f"{type(error).__name__}: {error}") from error
