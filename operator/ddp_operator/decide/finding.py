"""What was found out about one aspect of a run: the three words of a condition, without its history."""

from __future__ import annotations

from typing import Literal, NamedTuple

Answer = Literal["True", "False", "Unknown"]


class Finding(NamedTuple):
    """`reason` is one CamelCase word, `message` one sentence without growing ages."""

    status: Answer
    reason: str
    message: str
