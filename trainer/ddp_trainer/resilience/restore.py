"""Where a run goes on from: the newest state that any node still has in memory, or else the newest on disk that verifies.

Every rank says what its node holds (step and checksum), all choose alike, and only if somebody lacks the chosen state is it sent. The
disk is read only if it has something newer than all memories, which is when no node has survived.

A state that is not finite is passed over: it was kept after the step that spoilt it and before the one whose loss showed it, and every
rank that started from it would diverge.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ddp_trainer.checkpoint.finite import not_finite
from ddp_trainer.checkpoint.image import tensors_of
from ddp_trainer.checkpoint.manifest import BadCheckpointError
from ddp_trainer.checkpoint.snapshot import Snapshot, SnapshotMemory
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import QUARANTINE_NAME, Loaded
from ddp_trainer.distributed import Group
from ddp_trainer.errors import DataError
from ddp_trainer.telemetry.events import EVENTS_FILE, EventLog

_log = logging.getLogger(__name__)

NOTHING = -1
"""The step of a node that holds no state, and of an empty disk."""


@dataclass(frozen=True)
class Holding:
    """What a rank's node has in memory."""

    step: int
    checksum: int


@dataclass(frozen=True)
class Choice:
    """The newest state in memory: its step (`NOTHING` if there is none), a rank that has it, and whether each rank has it."""

    step: int
    source: int
    has: tuple[bool, ...]
    disagrees: bool = False
    """Nodes held different bits for this step; the majority's were taken."""


@dataclass(frozen=True)
class Origin:
    """A state that was found: where, what its manifest says, and how it gets to this rank."""

    source: Literal["memory", "disk", "nothing"]
    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    """This rank's own copy; empty if it is sent one."""
    sender: int
    is_sent: bool
    """Whether some rank lacks the state, so that all take part in sending it."""


def choose(held: Sequence[Holding]) -> Choice:
    """The newest step that a node holds; where nodes differ in its bits, what most of them hold, and then what the lowest rank does."""
    step = max(holding.step for holding in held)
    if step == NOTHING:
        return Choice(NOTHING, 0, (False,) * len(held))
    votes = Counter(holding.checksum for holding in held if holding.step == step)
    good = max(votes, key=lambda checksum: (votes[checksum], -held.index(Holding(step, checksum))))
    has = tuple(holding == Holding(step, good) for holding in held)
    return Choice(step, has.index(True), has, disagrees=len(votes) > 1)


def find(
    group: Group,
    memory: SnapshotMemory,
    newest_on_disk: int,
    load: Callable[[int], Loaded | None],
    await_loaded: Callable[[], None] = lambda: None,
) -> Origin:
    """Agree with all ranks on the state to go on from.

    Args:
        group: of this generation.
        memory: this node's.
        newest_on_disk: rank 0: the newest step that has a folder, verified or not; `NOTHING` on other ranks.
        load: rank 0: the newest checkpoint on disk above a step that verifies, is finite, and belongs to this run. Where no memory has
            anything it is asked though the disk seems empty: it refuses to begin anew where all checkpoints were set aside before.
        await_loaded: returns when rank 0 has loaded, however long that takes: a large state takes longer than a collective may.
    """
    own = _newest_finite(memory)
    checksum = memory.checksum(own) if own else 0
    rows = group.gather_numbers([own.step if own else NOTHING, checksum, newest_on_disk])
    choice = choose([Holding(step, checksum) for step, checksum, _ in rows])
    if choice.disagrees:
        _log.warning("nodes hold different bits for step %d in memory; taking what most of them hold", choice.step)
    if rows[0][2] > choice.step or choice.step == NOTHING:
        loaded = load(choice.step) if group.rank == 0 else None
        await_loaded()
        meta = group.share_json(_meta(loaded) if loaded else None)
        if meta is not None:
            return Origin("disk", meta, loaded.tensors if loaded else {}, 0, group.world_size > 1)
    if choice.step == NOTHING:
        return Origin("nothing", {"step": 0}, {}, 0, is_sent=group.world_size > 1)
    mine = choice.has[group.rank]
    meta = group.share_json(own.meta if own and mine else None, choice.source)
    return Origin("memory", meta, tensors_of(memory.files(own)) if own and mine else {}, choice.source, is_sent=not all(choice.has))


def _newest_finite(memory: SnapshotMemory) -> Snapshot | None:
    """What this node can offer. Others are dropped: as the newest they would be kept longest, and the good one be written over first."""
    for snapshot in memory.snapshots():
        name = not_finite(tensors_of(memory.files(snapshot)))
        if name is None:
            return snapshot
        _log.warning("the state of step %d in this node's memory is passed over: %s is not finite", snapshot.step, name)
        memory.forget(snapshot)  # by every rank of the node; all of them find the same
    return None


def put(origin: Origin, state: RunState, group: Group) -> None:
    """Give this rank the state, bit for bit the same on all ranks.

    Raises:
        DataError: the state does not fit the model.
    """
    try:
        if origin.is_sent:
            names = {n: list(t.shape) for n, t in origin.tensors.items() if n.startswith("optimizer.")}
            state.make_slots(group.share_json(names, origin.sender))
        if origin.tensors:
            state.restore(origin.tensors)
    except BadCheckpointError as error:
        raise DataError(
            f"the state of step {origin.meta['step']} does not fit this model: {error}; give another --run-dir, or the model it was of"
        ) from None
    if origin.is_sent:
        group.share(state.tensors().values(), origin.sender)


def tell_of_bad(run_dir: Path, step: int, reason: str) -> None:
    """A checkpoint has been set aside: said on the console and in the diary, whoever found it and whatever is taken in its place."""
    _log.warning("the checkpoint of step %d does not verify (%s) and was set aside", step, reason)
    EventLog(run_dir / EVENTS_FILE).append("quarantine", step=step, path=str(run_dir / "checkpoints" / QUARANTINE_NAME), message=reason)


def _meta(loaded: Loaded) -> dict[str, Any]:
    return {**loaded.extra, **loaded.manifest.model_dump(mode="json", exclude={"files", "libraries"})}
