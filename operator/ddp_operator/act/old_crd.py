"""A CRD that is older than this operator: Helm installs one, and never upgrades it. Then the server drops what it does not know.

What it dropped is remembered here, so that decisions do not begin anew at each look and write the same again and again. A successor would
not have this memory: so nothing is done for a run of which the store does not keep what was begun.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ddp_operator.act.status import INSTALL, pruned
from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe.api import Json

Key = tuple[str, str]
"""Namespace and name."""

LOG_SECONDS: Final = 3600.0
"""It is said this often, not once per run and look."""
RETRY_SECONDS: Final = 300.0
"""How soon a status that was pruned is written once more: the CRD may be a new one now."""
NEEDED_TO_ACT: Final = frozenset({"intent", "stoppedByUs"})
"""Parts of a status without which an action could not be finished, or would be repeated, by a successor."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pruned:
    uid: str
    stored: TrainingRunStatus
    """What the server kept."""
    wanted: TrainingRunStatus
    retry_at: float
    forbids_acts: bool


class OldCrd:
    """What the server has not kept, by run. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: dict[Key, _Pruned] = {}
        self._said_at = float("-inf")

    def remembered(self, key: Key, facts: RunFacts) -> RunFacts:
        """The facts with the status as it was meant, while the stored one is what the server made of that."""
        known = self._known.get(key)
        if known is None:
            return facts
        if known.uid == facts.uid and known.stored == facts.status:
            return replace(facts, status=known.wanted)
        del self._known[key]
        return facts

    def is_written_again(self, key: Key) -> bool:
        """Whether it is time to see if the server keeps it now."""
        known = self._known.get(key)
        return known is not None and self._monotonic() >= known.retry_at

    def forbids_acts(self, key: Key) -> bool:
        """Whether nothing may be done for this run."""
        known = self._known.get(key)
        return known is not None and known.forbids_acts

    def note_written(self, key: Key, wanted: TrainingRunStatus, body: Json, stored: RunFacts | None) -> bool:
        """Compare what was written with the object that the server gave back, and with how it is read; whether something is missing."""
        paths = pruned(wanted, body)
        if not paths or stored is None:
            self._known.pop(key, None)
            return False
        forbids = any(path.split(".")[0] in NEEDED_TO_ACT for path in paths)
        self._known[key] = _Pruned(stored.uid, stored.status, wanted, self._monotonic() + RETRY_SECONDS, forbids)
        consequence = " Nothing is done for such a run, since a successor could not finish it." if forbids else ""
        self.say(key, f"the CRD on this cluster does not keep {', '.join(paths)[:200]} of the status; {INSTALL}.{consequence}")
        return True

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._known.pop(key, None)

    def say(self, key: Key, sentence: str) -> None:
        """One error for all runs, each hour."""
        now = self._monotonic()
        if now - self._said_at >= LOG_SECONDS:
            self._said_at = now
            _log.error("Seen first at %s/%s: %s", *key, sentence, extra={"namespace": key[0], "run": key[1]})
