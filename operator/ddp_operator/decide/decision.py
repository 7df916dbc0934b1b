"""What comes out of a decision: the status to be, events, actions, and when to look again."""

from __future__ import annotations

from dataclasses import dataclass, field

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.api.words import EventReason

FIELD_MANAGER = "ddp-operator"
"""Under this name we write to jobs: `managedFields` then tells our pause from a user's."""


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event on the TrainingRun. `is_warning` chooses its type."""

    reason: EventReason
    message: str
    is_warning: bool = False
    fact: str = ""
    """What of the status it tells: of the same fact no second event is posted, not by another leader either. "": of none."""


@dataclass(frozen=True, slots=True)
class SuspendJob:
    """Set runPolicy.suspend, if the job still has this uid and generation: a 409 or a changed object means to look again."""

    job: str
    uid: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class ResumeJob:
    """Take back a suspension of ours, under the same conditions."""

    job: str
    uid: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete one pod, if it still has this uid. `grace_seconds` 0 frees its name although its node may still run it."""

    pod: str
    uid: str
    grace_seconds: int | None
    why: str


Action = SuspendJob | ResumeJob | DeletePod


@dataclass(frozen=True, slots=True)
class Decision:
    """The status is written first (if it differs from the stored one), then the actions are carried out, then the events posted.

    A failed status write, a conflict included, means that nothing of it is carried out.
    """

    status: TrainingRunStatus
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    look_again_seconds: float = field(default=30.0)
    """When time alone may change the decision."""
