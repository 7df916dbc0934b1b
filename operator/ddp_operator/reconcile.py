"""The loop: what has changed, or is due, is decided anew; then the status is written, actions are carried out, events posted.

Level-based: nothing is derived from *what* changed, so a change that is lost, doubled or late costs at most time. One run is looked at by
one worker at a time. Only the leader works; a standby follows the world and starts with everything dirty.

What fails is tried again with growing pauses, for ever, one run apart from the other: a run whose status is refused must not delay its
neighbours. What a decision wanted and could not do is in its status (the intent), and comes out of the next decision again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from ddp_operator.act.actions import carry_out
from ddp_operator.act.bystanders import Bystanders, reporting
from ddp_operator.act.events import Events
from ddp_operator.act.old_crd import OldCrd
from ddp_operator.act.orphans import Orphans
from ddp_operator.act.status import GONE, INVALID, ConflictError, path_of, write_status
from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.backoff import Backoff
from ddp_operator.decide import announce
from ddp_operator.decide.decide import decide
from ddp_operator.decide.decision import Decision, DeletePod
from ddp_operator.decide.facts import RunFacts
from ddp_operator.decide.quiet import is_renewal
from ddp_operator.observe.api import Api, ApiError
from ddp_operator.observe.pace import stretched
from ddp_operator.observe.world import World
from ddp_operator.settings import Settings
from ddp_operator.turns import Key, Turns

Decide = Callable[[RunFacts, float, float], Decision]

CHANGE_WORKERS: Final = 16
RENEWAL_WORKERS: Final = 8
"""For runs that time, or mere numbers, make due. Of one pool for both, a server that takes half a second for each write would leave nothing
to the changes: a thousand runs renew their numbers sixty times a second."""
BATCH_SECONDS: Final = 0.2
"""Changes come in flocks (four pods of one job): one decision serves them all."""
IDLE_SECONDS: Final = 1.0
RENEWAL_LOOKS: Final = 1.5
"""Mere numbers are written at most once in so many looks at the progress: four times a minute, which a reader of `kubectl get -w` can
follow. At each look, a thousand runs would be a hundred writes a second: half a core here, and more on the API server."""
SOONEST_SECONDS: Final = 0.2
"""However soon a decision wants to be looked at again: a clock that stands still must not spin the loop."""
BACKOFF: Final = Backoff(30.0)
REFUSED: Final = (400, 403, 405, 422)
"""Answers to an act that trying again will not change: rights, an admission policy. Others are a moment's."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What the loop has done since the process began; metrics read it."""

    decisions: int = 0
    writes: int = 0
    conflicts: int = 0
    errors: int = 0
    pruned: int = 0
    """Writes of which the server has not kept all, since its CRD is old."""
    actions: Counter[str] = field(default_factory=Counter)
    """By name: SuspendJob, ResumeJob, DeletePod."""


class Reconciler:
    """The one writer of statuses."""

    def __init__(
        self,
        world: World,
        api: Api,
        settings: Settings,
        is_leader: Callable[[], bool],
        clock: Callable[[], float] = time.time,
        *,
        decide: Decide = decide,
        identity: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world = world
        self._api = api
        self._settings = settings
        self._is_leader = is_leader
        self._clock = clock
        self._decide = decide
        self._monotonic = monotonic
        self.events = Events(api, identity, is_leader, monotonic)
        # a write that takes longer than the lease's last third might land when another leads
        self._write_seconds = settings.lease_seconds / 3
        self._progress_seconds = settings.progress_seconds
        self._turns = Turns()
        self._working: dict[Key, _Worker] = {}
        self._trouble: dict[Key, _Trouble] = {}
        self.orphans = Orphans(world, api, is_leader, self.events.tell, monotonic, self._write_seconds)
        self._old_crd = OldCrd(monotonic)
        self._bystanders = Bystanders()
        self._led = False
        self._untold: set[Key] = set()
        """Runs of which an event may be missing: of a status that another leader, or a request whose answer was lost, has written."""
        self._wrote_at = float("-inf")
        self.counts = Counts()

    @property
    def _renewal_seconds(self) -> float:
        return stretched(RENEWAL_LOOKS * self._progress_seconds, self._world.asked_runs)

    @property
    def lag_seconds(self) -> float:
        """How long the oldest change has been waiting to be shown. Runs in trouble are not in it: they wait on purpose."""
        starts = [*self._turns.since(self._trouble), *(worker.since for key, worker in self._working.items() if key not in self._trouble)]
        return self._monotonic() - min(starts) if starts else 0.0

    @property
    def stalled_seconds(self) -> float:
        """The same, counted at most from the last write that succeeded: a loop that is late, but writes, would be later after a restart."""
        return min(self.lag_seconds, self._monotonic() - self._wrote_at)

    @property
    def troubled(self) -> dict[Key, str]:
        """Runs whose last round failed, and why."""
        return {key: trouble.sentence for key, trouble in self._trouble.items()}

    async def run(self) -> None:
        """Work for ever. Cancelled, it stops at once: what is on its way is cut off, which the next leader's first look makes good."""
        try:
            while True:
                await self._world.wait_dirty(self._pause())
                await asyncio.sleep(BATCH_SECONDS)
                self.turn()
        finally:
            tasks = [*(worker.task for worker in self._working.values()), *self.orphans.tasks(), *self.events.tasks()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def turn(self) -> None:
        """Take what has changed and what is due, and start workers for it. Never blocks."""
        changed, moved = list(self._world.take_dirty()), self._world.take_moved()
        if not self._is_leader() or not self._world.is_complete():
            self._led = False
            self._turns.clear()
            return
        now = self._monotonic()
        if not self._led:
            self._led = True
            self._trouble.clear()
            self._old_crd = OldCrd(self._monotonic)  # another leader may have begun something since
            changed = self._world.names()
            self._untold = set(changed)
        for key in changed:
            if key not in self._trouble:  # its pause stands: a run that fails must not wake itself by what it has written before failing
                self._turns.change(key, now)
        for key in moved:
            if key not in self._trouble:
                self._turns.move(key, now)
        # once only: what fails again and again, for seconds each, would leave the changes of healthy runs no worker
        self._turns.pass_on(now, {key for key, trouble in self._trouble.items() if trouble.attempts == 1})
        self._start_workers()
        self.events.look()
        if self._settings.adopt:
            self.orphans.look()

    def _pause(self) -> float:
        return min(self._turns.pause_seconds(self._monotonic()), IDLE_SECONDS)

    def _start_workers(self) -> None:
        for is_change, most, take in (
            (True, CHANGE_WORKERS, self._turns.take_changed),
            (False, RENEWAL_WORKERS, self._turns.take_timed),
        ):
            free = most - sum(worker.is_change is is_change for worker in self._working.values())
            while free > 0 and (taken := take(self._working)) is not None:
                free -= 1
                key, since = taken
                task = asyncio.create_task(self._round(key), name=f"reconcile {'/'.join(key)}")
                self._working[key] = _Worker(task, since, is_change)
                task.add_done_callback(partial(self._ended, key))

    def _ended(self, key: Key, _: asyncio.Task[None]) -> None:
        self._working.pop(key, None)
        if self._led and self._is_leader():  # else `turn` decides whether to go on or to forget
            self._start_workers()

    def _still_leads(self, key: Key) -> bool:
        """Whether a round may go on. If not, the run keeps its turn: a leader may lose the lease for a moment only."""
        if not self._is_leader():
            self._turns.change(key, self._monotonic())
            return False
        return True

    # --- one round of one run

    async def _round(self, key: Key) -> None:
        try:
            await self._decide_and_act(key)
        except ConflictError as error:
            self.counts.conflicts += 1
            self._try_again(key, str(error), None)
            await self._read_anew(key)
        except ApiError as error:
            self.counts.errors += 1
            self._try_again(key, error.reason, error.retry_after_seconds)
        except Exception as error:  # a bug in a decision must not end the process: the other runs need it
            self.counts.errors += 1
            self._try_again(key, f"this is a bug of the operator: {error!r}", None)
            _log.exception("Run %s/%s could not be looked at; please report this.", *key, extra=_fields(key))
        else:
            if self._trouble.pop(key, None):
                self._turns.change(key, self._monotonic())  # what changed while it was in trouble was not noted

    async def _decide_and_act(self, key: Key) -> None:
        facts = self._world.facts_of(*key)
        if facts is None:
            self._old_crd.forget(key)
            self._bystanders.forget(key)
            self._turns.forget(key)
            self._untold.discard(key)
            return
        stored, facts = facts, self._old_crd.remembered(key, facts)
        is_bystander = self._bystanders.note(key, facts.spec.job_ref.name, is_one=not self._world.acts(*key))
        facts = reporting(facts) if is_bystander else facts
        renewal_seconds = self._renewal_seconds
        decision = self._decide(facts, self._clock(), renewal_seconds)
        if is_bystander:  # also what was begun before the other run came
            decision = replace(decision, actions=())
        self.counts.decisions += 1
        self._turns.looked_at(key, self._monotonic(), max(decision.look_again_seconds, SOONEST_SECONDS), renewal_seconds)
        if not self._still_leads(key):
            return
        compared = stored if self._old_crd.is_written_again(key) else facts
        try:
            body = await write_status(self._api, compared, decision.status, timeout_seconds=self._write_seconds)
        except ApiError as error:
            if error.status == INVALID:
                self._old_crd.say(key, error.reason)
            elif error.status not in REFUSED:
                self._untold.add(key)
            raise
        if body is not None:
            self.counts.writes += 1
            self._wrote_at = self._monotonic()
            self._world.put_run(body, is_renewal=is_renewal(facts.status, decision.status))
            _log_change(facts, decision.status)
            self.counts.pruned += self._old_crd.note_written(key, decision.status, body, self._world.facts_of(*key))
        failure = None if self._old_crd.forbids_acts(key) else await self._act(facts, decision)
        self._tell(key, facts, decision)  # even if an action failed: the status says it now, so no later decision would
        if failure is not None:
            raise failure

    async def _act(self, facts: RunFacts, decision: Decision) -> ConflictError | ApiError | None:
        """The first failure. What comes after it is not done, but for deletions, none of which waits for another."""
        failure: ConflictError | ApiError | None = None
        for action in decision.actions:
            if not self._still_leads((facts.namespace, facts.name)):
                break
            name = type(action).__name__
            target = action.pod if isinstance(action, DeletePod) else action.job
            try:
                body = await carry_out(self._api, facts.namespace, action, timeout_seconds=self._write_seconds)
            except (ConflictError, ApiError) as error:
                if isinstance(error, ApiError) and error.status in REFUSED:
                    self.events.tell(facts, announce.refused(decision.status, action, error.reason))
                failure = failure or error
                if not isinstance(action, DeletePod):
                    break
                continue
            self.counts.actions[name] += 1
            _log.info("%s %s: %s", name, target, action.why, extra=_fields((facts.namespace, facts.name)))
            if body is not None:
                self._world.put_job(body)
        return failure

    def _tell(self, key: Key, facts: RunFacts, decision: Decision) -> None:
        """What was decided, and what may not have been told before."""
        untold = announce.recent(facts.status, self._clock()) if key in self._untold else ()
        told = [self.events.tell(facts, event) for event in (*untold, *decision.events)]
        (self._untold.discard if all(told) else self._untold.add)(key)

    async def _read_anew(self, key: Key) -> None:
        # the watch brings it too, but perhaps not before the next attempt
        try:
            self._world.put_run(await self._api.request("GET", path_of(*key), timeout_seconds=self._write_seconds))
        except ApiError as error:
            if error.status == GONE:
                self._world.drop_run(*key)

    def _try_again(self, key: Key, sentence: str, retry_after_seconds: float | None) -> None:
        trouble = self._trouble.setdefault(key, _Trouble())
        trouble.attempts += 1
        pause = BACKOFF.after(trouble.attempts, retry_after_seconds)
        self._turns.wait_until(key, self._monotonic() + pause)
        if trouble.sentence != sentence:
            trouble.sentence = sentence
            level = logging.WARNING if trouble.attempts > 1 else logging.INFO
            _log.log(level, "Tried again in %.1f s: %s", pause, sentence, extra=_fields(key))


@dataclass(frozen=True, slots=True)
class _Worker:
    """A round under way. `since`: when its run began to wait for it."""

    task: asyncio.Task[None]
    since: float
    is_change: bool


@dataclass(slots=True)
class _Trouble:
    attempts: int = 0
    sentence: str = ""


def _log_change(facts: RunFacts, status: TrainingRunStatus) -> None:
    if facts.status.phase != status.phase or facts.status.reason != status.reason:
        text = "%s %s: %s" if status.reason else "%s%s: %s"
        _log.info(text, status.phase, status.reason, status.message, extra=_fields((facts.namespace, facts.name)))


def _fields(key: Key) -> dict[str, str]:
    return {"namespace": key[0], "run": key[1]}
