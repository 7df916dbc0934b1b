"""What pydantic finds wrong, said in one sentence for each key: the key, the reason and the fix."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddp_trainer.errors import ConfigError

_Schema = TypeVar("_Schema", bound=BaseModel)
_shortened = reprlib.Repr()
"""What was given, in a sentence: neither a file of digits nor one of brackets."""
_shortened.maxstring = _shortened.maxlong = _shortened.maxother = 100


def validated(schema: type[_Schema], raw: Mapping[str, Any], origin: str) -> _Schema:
    """`raw` as a `schema`.

    Raises:
        ConfigError: naming `origin`, each key and what is wrong with it.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_sentence(schema, item) for item in error.errors())
        raise ConfigError(f"{origin}: {problems}") from None


def _sentence(schema: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(schema, [str(part) for part in item["loc"][:-1]])
        return f"unknown key {key!r}; known here: {', '.join(known)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]} (got {_shortened.repr(item['input'])})"


def _known_keys(section: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return sorted(section.model_fields)
