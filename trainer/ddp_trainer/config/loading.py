"""A run's configuration from its sources: read, laid over each other, validated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddp_trainer.config.schema import RunConfig
from ddp_trainer.config.sources import lay_over, of_environment, of_settings, read_file, typed
from ddp_trainer.config.validation import validated


def load(path: str | Path | None, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file and lay environment and `key.path=value` settings over it.

    Raises:
        ConfigError: with the file, the key, the reason and the fix.
    """
    raw: dict[str, Any] = {} if path is None else read_file(Path(path), RunConfig)
    lay_over(raw, typed(of_environment(environment or {}), RunConfig))
    lay_over(raw, typed(of_settings(settings), RunConfig))
    return validate(raw, origin=str(path) if path else "the configuration")


def keys_said(settings: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> set[str]:
    """The keys for which the user gave a value besides the file's."""
    return {key for key, _, _ in (*of_settings(settings), *of_environment(environment or {}))}


def validate(raw: Mapping[str, Any], origin: str) -> RunConfig:
    """`raw` as a configuration.

    Raises:
        ConfigError: naming `origin`, each key and what is wrong with it.
    """
    return validated(RunConfig, raw, origin)
