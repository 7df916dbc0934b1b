"""The claims that a run uses: there or not, how big, how full; and whether its checkpoints still have room.

How full a volume is only node 0 can tell, and only for the checkpoint claim: the kubelet's numbers exist for some storage only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ddp_operator.api.trainingrun import ClaimStatus, Condition
from ddp_operator.api.words import StorageReason
from ddp_operator.decide.facts import ClaimFacts, RunFacts
from ddp_operator.decide.finding import Finding
from ddp_operator.decide.wording import REASON_CHARS, count, cut

MAX_CLAIMS = 8
MAX_USERS = 16
NAME_CHARS = 253

FILLING_PERCENT = 85
FULL_PERCENT = 95
CALM_PERCENTS = 3
"""A volume that was filling is so until it has fallen by this much below the bound: else it would cross it with each checkpoint."""
CALM_CHECKPOINTS = 1
"""The same for bounds by the size of checkpoints: each is written before an older one goes, so that the room swings by one."""
FILLING_CHECKPOINTS = 3
"""Room for less than so many more checkpoints is a warning; for less than one, the next cannot be written."""
OF_VOLUMES = frozenset({StorageReason.FULL, StorageReason.FILLING, StorageReason.ROOM})
"""Reasons of StorageHealthy that rest on node 0's word."""
USED_PARTS = 1000
"""Used bytes are told in thousandths of the volume: a log line more or less is not worth a write."""
OWN_VOLUME_RATIO = 1.1
"""A volume that is larger than this times its claim was not made for it alone: provisioners round up by less."""


class _Used(NamedTuple):
    """How full the file system of the checkpoints is; `volume_bytes`, its size, is None where an older operator wrote the rest."""

    bytes: int
    percent: int
    volume_bytes: int | None


def checkpoint_claim(facts: RunFacts) -> str:
    """The claim that holds the checkpoints: the one that the spec names, or the only one of the job; "" if that is not known."""
    named = facts.spec.checkpoint.claim_name
    if named:
        return named
    of_job = facts.job.claims if facts.job else ()
    return of_job[0] if len(of_job) == 1 else ""


def claim_statuses(facts: RunFacts) -> list[ClaimStatus]:
    """The claims of the run by name, at most `MAX_CLAIMS`, the checkpoints' first; with phase Missing where nobody has made one."""
    seen = {claim.name: claim for claim in facts.claims if claim.name}
    wanted = {checkpoint_claim(facts), *(facts.job.claims if facts.job else ())} - {""}
    if facts.pods_are_known:  # before everything was listed, absence says nothing
        seen |= {name: ClaimFacts(name=name, phase="Missing") for name in wanted - set(seen)}
    first = checkpoint_claim(facts)
    chosen = sorted(seen.values(), key=lambda claim: (claim.name != first, claim.name))[:MAX_CLAIMS]
    statuses = {status.name: status for status in (_status(claim, facts) for claim in chosen)}
    return list(statuses.values())


def _status(claim: ClaimFacts, facts: RunFacts) -> ClaimStatus:
    used = _used(facts) if claim.name == checkpoint_claim(facts) else None
    if used is None and facts.progress.document is None:
        used = _used_before(claim, facts)
    return ClaimStatus(
        name=cut(claim.name, NAME_CHARS) or "?",
        phase=cut("Terminating" if claim.deleted_at else claim.phase, REASON_CHARS),
        requested_bytes=count(claim.requested_bytes),
        capacity_bytes=count(claim.capacity_bytes),
        used_bytes=used.bytes if used else None,
        used_percent=used.percent if used else None,
        volume_bytes=used.volume_bytes if used else None,
        used_by=sorted({user for name in claim.used_by if (user := cut(name, NAME_CHARS))})[:MAX_USERS],
    )


def _used_before(claim: ClaimFacts, facts: RunFacts) -> _Used | None:
    for status in facts.status.claims:
        if status.name == claim.name and status.used_bytes is not None and status.used_percent is not None:
            return _Used(status.used_bytes, status.used_percent, status.volume_bytes)
    return None


def _used(facts: RunFacts) -> _Used | None:
    """Bytes, rounded up to thousandths of the volume, and percents, rounded up; None where node 0 said nothing that can be true."""
    document = facts.progress.document
    if document is None or not 0 <= document.volume_free_bytes <= document.volume_total_bytes or document.volume_total_bytes == 0:
        return None
    total, used = document.volume_total_bytes, document.volume_total_bytes - document.volume_free_bytes
    grain = max(total // USED_PARTS, 1)
    return _Used(count(min(-(-used // grain) * grain, total)), math.ceil(used * 100 / total), count(total))


def is_shared(volume_bytes: int | None, capacity_bytes: int) -> bool:
    """Whether a claim lies on a file system that is larger than itself: others may fill that too, and a larger claim gives no room."""
    return volume_bytes is not None and 0 < capacity_bytes * OWN_VOLUME_RATIO < volume_bytes


def lost_claims(claims: list[ClaimStatus]) -> list[ClaimStatus]:
    """Those that are gone, or have lost their volume."""
    return [claim for claim in claims if claim.phase in {"Lost", "Missing"}]


def volume_is_filling(facts: RunFacts, was_filling: bool = False) -> str:
    """A sentence about a checkpoint volume that has little room left; "" if it has enough, or nobody knows."""
    used, document = _used(facts), facts.progress.document
    if used is None or document is None:
        return ""
    name = checkpoint_claim(facts) or "of the checkpoints"
    if used.percent >= FILLING_PERCENT - (CALM_PERCENTS if was_filling else 0):
        return f"volume {name} is {used.percent} % full; {_remedy(facts, used)}"
    if 0 < document.volume_free_bytes < (FILLING_CHECKPOINTS + (CALM_CHECKPOINTS if was_filling else 0)) * document.checkpoint_bytes:
        return f"volume {name} has hardly room for {FILLING_CHECKPOINTS} more checkpoints; {_remedy(facts, used)}"
    return ""


def _remedy(facts: RunFacts, used: _Used) -> str:
    capacity_bytes = next((claim.capacity_bytes for claim in facts.claims if claim.name == checkpoint_claim(facts)), 0)
    if is_shared(used.volume_bytes, capacity_bytes):
        return "it is larger than its claim, so others may fill it too: make room on it, or prune checkpoints"
    return "enlarge the claim, or prune checkpoints"


def storage_health(facts: RunFacts, claims: list[ClaimStatus], before: Condition | None) -> Finding:
    """For the condition StorageHealthy: False with a lost or missing claim, or a full volume; True with reason VolumeFilling as a warning.

    Args:
        facts: of the run.
        claims: what `claim_statuses` made of them.
        before: the condition as stored: a volume that fills goes back to normal a little below the bound at which it was told.
    """
    for claim in lost_claims(claims):
        if claim.phase == "Lost":
            return Finding("False", StorageReason.CLAIM_LOST, f"claim {claim.name} has lost its volume; look at the volume")
        return Finding("False", StorageReason.CLAIM_MISSING, f"claim {claim.name} does not exist; make it, or correct the run's claimName")
    for claim in claims:
        if claim.phase == "Terminating":
            return Finding("False", StorageReason.CLAIM_TERMINATING, f"claim {claim.name} is being deleted as soon as no pod uses it")
    used, document = _used(facts), facts.progress.document
    if document is None and before and before.reason in OF_VOLUMES:
        # nobody has asked node 0 yet, or it is gone: what was said last stands, and is no news
        return Finding(before.status, StorageReason(before.reason), before.message)
    if used is None or document is None:
        return Finding("Unknown", StorageReason.NOT_KNOWN, "nobody says how full the checkpoint volume is")
    was = before.reason if before else ""
    was_full = was == StorageReason.FULL
    bound, checkpoints = FULL_PERCENT - (CALM_PERCENTS if was_full else 0), 1 + (CALM_CHECKPOINTS if was_full else 0)
    if used.percent >= bound or document.volume_free_bytes < checkpoints * document.checkpoint_bytes:
        name = checkpoint_claim(facts) or "of the checkpoints"
        return Finding(
            "False", StorageReason.FULL, f"volume {name} has no room, or hardly any, for the next checkpoint; {_remedy(facts, used)}"
        )
    filling = volume_is_filling(facts, was_filling=was in {StorageReason.FILLING, StorageReason.FULL})
    if filling:
        return Finding("True", StorageReason.FILLING, filling)
    return Finding("True", StorageReason.ROOM, "the checkpoint volume has room")
