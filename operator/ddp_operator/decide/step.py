"""What one family of acts gives back: the memory it leaves, what is to be done, and whether the others have to wait."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.decide.decision import Action, Event


@dataclass(frozen=True, slots=True)
class Step:
    """`memory` is the status so far: it is written before an action is carried out."""

    memory: TrainingRunStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    waits: bool = False
    """True: something of this family is under way, and no other family may act now."""
