"""Frozen dataclass <-> TOML; an unknown key is an error; the digest of a configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from anomalydiffusion.core.errors import ConfigError
from anomalydiffusion.core.names import shown

__all__ = ["digest", "dumps", "from_dict", "merge", "read_toml", "to_dict"]

T = TypeVar("T")
LONGEST = 200  # characters of an unknown key in a message


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain values; None is left out, as TOML has no word for it."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            out[item.name] = to_dict(value)
        elif value is not None:
            out[item.name] = list(value) if isinstance(value, tuple) else value
    return out


def _value(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {shown(value)}")
        return from_dict(typing.cast(type, kind), value, where)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _either([k for k in typing.get_args(kind) if k is not type(None)], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {shown(value)}")
        inner = typing.get_args(kind)
        each = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        if len(each) != len(value):
            raise ConfigError(f"{where}: expected {len(each)} values, got {len(value)}")
        return tuple(_value(k, v, where) for k, v in zip(each, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {shown(value)}")
        inner = typing.get_args(kind)[1]
        return {str(key): _value(inner, each, f"{where}.{key}") for key, each in value.items()}
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, typing.get_args(kind)))}, got {shown(value)}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {shown(value)}")
    return value


def _either(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The value as the first of `kinds` that it fits; what is wrong with it is said as of the first."""
    wrong: list[ConfigError] = []
    for kind in kinds:
        try:
            return _value(kind, value, where)
        except ConfigError as error:
            wrong.append(error)
    raise wrong[0]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says, table by table; None in `over` says nothing."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = out.get(key)
            out[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif value is not None:
            out[key] = value
    return out


def _completed(item: dataclasses.Field[Any], value: Any) -> Any:
    """A table that names only some settings keeps the rest of its owner's default, not of its own class's."""
    default = None if item.default_factory is dataclasses.MISSING else item.default_factory()
    return merge(to_dict(default), value) if isinstance(value, dict) and dataclasses.is_dataclass(default) else value


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build `cls` from plain values. Raises `ConfigError` on a key that it does not have and on a value that it refuses.

    `where`: what the values are called, for the message; so are the tables in them.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass here
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown setting '{prefix}{key[:LONGEST]}'; known here: {', '.join(sorted(known))}")
    try:
        whole = {key: _completed(known[key], value) for key, value in values.items()}
        built = {key: _value(hints[key], value, prefix + key) for key, value in whole.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error
    try:
        return cls(**built)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error
    except ConfigError as error:
        if not where:
            raise
        raise ConfigError(f"{where}: {error}") from error


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_scalar(v) for v in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # TOML, unlike JSON, has inf, -inf and nan
    return json.dumps(value, ensure_ascii=False)


def dumps(values: dict[str, Any], prefix: str = "") -> str:
    """Nested plain values as TOML, tables after the values of their parent."""
    lines = [f"{key} = {_scalar(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[{prefix}{key}]", dumps(value, f"{prefix}{key}.")]
    return "\n".join(lines)


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file into nested plain values."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    except (ValueError, RecursionError) as error:  # of which TOML's own error is one, and numbers of thousands of digits another
        raise ConfigError(f"{path}: not a TOML file ({error}); mend the line or leave the file out") from error


def digest(config: Any) -> str:
    """SHA-256 of a configuration's values, 16 hexadecimal digits: equal settings, equal digest."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
