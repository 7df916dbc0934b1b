"""What was found out about one aspect of a run: the three words of a condition, without its history."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ddp_operator.api.words import ConditionReason

Answer = Literal["True", "False", "Unknown"]


class Finding(NamedTuple):
    """`reason` is a word of the closed lists, `message` one sentence without growing ages."""

    status: Answer
    reason: ConditionReason
    message: str
