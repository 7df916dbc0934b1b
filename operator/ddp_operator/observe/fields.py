"""Fields of JSON that nobody vouches for: each reader takes any value and gives one of the promised type and size, or the default.

Texts are cut and lose their control characters, terminal escapes and direction marks included, so that they may stand in a status, a log
or a page.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from ipaddress import ip_address
from sys import intern
from typing import Any

MAX_COUNT = 2**53
"""What the API's `Count` holds, and what survives JSON readers that know only doubles."""
WORD_CHARACTERS = 64
TEXT_CHARACTERS = 1024
MAX_ITEMS = 256
"""Of a list: containers, volumes, conditions. Real objects have a few."""
_UNIX_YEAR_9999 = 253_402_300_799.0

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"\+?([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE]([+-]?[0-9]{1,2})|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?")
_SUFFIX: dict[str, Decimal] = {
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
    **{letter: Decimal(1000**power) for power, letter in enumerate("kMGTPE", start=1)},
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
}


def at(value: Any, *path: str) -> Any:
    """What stands at `path`; None where a step of it is missing or no object."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list, at most `MAX_ITEMS`."""
    return [item for item in value[:MAX_ITEMS] if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any, limit: int = TEXT_CHARACTERS) -> str:
    """One line, at most `limit` characters; "" for what is no text. Lone surrogates, which no UTF-8 writer takes, become "?"."""
    if not isinstance(value, str):
        return ""
    if len(value) <= limit and value.isascii() and value.isprintable():  # nearly all are
        return value
    return _UNPRINTABLE.sub(" ", value[:limit]).encode(errors="replace").decode()


def word(value: Any, default: str = "") -> str:
    """A short text that many objects share: kept once."""
    return intern(text(value, WORD_CHARACTERS) or default)


def name(value: Any) -> str:
    """The name of a Kubernetes object, fit to stand in a path; "" for everything else."""
    return intern(value) if isinstance(value, str) and _NAME.fullmatch(value) else ""


def number(value: Any, default: int = 0, *, least: int = 0, most: int = MAX_COUNT) -> int:
    """A whole number of that range; a bool is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else default


def version(value: Any) -> int:
    """A resourceVersion as a number; 0 if it is none, then nothing can be said about its age."""
    return int(value) if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit() else 0  # noqa: PLR2004  2**64 has 20 digits


def instant(value: Any) -> float:
    """An RFC 3339 time as seconds since the epoch; 0 if it is none."""
    if not isinstance(value, str) or len(value) > 40:  # noqa: PLR2004  with nanoseconds and a zone it has 35
        return 0.0
    try:
        moment = datetime.fromisoformat(value)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), _UNIX_YEAR_9999)


def quantity(value: Any) -> int:
    """A resource quantity ("10Gi", "1e3", 5), rounded up; 0 if it is none or negative."""
    if type(value) is int:
        return min(max(0, value), MAX_COUNT)
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return 0
    digits, exponent, suffix = found.groups()
    amount = Decimal(digits) * (Decimal(10) ** int(exponent) if exponent else _SUFFIX.get(suffix, Decimal(1)))
    return int(min(amount, Decimal(MAX_COUNT)).to_integral_value(ROUND_CEILING))


def address(value: Any) -> str:
    """An IP address that a pod may have; "" for names, and for addresses that lead to the cloud's metadata server or to everybody."""
    try:
        ip = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    return "" if ip is None or ip.is_link_local or ip.is_multicast or ip.is_unspecified or getattr(ip, "scope_id", None) else str(ip)


def cleaned(value: Any, depth: int = 8) -> Any:
    """JSON with all its texts made printable; what lies deeper than `depth` is None."""
    if isinstance(value, str):
        return text(value, max(len(value), 1))
    if isinstance(value, dict):
        return {text(key, TEXT_CHARACTERS): cleaned(inner, depth - 1) for key, inner in value.items()} if depth else None
    if isinstance(value, list):
        return [cleaned(inner, depth - 1) for inner in value] if depth else None
    return value
