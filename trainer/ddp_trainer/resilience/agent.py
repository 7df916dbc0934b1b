"""The elastic agent of one node: forks its ranks, watches them, and meets the other agents again after a fault.

It is torch's `SimpleElasticAgent` with parts of its own. Ranks are forked from a zygote, so a restart costs no import, and they
are stopped by SIGKILL at once (torch waits two fixed bounds of 30 s for a rank that does not answer). The loop re-forms all nodes through
the generation barrier. And finishing is a step of that barrier: an agent whose ranks are done keeps listening, so a crash in another
node's last save brings it back instead of stranding it. Asked to stop, it has all ranks leave together after the step they are in, and
on node 0 the newest snapshot written before it goes.

A fault that any node posts is decided by node 0's `Judge`, once, and every agent ends with the same root cause.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from torch.distributed.elastic.agent.server.api import RunResult, SimpleElasticAgent, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from ddp_trainer.checkpoint.lock import TakenOverError
from ddp_trainer.config import RunConfig
from ddp_trainer.errors import FINISHED, PEER_LOST, PREEMPTED, RANK_CRASHED, DdpError, PeerLostError
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.custody import Custody
from ddp_trainer.resilience.departure import Departure
from ddp_trainer.resilience.fault import ECHO, LEFT_EXIT, Ending
from ddp_trainer.resilience.judge import Judge, ending_of
from ddp_trainer.resilience.local_ranks import RANK_TARGET, LocalRanks
from ddp_trainer.resilience.rank_environment import environment_of
from ddp_trainer.resilience.rendezvous import GenerationBarrier, StoreLostError, SupersededError
from ddp_trainer.resilience.zygote import Death, Zygote, ZygoteError
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.node import NodeTelemetry

_log = logging.getLogger(__name__)


class StuckRankError(DdpError):
    """A rank that SIGKILL does not end: nothing can be started in its place on this machine."""

    exit = RANK_CRASHED


class StopAskedError(Exception):
    """The agent was asked to stop while it waited for its peers."""


class GangAgent(SimpleElasticAgent):
    """One node's agent. Drive it with `supervise`, from the process's main thread."""

    def __init__(
        self,
        *,
        config: RunConfig,
        barrier: GenerationBarrier,
        zygote: Zygote,
        custody: Custody,
        ranks: LocalRanks,
        telemetry: NodeTelemetry,
        chronicle: Chronicle,
        events: EventLog | None,
        next_attempt: Any,
        ranks_on_machine: int,
        environment: Mapping[str, str],
    ) -> None:
        spec = WorkerSpec(
            role="trainer",
            local_world_size=config.distributed.procs_per_node,
            rdzv_handler=barrier,
            entrypoint=RANK_TARGET,
            max_restarts=config.fault_tolerance.max_restarts,
            monitor_interval=config.fault_tolerance.monitor_interval_seconds,
        )
        super().__init__(spec)
        self._config = config
        self._barrier = barrier
        self._zygote = zygote
        self._custody = custody
        self._ranks = ranks
        self._telemetry = telemetry
        self._chronicle = chronicle
        self._events = events
        self._next_attempt = next_attempt
        self._ranks_on_machine = ranks_on_machine
        self._environment = environment
        self._ending = Ending(FINISHED)
        self._judge = Judge(barrier, chronicle, events, config.fault_tolerance)
        self._departure = Departure(custody, config.fault_tolerance.preemption_grace_seconds)
        barrier.while_waiting = self._while_waiting

    def supervise(self) -> Ending:
        """Run to the end: finished, given up, asked to stop, or peers lost. Never raises for what can go wrong in a run."""
        try:
            self.run()
            ending = self._ending
            if ending.exit is FINISHED:
                self._barrier.farewell()
        except RendezvousClosedError as closed:
            ending = ending_of(str(closed))
            self._barrier.farewell()
        except StopAskedError:
            ending = self._preempted()
        except TakenOverError as error:
            _log.error("%s", error)
            self._chronicle.path = None  # the ledger is somebody else's by now
            return Ending(error.exit, self._judge.fault_here(error.exit.cause, error.exit.code, str(error)))
        except DdpError as error:
            # peers that do not come, a zygote that is gone (this process has threads by now, so it cannot fork another one), or a run
            # directory that fails: where starting again helps, it is the container that is started again
            _log.error("%s", error)  # a sentence for people
            ending = Ending(error.exit, self._judge.fault_here(error.exit.cause, error.exit.code, str(error)))
            if ending.fault:
                self._judge.record(ending.fault)
            if not error.exit.retried:
                self._judge.close(ending.exit, ending.fault, str(error))
        if ending.exit is not FINISHED:
            self._write_newest()
        return ending

    def ask_to_stop(self, signal_name: str) -> None:
        """For a signal handler: leave once the ranks have kept their state."""
        self._departure.ask(signal_name)

    @property
    def left_seconds(self) -> float:
        """What is left for the way out, where this node was asked to stop."""
        return self._departure.left_seconds

    # --- torch's interface -------------------------------------------------------------------------------------------------------

    def _invoke_run(self, role: str = "default") -> RunResult:  # noqa: ARG002  # torch's signature
        group = self._worker_group
        while True:
            self._tell("starting", "meeting the other nodes" if self._barrier.nodes > 1 else "")
            try:
                self._initialize_workers(group)
                ending = self._watch()
            except StoreLostError as lost:
                if self._barrier.node == 0:
                    raise
                _log.warning("%s; waiting for its return", lost)
                ending = None
            except SupersededError:
                ending = None
            self._stop_workers(group)
            if ending is not None:
                group.state = WorkerState.SUCCEEDED if ending.exit is FINISHED else WorkerState.FAILED
                self._ending = ending
                return RunResult(state=WorkerState.SUCCEEDED, return_values={worker.global_rank: None for worker in group.workers})
            self._zygote.kill_orphans()
            group.state = WorkerState.STOPPED

    def _assign_worker_ranks(self, store: Any, group_rank: int, group_world_size: int, spec: WorkerSpec) -> list[Worker]:  # noqa: ARG002
        """Every node has the same number of ranks and its fixed place, so nothing has to be exchanged."""
        local = spec.local_world_size
        return [
            Worker(
                local_rank=i,
                global_rank=group_rank * local + i,
                role_rank=group_rank * local + i,
                world_size=group_world_size * local,
                role_world_size=group_world_size * local,
            )
            for i in range(local)
        ]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        start = self._agreed_start()
        attempt = int(start["attempt"])
        self._judge.begin_attempt(attempt, worker_group.workers[0].world_size)
        self._custody.memory.begin_attempt(attempt)
        self._custody.start_writer()
        self._ranks.begin_attempt(attempt, worker_group.workers)
        known = {
            "attempt": attempt,
            "reached_step": self._chronicle.standing_step,
            "memory": self._custody.memory.descriptor,
            "skipped": start["skipped"],
        }
        ids: dict[int, Any] = {}
        for worker in worker_group.workers:
            place = {
                "rank": worker.global_rank,
                "world_size": worker.world_size,
                "local_rank": worker.local_rank,
                "ranks_on_machine": self._ranks_on_machine,
                "store_host": worker_group.master_addr,
                "store_port": worker_group.master_port,
                "store_prefix": self._barrier.prefix,
            }
            environment = environment_of(worker, worker_group, self._config, self._environment)
            ids[worker.local_rank] = self._ranks.start(worker, place, known, environment)
        return ids

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002  # torch's signature
        self._ranks.kill()
        bound_seconds = self._config.fault_tolerance.stop_grace_seconds
        if self._departure.is_asked:
            bound_seconds = min(bound_seconds, self._departure.left_seconds / 2)
        deadline = time.monotonic() + bound_seconds
        while self._ranks.are_running:
            self._ranks.bury(self._deaths(timeout_seconds=0.1))
            if self._ranks.are_running and time.monotonic() >= deadline:
                stuck = self._ranks.names
                self._ranks.forget()
                if self._departure.is_asked:  # nothing is to be started in their place
                    _log.warning("left behind without waiting for its end: process %s", stuck)
                    return
                raise StuckRankError(
                    f"ranks did not die within {bound_seconds:g} s of SIGKILL: process {stuck} is stuck in the kernel, "
                    f"in a dead file system or a driver; see /proc/<pid>/stack on that machine"
                )

    def _monitor_workers(self, worker_group: WorkerGroup) -> NoReturn:
        raise NotImplementedError("the loop of this agent looks by itself: see _watch")

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:  # noqa: ARG002  # torch's signature
        try:
            self._stop_workers(self._worker_group)
        except ZygoteError:
            self._ranks.forget()  # they died with it

    # --- the loop ----------------------------------------------------------------------------------------------------------------

    def _watch(self) -> Ending | None:
        """Look after the ranks of one generation until it is over: an ending, or None to re-form."""
        barrier, failed = self._barrier, False
        left_since: float | None = None
        finished_since: float | None = None
        reported_since: float | None = None
        while True:
            deaths = self._deaths(timeout_seconds=max(self._config.fault_tolerance.monitor_interval_seconds, barrier.look_seconds))
            self._tick()
            is_durable = barrier.node == 0 and finished_since is not None
            if self._departure.is_asked and self._may_go(has_finished=finished_since is not None) and not is_durable:
                return self._preempted()
            left_since = left_since or (time.monotonic() if any(death.code == LEFT_EXIT for death in deaths) else None)
            failed = failed or not self._ranks.have_all_ended_well(deaths)
            has_reported = self._has_reported(deaths)
            reported_since = reported_since or (time.monotonic() if has_reported else None)
            if not (self._ranks.are_running or finished_since or failed or left_since):
                barrier.post_finished()
                finished_since = time.monotonic()
            if finished_since is not None and self._is_over(finished_since):
                return Ending(FINISHED)
            if left_since is not None:
                self._judge.after_leaving(left_since)
            elif barrier.node == 0 and self._ranks.are_running and barrier.waiting():
                self._custody.memory.ask_to_leave(self._chronicle.attempt)  # and then let in who waits
            if barrier.node != 0 or finished_since is None:  # a fault that comes after that changes nothing: see _is_over
                self._judge.look()
            if barrier.is_superseded():
                self._judge.account()
                return None
            self._assert_judged(reported_since)

    def _has_reported(self, deaths: list[Death]) -> bool:
        """Tell the others of what has gone wrong here, if anything has."""
        faults = self._ranks.failures(deaths)
        for fault in faults:
            _log.warning("%s", fault.sentence)
            (self._barrier.post_echo if fault.cause == ECHO else self._barrier.post_fault)(fault.to_json())
        return self._diagnose() or bool(faults)

    def _assert_judged(self, reported_since: float | None) -> None:
        """Node 0 decides in seconds what follows a fault, unless its agent stands still, for instance in a dead file system.

        Raises:
            PeerLostError: it has had all the patience there is for a peer.
        """
        if reported_since is None or self._barrier.node == 0:
            return
        waited_seconds = time.monotonic() - reported_since
        if waited_seconds > self._config.distributed.peer_timeout_seconds:
            raise PeerLostError(
                f"node 0 has not said for {waited_seconds:.0f} s what follows the fault that was reported: "
                f"its agent lives and stands still; look at its log, and at the volume that the run directory is on"
            )

    def _is_over(self, finished_since: float) -> bool:
        """Whether this node, whose ranks have finished, may end.

        Once node 0's have, the last state is durable: others are still waited for, with a bound, and whatever befalls them changes nothing.
        """
        barrier, patience_seconds = self._barrier, self._config.distributed.peer_timeout_seconds
        if barrier.all_finished():
            return True
        if barrier.node != 0:
            return False
        is_late = time.monotonic() - finished_since > patience_seconds or not self._departure.left_seconds
        if not (is_late or barrier.is_superseded() or barrier.fault() or barrier.echo()):
            return False
        _log.warning("ending without the nodes that have not finished in order: the last state is durable")
        self._judge.close(FINISHED, None, FINISHED.meaning)
        return True

    def _deaths(self, timeout_seconds: float) -> list[Death]:
        """Ranks that have ended; a writer that has is replaced on the way."""
        self._custody.look()
        return [death for death in self._zygote.deaths(timeout_seconds) if not self._custody.is_writers(death)]

    def _while_waiting(self) -> None:
        self._tick()
        if self._departure.is_asked:
            raise StopAskedError

    def _may_go(self, *, has_finished: bool) -> bool:
        self._barrier.hurry(self._departure.left_seconds / 2)
        lead, attempt = self._ranks.lead(), self._chronicle.attempt
        return self._departure.may_go(has_ranks=self._ranks.are_running, has_finished=has_finished, lead=lead, attempt=attempt)

    def _preempted(self) -> Ending:
        self._barrier.hurry(self._departure.left_seconds / 2)
        fault = self._judge.fault_here(PREEMPTED.cause, PREEMPTED.code, f"asked to stop by {self._departure.asked_by}")
        self._judge.preempted(fault)
        return Ending(PREEMPTED, fault)

    def _diagnose(self) -> bool:
        """Look at the living ranks: report a hang, name those that are slow. Whether a hang was reported."""
        if self._barrier.node == 0:
            for sentence in self._ranks.slow():
                _log.warning("%s", sentence)
                if self._events:
                    self._events.append("note", message=sentence)
        self._ranks.end_finished()
        hang = self._ranks.hang()
        if hang is None:
            return False
        _log.warning("%s", hang.fault.sentence)
        if hang.is_root or self._barrier.node == 0:  # the ranks of all other nodes only wait for the culprit
            self._barrier.post_stacks(json.dumps(hang.stacks))  # before the fault, with which the judge looks for them
        (self._barrier.post_fault if hang.is_root else self._barrier.post_echo)(hang.fault.to_json())
        return True

    def _tick(self) -> None:
        report = self._custody.report()
        self._chronicle.observe(self._ranks.lead(), report)
        if (report.get("failed") or {}).get("cause") == PEER_LOST.cause:
            raise TakenOverError(report["failed"]["message"])
        self._telemetry.tick(self._chronicle.ledger(), time.time())

    def _tell(self, phase: str, note: str) -> None:
        self._chronicle.phase, self._chronicle.note = phase, note
        self._tick()

    def _agreed_start(self) -> dict[str, Any]:
        """Node 0 draws the number of this start of the ranks, and says what they pass over; the others read it."""
        if self._barrier.node == 0:
            attempt = int(self._next_attempt())
            self._custody.memory.begin_attempt(attempt)  # at once: a writer that is about to publish asks whose number it is
            start = {"attempt": attempt, "skipped": self._chronicle.skipped}
            self._barrier.share("start", json.dumps(start))
            return start
        told: dict[str, Any] = json.loads(self._barrier.shared("start"))
        return told

    def _write_newest(self) -> None:
        """Node 0, on the way out: what the ranks did last must not be lost with this node's memory."""
        bound_seconds = self._departure.write_seconds
        try:
            self._custody.start_writer()
            if not self._custody.write_newest(bound_seconds, self._telemetry_only):
                why = (self._custody.report().get("failed") or {}).get("message", "the write takes longer")
                sentence = "the newest state could not be written within %.0f s: %s; the checkpoint before it is intact"
                _log.warning(sentence, bound_seconds, why)
        except ZygoteError:  # the writer has died with it
            _log.warning("the newest state cannot be written without the fork server; the checkpoint before it is intact")
        self._chronicle.observe(None, self._custody.report())

    def _telemetry_only(self) -> None:
        self._telemetry.tick(self._chronicle.ledger(), time.time())
