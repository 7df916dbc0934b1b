"""When to save: a pure decision that the training loop asks after every step."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_trainer.config import CheckpointSection


@dataclass(frozen=True)
class Due:
    """The policy of `checkpoint.every_steps` and `checkpoint.every_seconds`, as a question."""

    policy: CheckpointSection
    total_steps: int

    def __call__(self, step: int, last_step: int, seconds_since_last: float) -> bool:
        """Whether the state after `step` must be saved, the last save being of `last_step`. The last step always is."""
        if step <= last_step:
            return False
        if step >= self.total_steps:
            return True
        if self.policy.every_steps and step // self.policy.every_steps > last_step // self.policy.every_steps:
            return True
        return self.policy.every_seconds is not None and seconds_since_last >= self.policy.every_seconds
