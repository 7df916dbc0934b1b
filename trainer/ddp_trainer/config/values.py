"""Values as people write them in a file, an option or an environment variable, read with the schema in sight.

The rules are YAML 1.2's, not PyYAML's 1.1: `on` and `off` are words, `12:30:00` is a text, `1e-3` is a number. And where the schema
takes text, digits are text as well (`run.name=2024`). A `kind` is a type annotation of the schema: a pydantic model or a field's type.
"""

from __future__ import annotations

import json
import re
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as PyYAML declares it


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(_TAG + "int", lambda _, node: int(node.value, 0 if node.value[:2] in {"0o", "0x"} else 10))


def read_yaml(text: str, kind: Any) -> Any:
    """The document `text`, whose values are of `kind`.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, kind)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_value(text: str, kind: Any) -> Any:
    """`8`, `0.1`, `true`, `null`, `[1, 2]` and `"in quotes"` as JSON or else YAML reads them; what neither can read is the text itself.

    Where `kind` takes text, only `null` and quotes mean anything: a path or a name may look as it likes.
    """
    try:
        value = json.loads(text)  # first, since YAML reads JSON's escapes beyond 16 bits as two broken halves
    except json.JSONDecodeError:
        try:
            value = read_yaml(text, kind)
        except yaml.YAMLError:
            return text
    is_quoted = isinstance(value, str) and text.strip()[0] in "'\""
    return text if takes_text(kind) and value is not None and not is_quoted else value


def below(kind: Any, key: str) -> Any:
    """The kind of `key` in a section of `kind`; None where the schema does not say."""
    field = kind.model_fields.get(key) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return field.annotation if field else None


def takes_text(kind: Any) -> bool:
    """Whether values of this kind are words: `str` or one of a few, or nothing."""
    parts = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return any(part is str or get_origin(part) is Literal for part in parts)


def _keep_text(node: yaml.Node, kind: Any) -> None:
    """Have scalars read as text, whatever they look like, where the schema takes text."""
    if isinstance(node, yaml.ScalarNode):
        if takes_text(kind) and node.tag != _TAG + "null":
            node.tag = _TAG + "str"
    elif isinstance(node, yaml.MappingNode) and kind is not None:
        for key, value in node.value:
            _keep_text(value, below(kind, str(key.value)))
