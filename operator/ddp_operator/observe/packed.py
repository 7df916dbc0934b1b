"""A TrainingRun at rest: its status as compressed JSON.

A parsed status takes 20-70 kB of memory, packed it takes one. A thousand runs are looked at one after the other, never all at once, so only
the one in hand is parsed (about 0.1 ms).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Final

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.decide.facts import RunFacts
from ddp_operator.observe import news

_FAST: Final = 1
"""zlib's level: higher ones save a tenth more, in twice the time."""
_NO_STATUS: Final = TrainingRunStatus()


@dataclass(frozen=True, slots=True)
class PackedRun:
    """The facts of a run's own object."""

    bare: RunFacts
    """All but the status."""
    status: bytes
    awaits_news: bool
    """See `news.is_awaited`."""

    @classmethod
    def of(cls, facts: RunFacts) -> PackedRun:
        """Pack; equal facts give equal packs."""
        status = facts.status.model_dump_json(exclude_defaults=True).encode()
        return cls(replace(facts, status=_NO_STATUS), zlib.compress(status, _FAST), news.is_awaited(facts.status))

    def unpacked(self) -> RunFacts:
        """The facts, with a status of their own."""
        return replace(self.bare, status=TrainingRunStatus.model_validate_json(zlib.decompress(self.status)))

    @property
    def essence(self) -> tuple[RunFacts, bytes]:
        """What has to change to be news."""
        return replace(self.bare, resource_version=""), self.status

    @property
    def job(self) -> tuple[str, str]:
        """Namespace and name of the job that it names."""
        return self.bare.namespace, self.bare.spec.job_ref.name

    @property
    def claim(self) -> str:
        """The checkpoint claim that its spec names; "" if none."""
        return self.bare.spec.checkpoint.claim_name or ""
