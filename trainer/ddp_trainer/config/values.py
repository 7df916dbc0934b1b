"""Values as people write them in a file, an option or an environment variable, read with the schema in sight.

The rules are YAML 1.2's, not PyYAML's 1.1: `on` and `off` are words, `12:30:00` is a text, `1e-3` is a number. And where the schema
takes text, digits are text as well (`run.name=2024`). A `kind` is a type annotation of the schema: a pydantic model or a field's type.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

_TAG = "tag:yaml.org,2002:"
_CORE = {_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
MOST_DIGITS = 300
"""Of a whole number: no float reaches further, and Python itself neither reads nor prints more than 4,300."""


class RepeatedKeyError(Exception):
    """One section gives a key twice: which of the values was meant cannot be known."""

    def __init__(self, key: object) -> None:
        super().__init__(f"the key {key!r} is given twice in one section; leave one out")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: no dates, no sets, no bytes, all of which JSON could not repeat."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as PyYAML declares it
    yaml_constructors = {tag: read for tag, read in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _CORE}  # noqa: RUF012

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As PyYAML does, but that `!!int abc` is a mistake in the document, and not one of Python's exceptions."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):
            problem = f"{node.value!r:.60} cannot be read as {node.tag.removeprefix(_TAG)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """A whole number by the rules of YAML 1.2."""
        return _whole(str(self.construct_scalar(node)))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As PyYAML does, but that a key given twice is refused."""
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise RepeatedKeyError(_most_frequent(key.value for key, _ in node.value))
        return found


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(_TAG + "int", _Loader.construct_whole)


def read_json(text: str) -> Any:
    """The document `text`.

    Raises:
        ValueError: it is not JSON, or has a number without end.
        RepeatedKeyError: a key stands twice in one object.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_section, parse_int=_whole)


def read_yaml(text: str, kind: Any) -> Any:
    """The document `text`, whose values are of `kind`.

    Raises:
        yaml.YAMLError: it is not YAML, or has a value that is not of the type it claims.
        RepeatedKeyError: a key stands twice in one mapping.
        RecursionError: it is nested too deeply.
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

    Raises:
        RepeatedKeyError: a key stands twice in one mapping.
    """
    try:
        value = _read(text, kind)
    except (yaml.YAMLError, RecursionError):
        return text
    except RepeatedKeyError:
        if takes_text(kind):
            return text
        raise
    is_quoted = isinstance(value, str) and text.strip()[0] in "'\""
    return text if takes_text(kind) and value is not None and not is_quoted else value


def _read(text: str, kind: Any) -> Any:
    try:
        return read_json(text)  # first, since YAML reads JSON's escapes beyond 16 bits as two broken halves
    except ValueError:
        return read_yaml(text, kind)


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits is too long")
    return int(text, 0 if text[:2] in {"0o", "0x"} else 10)


def _section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKeyError(_most_frequent(key for key, _ in pairs))
    return found


def _most_frequent(keys: Iterable[Hashable]) -> Hashable:
    return Counter(keys).most_common(1)[0][0]


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
