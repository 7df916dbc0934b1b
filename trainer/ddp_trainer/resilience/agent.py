"""The elastic agent of one node: forks its ranks, watches them, and meets the other agents again after a fault.

It is torch's `SimpleElasticAgent` with three parts of its own. Ranks are forked from a zygote, so a restart costs no import, and they
are stopped by SIGKILL at once (torch waits two fixed bounds of 30 s for a rank that does not answer). The loop re-forms all nodes through
the generation barrier. And finishing is a step of that barrier: an agent whose ranks are done keeps listening, so a crash in another
node's last save brings it back instead of stranding it.

Node 0 is the judge: a fault posted by any node is decided there, once, and every agent ends with the same root cause.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.elastic.agent.server.api import RunResult, SimpleElasticAgent, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import BY_CAUSE, FINISHED, PREEMPTED, RANK_CRASHED, DdpError, Exit
from ddp_trainer.resilience.chronicle import Chronicle
from ddp_trainer.resilience.fault import ECHO, FAILED_COLLECTIVE, Fault, of_death
from ddp_trainer.resilience.rendezvous import GenerationBarrier, StoreLostError, SupersededError
from ddp_trainer.resilience.verdict import judge
from ddp_trainer.resilience.zygote import Death, Zygote, ZygoteError
from ddp_trainer.telemetry.events import EventLog
from ddp_trainer.telemetry.facts import FactsPage
from ddp_trainer.telemetry.node import NodeTelemetry
from ddp_trainer.telemetry.readable import counted

_log = logging.getLogger(__name__)

RANK_TARGET = "ddp_trainer.resilience.rank:main"
ECHO_SECONDS = 1.0
"""How long node 0 waits for a root cause after the first echo: ten monitor intervals of the agent that must report it."""


@dataclass(frozen=True)
class Ending:
    """How the agent leaves: with which exit, and the fault behind it, if any."""

    exit: Exit
    fault: Fault | None = None


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
        page: FactsPage,
        scratch: Path,
        telemetry: NodeTelemetry,
        chronicle: Chronicle,
        events: EventLog | None,
        next_attempt: Any,
        ranks_on_machine: int,
        environment: Mapping[str, str],
        rank_logs: Path | None,
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
        self._page = page
        self._scratch = scratch
        self._telemetry = telemetry
        self._chronicle = chronicle
        self._events = events
        self._next_attempt = next_attempt
        self._ranks_on_machine = ranks_on_machine
        self._environment = environment
        self._rank_logs = rank_logs
        self._running: dict[int, int] = {}  # pid -> local rank
        self._stop_asked = False
        self._ending = Ending(FINISHED)
        barrier.while_waiting = self._while_waiting

    def supervise(self) -> Ending:
        """Run to the end: finished, given up, asked to stop, or peers lost. Never raises for what can go wrong in a run."""
        try:
            self.run()
            ending = self._ending
            if ending.exit is FINISHED:
                self._barrier.farewell()
        except RendezvousClosedError as closed:
            ending = _ending_of(str(closed))
            self._barrier.farewell()
        except StopAskedError:
            ending = self._preempted()
        except DdpError as error:
            # peers that do not come, a zygote that is gone (this process has threads by now, so it cannot fork another one), or a run
            # directory that fails: where starting again helps, it is the container that is started again
            _log.error("%s", error)  # a sentence for people
            ending = Ending(error.exit, self._fault_here(error.exit.cause, error.exit.code, str(error)))
            if not error.exit.retried:
                self._close(ending.exit, ending.fault, str(error))
        return ending

    def ask_to_stop(self) -> None:
        """For a signal handler: leave at the next look, ranks stopped."""
        self._stop_asked = True

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
        attempt = self._agreed_attempt()
        self._chronicle.begin_attempt(attempt)
        if self._events:
            generation, world_size = self._barrier.generation, self._config.world_size
            self._events.append("form", attempt=attempt, generation=generation, world_size=world_size)
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
            self._note(worker.local_rank).unlink(missing_ok=True)
            pid = self._zygote.spawn(
                RANK_TARGET,
                {
                    "config": self._config.model_dump(mode="json"),
                    "place": place,
                    "start": {"attempt": attempt, "reached_step": self._chronicle.reached_step},
                    "page": str(self._page.path),
                    "note": str(self._note(worker.local_rank)),
                },
                dict(self._environment) | _caches(self._config, self._environment) | _torch_names(worker, worker_group),
                self._rank_logs / f"rank-{worker.global_rank}.log" if self._rank_logs else None,
            )
            self._running[pid] = worker.local_rank
            ids[worker.local_rank] = pid
        return ids

    def _stop_workers(self, worker_group: WorkerGroup) -> None:  # noqa: ARG002  # torch's signature
        for pid in self._running:
            self._zygote.kill(pid, signal.SIGKILL)
        bound_seconds = self._config.fault_tolerance.stop_grace_seconds
        deadline = time.monotonic() + bound_seconds
        while self._running:
            for death in self._zygote.deaths(timeout_seconds=0.1):
                self._running.pop(death.pid, None)
            if self._running and time.monotonic() >= deadline:
                stuck = ", ".join(f"{pid} (local rank {rank})" for pid, rank in self._running.items())
                self._running.clear()
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
            self._running.clear()  # they died with it

    # --- the loop ----------------------------------------------------------------------------------------------------------------

    def _watch(self) -> Ending | None:
        """Look after the ranks of one generation until it is over: an ending, or None to re-form."""
        barrier, echo_since = self._barrier, 0.0
        posted = failed = False
        while True:
            deaths = self._zygote.deaths(timeout_seconds=self._config.fault_tolerance.monitor_interval_seconds)
            self._tick()
            if self._stop_asked:
                return self._preempted()
            failed = failed or any(death.code for death in deaths)
            for fault in self._faults(deaths):
                _log.warning("%s", fault.sentence)
                (barrier.post_echo if fault.cause == ECHO else barrier.post_fault)(fault.to_json())
            if not (self._running or posted or failed):
                barrier.post_finished()
                posted = True
            if posted and barrier.all_finished():
                return Ending(FINISHED)
            if barrier.node == 0:
                echo_since = echo_since or (time.monotonic() if barrier.echo() else 0.0)
                self._judge(echo_is_old=bool(echo_since) and time.monotonic() - echo_since > ECHO_SECONDS)
            if barrier.is_superseded():
                self._account()
                return None

    def _while_waiting(self) -> None:
        self._tick()
        if self._stop_asked:
            raise StopAskedError

    def _preempted(self) -> Ending:
        """Asked to stop: said to the others first, who would else find a lost peer."""
        fault = self._fault_here("preemption", PREEMPTED.code, "asked to stop by SIGTERM")
        with contextlib.suppress(StoreLostError):
            self._barrier.post_fault(fault.to_json())
        if self._barrier.node == 0:
            self._record_fault(fault)
        return Ending(PREEMPTED, fault)

    def _faults(self, deaths: list[Death]) -> list[Fault]:
        found = []
        for death in deaths:
            local_rank = self._running.pop(death.pid, None)
            if local_rank is None or death.code == 0:
                continue
            worker = self._worker_group.workers[local_rank]
            step = int((self._page.read(local_rank) or {}).get("step") or 0)
            found.append(of_death(death.code, self._note(local_rank), self._barrier.node, worker.global_rank, step))
        return found

    def _judge(self, *, echo_is_old: bool) -> None:
        """Node 0: decide on this generation's fault, if there is one and the decision is not made."""
        if self._barrier.is_superseded():
            return
        text = self._barrier.fault()
        if text is None and not echo_is_old:
            return
        if text is None:
            echo = Fault.from_json(self._barrier.echo() or "")
            fault = replace(echo, cause=FAILED_COLLECTIVE, message=f"lost its peers: {echo.message}")
            self._barrier.post_fault(fault.to_json())
        else:
            fault = Fault.from_json(text)
        verdict = judge(fault, self._chronicle.durable_step, self._chronicle.record, self._config.fault_tolerance)
        self._chronicle.record = verdict.record
        if verdict.leave is None:
            self._barrier.ask_for_next()
            return
        _log.error("%s", verdict.reason)
        self._record_fault(fault)
        self._chronicle.save()
        self._close(verdict.leave, fault, verdict.reason)

    def _close(self, leave: Exit, fault: Fault | None, reason: str) -> None:
        """End the run for all agents, with the same words."""
        words = {"cause": leave.cause, "fault": asdict(fault) if fault else None, "reason": reason}
        with contextlib.suppress(StoreLostError):
            self._barrier.close(json.dumps(words))

    def _account(self) -> None:
        """Node 0: write down why a generation ended and what it cost, before the next one forms."""
        if self._barrier.node != 0 or self._barrier.ending() is not None:
            return
        text = self._barrier.fault()
        fault = (
            Fault.from_json(text)
            if text
            else Fault("peer_loss", self._barrier.node, None, 0, self._chronicle.reached_step, "a node came back")
        )
        self._record_fault(fault if fault.step else replace(fault, step=self._chronicle.reached_step))
        lost = self._chronicle.restarted(fault.cause)
        self._chronicle.save()
        if self._events:
            self._events.append("restart", cause=fault.cause, node=fault.node, attempt=self._chronicle.attempt + 1)
        _log.warning("re-forming after: %s (%s to do again)", fault.sentence, counted(lost, "step"))

    def _record_fault(self, fault: Fault) -> None:
        if self._events:
            self._events.append("fault", **asdict(fault))

    def _tick(self) -> None:
        self._chronicle.observe(self._page.read(0))
        self._telemetry.tick(self._chronicle.ledger(), time.time())

    def _tell(self, phase: str, note: str) -> None:
        self._chronicle.phase, self._chronicle.note = phase, note
        self._tick()

    def _agreed_attempt(self) -> int:
        """Node 0 draws the number of this start of the ranks; the others read it."""
        if self._barrier.node == 0:
            attempt = int(self._next_attempt())
            self._barrier.share("attempt", str(attempt))
            return attempt
        return int(self._barrier.shared("attempt"))

    def _note(self, local_rank: int) -> Path:
        return self._scratch / f"last-words-{local_rank}.json"

    def _fault_here(self, cause: str, code: int, message: str) -> Fault:
        return Fault(cause, self._barrier.node, None, code, self._chronicle.reached_step, message)


def _ending_of(text: str) -> Ending:
    raw = json.loads(text)
    fault = Fault(**{**raw["fault"], "message": raw["reason"]}) if raw.get("fault") else None
    return Ending(BY_CAUSE[raw["cause"]], fault)


def _caches(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """Where compiled kernels are kept, so that only the first start of a run compiles."""
    if config.precision.compile == "off":
        return {}
    folder = config.compile_cache(environment)
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def _torch_names(worker: Worker, group: WorkerGroup) -> dict[str, str]:
    """The variables by which user code and libraries know torch's ranks."""
    return {
        "RANK": str(worker.global_rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(worker.world_size),
        "LOCAL_WORLD_SIZE": str(group.spec.local_world_size),
        "GROUP_RANK": str(group.group_rank),
        "MASTER_ADDR": str(group.master_addr),
        "MASTER_PORT": str(group.master_port),
    }
