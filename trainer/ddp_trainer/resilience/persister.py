"""The background writer: a process of node 0's agent that makes snapshots in memory durable.

It shares no process group and no GIL with training, and it outlives the ranks: what they asked for last is written even if they are
dead. At most one write is in flight; the newest request waits in memory and replaces an older one. If it is killed itself, the agent
starts another, which finds the request still standing.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddp_trainer.checkpoint.finite import not_finite
from ddp_trainer.checkpoint.image import tensors_of
from ddp_trainer.checkpoint.loading import STATE_NAME
from ddp_trainer.checkpoint.manifest import BadCheckpointError, FileEntry, Manifest, verify
from ddp_trainer.checkpoint.mirror import Mirror
from ddp_trainer.checkpoint.snapshot import Snapshot, SnapshotMemory
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import DataError, DivergedError, PeerLostError
from ddp_trainer.resilience.restore import tell_of_bad
from ddp_trainer.telemetry.events import EVENTS_FILE, EventLog
from ddp_trainer.telemetry.facts import FactsPage

_log = logging.getLogger(__name__)

END_SIGNAL = signal.SIGUSR2
"""Asks the writer to end. Not SIGTERM: where a whole tree is sent that, the newest snapshot is still to be written."""
POLL_SECONDS = 0.05
"""How often it looks for a request: far below the shortest interval, and a thousandth of a core."""
RETRY_SECONDS = 2.0
"""Pause after a failed write, unless something newer is asked for."""
MIRROR_SECONDS = 20.0
"""How long the end of a run may wait for the last copy to the second home."""
LASTING = frozenset({DivergedError.exit.cause, PeerLostError.exit.cause})
"""Failures that no later try mends: the state is not finite, or the directory is another start's by now. A disk may be freed."""
STATE = ("history", "gradient_order")
"""What of a snapshot's description goes to `state.json`, not to the manifest."""
FENCE_SECONDS = 2.0
"""How long the run directory may know of an attempt that this node's agent has only just drawn."""


class _TornError(Exception):
    """The snapshot was overwritten while it was read."""


class _Report:
    """What the writer tells ranks and agent, in its slot of the facts page; a successor goes on with it."""

    def __init__(self, page: FactsPage, slot: int) -> None:
        self._page, self._slot = page, slot
        before = page.read(slot) or {}
        self.words: dict[str, Any] = {"number": 0, "count": 0, "stall_seconds": 0.0, "persist_seconds": 0.0, **before}

    def say(self, **words: Any) -> None:
        self.words.update(words)
        self._page.write(self._slot, self.words)


def main(memory: int, config: dict[str, Any], page: str, slot: int) -> int:
    """Be the writer: the target of the agent's fork; ends with its parent."""
    ended = threading.Event()
    signal.signal(END_SIGNAL, lambda *_: ended.set())  # first: until then it would die of it, and a predecessor's last copy not be made
    logging.basicConfig(level=logging.INFO, format="%(asctime)s writer %(message)s", force=True)
    torch.set_num_threads(1)  # what little it computes must not stand in training's way
    resolved = RunConfig.model_validate(config)
    report = _Report(FactsPage.open(Path(page)), slot)
    events = EventLog(resolved.run_dir / EVENTS_FILE)
    snapshots = SnapshotMemory(memory)
    snapshots.hold(None)  # a predecessor may have died with one
    policy = resolved.checkpoint
    store = CheckpointStore(
        resolved.run_dir / "checkpoints",
        keep=policy.keep,
        keep_every=policy.keep_every,
        keep_best=policy.keep_best,
        bytes_per_second=policy.write_megabytes_per_second * 1e6 if policy.write_megabytes_per_second else None,
        fence=lambda: _assert_own(resolved.run_dir, snapshots),
        tell=partial(tell_of_bad, resolved.run_dir),
    )
    _recognise(store, snapshots, report)
    mirror = Mirror(policy.mirror_url, policy.mirror_every) if policy.mirror_url else None
    left_out = (report.words.get("checkpoint") or {}).get("step")  # the newest, if it is not known to be copied: a predecessor's, at first
    for snapshot, number in _requests(snapshots, report, ended):
        try:
            manifest = _persist(store, snapshots, snapshot, report, events)
        except _TornError:
            continue
        except (DataError, DivergedError, PeerLostError) as error:
            failed = report.words.get("failed") or {}
            times = failed.get("times", 0) + 1 if failed.get("number") == number else 1
            _log.warning("%s; training goes on", error)
            report.say(failed={"number": number, "step": snapshot.step, "cause": error.exit.cause, "message": str(error), "times": times})
            if times == 1:
                events.append("note", message=f"the checkpoint of step {snapshot.step} could not be written: {error}")
            continue
        finally:
            snapshots.hold(None)
        if mirror:
            left_out = None if mirror.offer(store.folder(manifest.step)) else manifest.step
    if mirror and left_out is not None:  # the run's last one, or this node's: nobody may come who has a newer one
        mirror.offer(store.folder(left_out), is_last=True)
    if mirror and not mirror.drain(MIRROR_SECONDS):
        _log.warning("the last copy to %s did not end within %.0f s", policy.mirror_url, MIRROR_SECONDS)
    return 0


def _recognise(store: CheckpointStore, snapshots: SnapshotMemory, report: _Report) -> None:
    """A predecessor, or its agent's, may have served the request that still stands: then it is not served again."""
    wanted = snapshots.wanted()
    if wanted is None or wanted.number <= report.words["number"]:
        return
    state = _small_state(wanted.meta)
    try:
        if wanted.step not in store.steps():
            return
        manifest = verify(store.folder(wanted.step))
        if state != (store.folder(wanted.step) / STATE_NAME).read_bytes():
            return  # of the same step, from before its evaluation
    except (BadCheckpointError, DataError, OSError):
        return  # it is written anew, which sets the bad one aside
    before = report.words.get("checkpoint") or {}  # what a write takes is not known of this one
    numbers = {"stall_seconds": 0.0, "persist_seconds": before.get("persist_seconds", 0.0), "bytes": manifest.total_bytes, "verified": True}
    report.say(number=wanted.number, checkpoint={"step": manifest.step, "saved_at": manifest.saved_at, **numbers})


def _requests(snapshots: SnapshotMemory, report: _Report, ended: threading.Event) -> Iterator[tuple[Snapshot, int]]:
    """Each snapshot that shall become durable, held; the same again after a failure. Until the agent says that it is over."""
    while not ended.is_set():
        wanted = snapshots.wanted_number()
        if wanted <= report.words["number"]:
            time.sleep(POLL_SECONDS)
            continue
        if (report.words.get("failed") or {}).get("number") == wanted:
            _pause(snapshots, wanted, ended)
        snapshot = snapshots.wanted()
        if snapshot is None:
            time.sleep(POLL_SECONDS)
            continue
        snapshots.hold(snapshot)
        if snapshots.is_intact(snapshot):
            yield snapshot, wanted
        else:
            snapshots.hold(None)


def _pause(snapshots: SnapshotMemory, wanted: int, ended: threading.Event) -> None:
    deadline = time.monotonic() + RETRY_SECONDS
    while snapshots.wanted_number() == wanted and time.monotonic() < deadline and not ended.is_set():
        time.sleep(POLL_SECONDS)


def _persist(store: CheckpointStore, snapshots: SnapshotMemory, snapshot: Snapshot, report: _Report, events: EventLog) -> Manifest:
    meta = dict(snapshot.meta)
    stalls = {name: float(meta.pop(name, 0.0)) for name in ("stall_seconds", "stall_seconds_so_far")}
    stall_seconds, state = stalls["stall_seconds"], _small_state(meta)
    meta = {name: value for name, value in meta.items() if name not in STATE}
    started = time.monotonic()
    files: dict[str, list[Any]] = {name: [content] for name, content in snapshots.files(snapshot).items()}
    _assert_finite(snapshot.step, snapshots.files(snapshot))
    files[STATE_NAME] = [state]
    took_seconds = 0.0

    def durable() -> None:
        nonlocal took_seconds
        took_seconds = time.monotonic() - started

    def describe(entries: dict[str, FileEntry]) -> Manifest:
        if not snapshots.is_intact(snapshot):
            raise _TornError
        return Manifest(**meta, saved_at=time.time(), files=entries)

    manifest = store.commit(files, describe, int(meta["attempt"]), durable)
    numbers = {"bytes": manifest.total_bytes, "stall_seconds": stall_seconds, "persist_seconds": took_seconds, "verified": True}
    events.append("checkpoint", step=manifest.step, **(numbers | stalls), attempt=manifest.attempt)
    _log.info("checkpoint at step %d: %.1f MB, durable after %.2f s", manifest.step, manifest.total_bytes / 1e6, took_seconds)
    words = report.words
    report.say(
        number=snapshot.number,
        checkpoint={"step": manifest.step, "saved_at": manifest.saved_at, **numbers},
        count=words["count"] + 1,
        stall_seconds=words["stall_seconds"] + stall_seconds,
        persist_seconds=words["persist_seconds"] + took_seconds,
        failed=None,
    )
    return manifest


def _small_state(meta: Mapping[str, Any]) -> bytes:
    return json.dumps({name: meta[name] for name in STATE if name in meta}).encode()


def _assert_finite(step: int, files: Mapping[str, memoryview]) -> None:
    """A state that is not finite would be the newest checkpoint, and every start from it would fail the same way."""
    if name := not_finite(tensors_of(files)):
        raise DivergedError(f"{name} is not finite after step {step}: not saved, and the last checkpoint is good; lower optim.lr")


def _assert_own(run_dir: Path, snapshots: SnapshotMemory) -> None:
    """The fence: whoever starts on a run directory draws a higher attempt number; a writer that has lost its lock must not publish."""
    deadline = time.monotonic() + FENCE_SECONDS
    while (newest := _attempt_on_disk(run_dir)) > snapshots.attempt():
        if time.monotonic() >= deadline:
            raise PeerLostError(
                f"{run_dir} has been taken over by another start of this run (attempt {newest}, ours is {snapshots.attempt()}); "
                f"nothing more is written here; see who runs it"
            )
        time.sleep(POLL_SECONDS)


def _attempt_on_disk(run_dir: Path) -> int:
    try:
        return int((run_dir / "attempt").read_text())
    except (OSError, ValueError):
        return 0
