"""Several TrainingRuns may name one job: only one of them acts on it, the others tell what is true and do nothing.

Two that act would each free the same pods, count the same losses, and undo each other's suspension.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from ddp_operator.decide.facts import RunFacts

Key = tuple[str, str]
"""Namespace and name."""

ONLY_REPORT: Final = dict.fromkeys(("on_hung", "on_node_lost", "on_deadline", "on_budget", "on_finished"), "Report")

_log = logging.getLogger(__name__)


class Bystanders:
    """The runs that only look, so that each is said once."""

    def __init__(self) -> None:
        self._said: set[Key] = set()

    def note(self, key: Key, job: str, *, is_one: bool) -> bool:
        """Remember whether this run is one; returns `is_one`."""
        if not is_one:
            self._said.discard(key)
        elif key not in self._said:
            self._said.add(key)
            sentence = "Another TrainingRun acts on PyTorchJob %s; %s only reports. Delete the one that is not needed."
            _log.warning(sentence, job, key[1], extra={"namespace": key[0], "run": key[1]})
        return is_one

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._said.discard(key)


def reporting(facts: RunFacts) -> RunFacts:
    """The facts with a policy that only reports: else the status would tell of acts that nobody carries out, and count them."""
    policy = facts.spec.policy.model_copy(update=ONLY_REPORT)
    return replace(facts, spec=facts.spec.model_copy(update={"policy": policy}))
