"""Every way a run ends, as one table, and the one exception tree whose leaves carry those exits.

A leaf of the tree says what the *reader* of the exit code should do: `retried` is what Kubernetes does with the code under
`restartPolicy: ExitCode` (128-255 retried, 1-127 final), so a code below 128 claims "the same again would fail the same way".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

FIRST_RETRIED_CODE = 128
"""Kubeflow's `restartPolicy: ExitCode` retries from here on."""


@dataclass(frozen=True)
class Exit:
    """One exit code of the container: contract 3.2 of the design, read by code, docs and tests."""

    code: int
    cause: str
    meaning: str

    @property
    def retried(self) -> bool:
        """Whether a cluster starts the container again."""
        return self.code >= FIRST_RETRIED_CODE


FINISHED = Exit(0, "finished", "finished, or the final checkpoint already exists")
USER_ERROR = Exit(1, "user_error", "an exception in the user's code, after the restarts are used up")
CONFIG_ERROR = Exit(2, "config_error", "bad configuration or command line")
DATA_ERROR = Exit(3, "data_error", "data or run directory unusable, or the final checkpoint cannot be written")
DIVERGED = Exit(4, "diverged", "training diverged (non-finite loss); the last good checkpoint is kept")
NO_PROGRESS = Exit(5, "no_progress", "restarts without a newer durable step")
PREEMPTED = Exit(143, "preemption", "preempted: state saved, or a bounded attempt made")
RANK_CRASHED = Exit(160, "crash", "a rank crashed; local restarts used up, but progress was made")
HANG = Exit(161, "hang", "a hang was detected and the gang was killed")
PEER_LOST = Exit(162, "peer_loss", "peers or rendezvous lost")

EXITS = (FINISHED, USER_ERROR, CONFIG_ERROR, DATA_ERROR, DIVERGED, NO_PROGRESS, PREEMPTED, RANK_CRASHED, HANG, PEER_LOST)
BY_CAUSE = {e.cause: e for e in EXITS}


class DdpError(Exception):
    """What is wrong, where, and what to do, in one sentence: it is printed without a traceback."""

    exit: ClassVar[Exit]


class ConfigError(DdpError):
    """The configuration or the command line must be changed by the user."""

    exit = CONFIG_ERROR


class DataError(DdpError):
    """The data, the run directory or a checkpoint volume cannot be used as it is."""

    exit = DATA_ERROR


class DivergedError(DdpError):
    """The loss is not finite: going on would poison the parameters and then the checkpoints."""

    exit = DIVERGED

    def __init__(self, message: str, window: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.window = window
        """The 0-based steps among which it happened, where that is known: (first, one after the last)."""


class PeerLostError(DdpError):
    """Another node, or the rendezvous store, did not answer within its bound."""

    exit = PEER_LOST
