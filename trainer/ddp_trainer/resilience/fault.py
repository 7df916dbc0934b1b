"""A fault: what went wrong first, on which rank and node; and the words for it that every agent's report shares."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ddp_trainer.errors import BY_CAUSE, PEER_LOST, PREEMPTED, RANK_CRASHED, Exit

ECHO = "echo"
"""The cause of a rank that only noticed somebody else's end: never a root cause."""
FAILED_COLLECTIVE = "failed_collective"
"""Ranks that lost each other though nobody died: the network between them, or a collective that took longer than its bound."""
REJOIN = "rejoin"
"""Not a fault: a node that came back to an elastic run is let in."""
LEFT_EXIT = PREEMPTED.code
"""A rank's exit when it was asked to leave, and kept its state before."""
MESSAGE_BYTES = 4096
"""The kubelet keeps this much of a termination message."""
_TEXT_CHARS = 1500


@dataclass(frozen=True)
class Fault:
    """One incident's cause (a key of `errors.BY_CAUSE`, or `ECHO`). `rank` is None where a whole node is meant."""

    cause: str
    node: int
    rank: int | None
    exit: int
    step: int
    message: str
    window: tuple[int, int] | None = None
    """Of a divergence: the 0-based steps that would have to be passed over, (first, one after the last)."""
    still_seconds: float = 0.0
    """Of a hang: how long nothing had moved when it was noticed."""
    struck_at: float | None = None
    """Of a death: when it was, by its node's clock."""

    @property
    def leaves_with(self) -> Exit:
        """The container's exit if nobody restarts anything."""
        return PEER_LOST if self.cause == FAILED_COLLECTIVE else BY_CAUSE.get(self.cause, RANK_CRASHED)

    @property
    def sentence(self) -> str:
        """For people: who, what, where."""
        return f"{self.who}: {self.message}"

    @property
    def who(self) -> str:
        """Where it happened."""
        return f"node {self.node}" if self.rank is None else f"rank {self.rank} (node {self.node})"

    def to_json(self) -> str:
        """One line that fits into `MESSAGE_BYTES`; only the end of a long message is lost."""
        return one_line(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        window = raw.pop("window", None)
        return cls(**raw, window=tuple(window) if window else None)


@dataclass(frozen=True)
class Ending:
    """How an agent leaves: with which exit, and the fault behind it, if any."""

    exit: Exit
    fault: Fault | None = None


def of_death(code: int, note: Path, node: int, rank: int, step: int) -> Fault:
    """Why a rank ended before its training did: from the note it left, or from its signal.

    Args:
        code: exit code, or minus the signal.
        note: where the rank writes what it raised (`leave_note`).
        node: the rank's node.
        rank: its global rank.
        step: the last step it was seen to have done.
    """
    if code == 0:
        return Fault("user_error", node, rank, 1, step, "its process ended with 0 before training did; look for an exit() in the task")
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        hint = "; likely out of memory, or killed by hand" if name == "SIGKILL" else ""
        return Fault("crash", node, rank, 128 - code, step, f"killed by {name}{hint}")
    try:
        raw = json.loads(note.read_text(encoding="utf-8"))
        window = raw.get("window")
        return Fault(str(raw["cause"]), node, rank, code, step, str(raw["message"]), (int(window[0]), int(window[1])) if window else None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Fault("user_error", node, rank, code, step, f"ended with exit code {code} and left no message; see its log")


def one_line(words: Mapping[str, Any]) -> str:
    """Words with a `message` among them as one line of JSON, shorter than `MESSAGE_BYTES` and still JSON: the message gives way."""
    line = json.dumps(words)
    if len(line) < MESSAGE_BYTES:
        return line
    message, low, high = str(words["message"]), 0, len(str(words["message"]))
    while low < high:  # a character takes 1 to 12 bytes in JSON, so the longest beginning that fits is searched
        middle = (low + high + 1) // 2
        if len(json.dumps({**words, "message": message[:middle]})) < MESSAGE_BYTES:
            low = middle
        else:
            high = middle - 1
    return json.dumps({**words, "message": message[:low]})


def leave_note(note: Path, cause: str, message: str, window: tuple[int, int] | None = None) -> None:
    """A rank's last words, for its agent; `window` as in `Fault`."""
    note.write_text(json.dumps({"cause": cause, "message": message[:_TEXT_CHARS], "window": window}), encoding="utf-8")
