"""Where values come from: a file (JSON or YAML), the environment (`DDP__OPTIM__LR=0.1`), settings (`optim.lr=0.1`); later wins.

Nothing is validated here. The schema is asked only for how a text is to be read: see `values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from ddp_trainer.config.values import RepeatedKeyError, below, read_json, read_value, read_yaml
from ddp_trainer.errors import ConfigError

ENV_PREFIX = "DDP__"
"""`DDP__A__B=c` in the environment means `a.b=c`: the one way a pod's env may change a run."""

CROSS_CHECKS = {
    "distributed.nodes": ("world_size", "distributed.world_size", "distributed.max_nodes", "slurm.nodes"),
    "distributed.procs_per_node": ("world_size", "distributed.world_size", "slurm.ntasks_per_node"),
}
"""Keys that only repeat another: they hold within their own source, and a later source that changes the key on the left drops them."""

_Value = TypeVar("_Value")
Given = tuple[str, _Value, str]
"""`(key, value, what an error calls its place)`; the value is text until the schema has said how to read it."""


def read_file(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """The sections that a JSON or YAML file states, not validated yet.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; give an existing file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not text in UTF-8; save it as such, or give another file with --config") from None
    is_json = path.suffix == ".json"
    try:
        raw = read_json(text) if is_json else read_yaml(text, schema)
    except (ValueError, yaml.YAMLError, RepeatedKeyError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid {'JSON' if is_json else 'YAML'}: {reason}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not a mapping of sections; see configs/demo.json")
    return raw


def of_environment(environment: Mapping[str, str]) -> list[Given[str]]:
    """What each `DDP__A__B` gives."""
    names = sorted(name for name in environment if name.startswith(ENV_PREFIX))
    return [(name.removeprefix(ENV_PREFIX).lower().replace("__", "."), environment[name], name) for name in names]


def of_settings(settings: Iterable[str]) -> list[Given[str]]:
    """What each `key.path=value` gives.

    Raises:
        ConfigError: one is not of that form.
    """
    return [(key, text, f"--set {key}") for key, text in map(_split, settings)]


def typed(source: Iterable[Given[str]], schema: type[BaseModel]) -> list[Given[Any]]:
    """The texts of a source, read as `schema` says.

    Raises:
        ConfigError: a section among them gives a key twice.
    """
    return [(key, _typed(text, _kind(key, schema), origin), origin) for key, text, origin in source]


def lay_over(raw: dict[str, Any], source: Iterable[Given[Any]]) -> None:
    """Put what one source gives over what those before it gave.

    Raises:
        ConfigError: a key lies below a value.
    """
    stated: set[str] = set()
    for key, value, origin in source:
        _put(raw, key.split("."), value, origin)
        stated |= {key, *(f"{key}.{name}" for name in (value if isinstance(value, dict) else ()))}
    for key, repeated in CROSS_CHECKS.items():
        if key in stated:
            for check in {*repeated} - stated:
                section, _, name = check.rpartition(".")
                holder = raw.get(section) if section else raw
                if isinstance(holder, dict):
                    holder.pop(name, None)


def _split(setting: str) -> tuple[str, str]:
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {setting!r} is not of the form key.path=value, such as --set optim.lr=0.1")
    return key.strip(), text


def _typed(text: str, kind: Any, origin: str) -> Any:
    try:
        return read_value(text, kind)
    except RepeatedKeyError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _kind(key: str, schema: type[BaseModel]) -> Any:
    kind: Any = schema
    for part in key.split("."):
        kind = below(kind, part)
    return kind


def _put(raw: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    for part in path[:-1]:
        section = raw.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{origin}: {part!r} is a value, not a section, so nothing can be set below it")
        raw = section
    raw[path[-1]] = value
