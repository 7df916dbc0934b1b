"""The claims that a run uses: there or not, how big, how full; and whether its checkpoints still have room.

How full a volume is only node 0 can tell, and only for the checkpoint claim: the kubelet's numbers exist for some storage only.
"""

from __future__ import annotations

import math

from ddp_operator.api.trainingrun import ClaimStatus, Condition
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
OF_VOLUMES = frozenset({"VolumeFull", "VolumeFilling", "EnoughRoom"})
"""Reasons of StorageHealthy that rest on node 0's word."""
USED_PARTS = 1000
"""Used bytes are told in thousandths of the volume: a log line more or less is not worth a write."""


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
        used_bytes=used[0] if used else None,
        used_percent=used[1] if used else None,
        used_by=sorted({user for name in claim.used_by if (user := cut(name, NAME_CHARS))})[:MAX_USERS],
    )


def _used_before(claim: ClaimFacts, facts: RunFacts) -> tuple[int, int] | None:
    for status in facts.status.claims:
        if status.name == claim.name and status.used_bytes is not None and status.used_percent is not None:
            return status.used_bytes, status.used_percent
    return None


def _used(facts: RunFacts) -> tuple[int, int] | None:
    """Bytes, rounded up to thousandths of the volume, and percents, rounded up; None where node 0 said nothing that can be true."""
    document = facts.progress.document
    if document is None or not 0 <= document.volume_free_bytes <= document.volume_total_bytes or document.volume_total_bytes == 0:
        return None
    total, used = document.volume_total_bytes, document.volume_total_bytes - document.volume_free_bytes
    grain = max(total // USED_PARTS, 1)
    return count(min(-(-used // grain) * grain, total)), math.ceil(used * 100 / total)


def lost_claims(claims: list[ClaimStatus]) -> list[ClaimStatus]:
    """Those that are gone, or have lost their volume."""
    return [claim for claim in claims if claim.phase in {"Lost", "Missing"}]


def volume_is_filling(facts: RunFacts, was_filling: bool = False) -> str:
    """A sentence about a checkpoint volume that has little room left; "" if it has enough, or nobody knows."""
    used, document = _used(facts), facts.progress.document
    if used is None or document is None:
        return ""
    name = checkpoint_claim(facts) or "of the checkpoints"
    if used[1] >= FILLING_PERCENT - (CALM_PERCENTS if was_filling else 0):
        return f"volume {name} is {used[1]} % full; enlarge the claim, or prune checkpoints"
    if 0 < document.volume_free_bytes < (FILLING_CHECKPOINTS + (CALM_CHECKPOINTS if was_filling else 0)) * document.checkpoint_bytes:
        return f"volume {name} has hardly room for {FILLING_CHECKPOINTS} more checkpoints; enlarge the claim, or keep fewer"
    return ""


def storage_health(facts: RunFacts, claims: list[ClaimStatus], before: Condition | None) -> Finding:
    """For the condition StorageHealthy: False with a lost or missing claim, or a full volume; True with reason VolumeFilling as a warning.

    Args:
        facts: of the run.
        claims: what `claim_statuses` made of them.
        before: the condition as stored: a volume that fills goes back to normal a little below the bound at which it was told.
    """
    for claim in lost_claims(claims):
        what = "has lost its volume" if claim.phase == "Lost" else "does not exist"
        return Finding("False", f"Claim{claim.phase}", f"claim {claim.name} {what}; look at the volume, or make the claim")
    for claim in claims:
        if claim.phase == "Terminating":
            return Finding("False", "ClaimTerminating", f"claim {claim.name} is being deleted as soon as no pod uses it")
    used, document = _used(facts), facts.progress.document
    if document is None and before and before.reason in OF_VOLUMES:
        # nobody has asked node 0 yet, or it is gone: what was said last stands, and is no news
        return Finding(before.status, before.reason, before.message)
    if used is None or document is None:
        return Finding("Unknown", "NotKnown", "nobody says how full the checkpoint volume is")
    was = before.reason if before else ""
    was_full = was == "VolumeFull"
    bound, checkpoints = FULL_PERCENT - (CALM_PERCENTS if was_full else 0), 1 + (CALM_CHECKPOINTS if was_full else 0)
    if used[1] >= bound or document.volume_free_bytes < checkpoints * document.checkpoint_bytes:
        return Finding("False", "VolumeFull", _full(facts))
    filling = volume_is_filling(facts, was_filling=was in {"VolumeFilling", "VolumeFull"})
    return Finding("True", "VolumeFilling", filling) if filling else Finding("True", "EnoughRoom", "the checkpoint volume has room")


def _full(facts: RunFacts) -> str:
    name = checkpoint_claim(facts) or "of the checkpoints"
    return f"volume {name} has no room, or hardly any, for the next checkpoint; enlarge the claim, or prune checkpoints"
