"""This node's ranks: forked for an attempt, seen to end, to fail or to stand still, and killed.

It knows processes, and what they say on the node's page; what follows for the run is the agent's business.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import Worker

from ddp_trainer.config import RunConfig
from ddp_trainer.resilience.diagnosis import Diagnosis, Hang
from ddp_trainer.resilience.fault import LEFT_EXIT, Fault, of_death
from ddp_trainer.resilience.zygote import Death, Zygote
from ddp_trainer.telemetry.facts import FactsPage

_log = logging.getLogger(__name__)

RANK_TARGET = "ddp_trainer.resilience.rank:main"


class LocalRanks:
    """One per agent. `scratch` is for files that are shared with the ranks, `logs` the folder of `rank-N.log`, if they have their own."""

    def __init__(self, config: RunConfig, node: int, zygote: Zygote, page: FactsPage, scratch: Path, logs: Path | None) -> None:
        self._config = config
        self._node = node
        self._zygote = zygote
        self._page = page
        self._scratch = scratch
        self._logs = logs
        self._attempt = 0
        self._global_ranks: dict[int, int] = {}  # by local rank
        self._running: dict[int, int] = {}  # pid -> local rank
        self._finished_since: dict[int, float] = {}  # by pid: when it was first seen to have finished without ending
        self._diagnosis = Diagnosis(config.fault_tolerance, node, zygote.kill)

    @property
    def are_running(self) -> bool:
        """Whether a process of any of them is left."""
        return bool(self._running)

    @property
    def names(self) -> str:
        """Those that run, for people."""
        return ", ".join(f"{pid} (local rank {rank})" for pid, rank in self._running.items())

    def begin_attempt(self, attempt: int, workers: Sequence[Worker]) -> None:
        """`start` will be called for each of these."""
        self._attempt = attempt
        self._global_ranks = {worker.local_rank: worker.global_rank for worker in workers}
        self._finished_since.clear()
        self._diagnosis.reset()

    def start(self, worker: Worker, place: Mapping[str, Any], known: Mapping[str, Any], environment: Mapping[str, str]) -> int:
        """Fork one; gives its pid. `place` and `known` are the fields of `distributed.Place` and `rank.Start`."""
        note = self._note(worker.local_rank)
        note.unlink(missing_ok=True)
        arguments = {
            "config": self._config.model_dump(mode="json"),
            "place": place,
            "start": known,
            "page": str(self._page.path),
            "note": str(note),
            "trace": str(self._trace(worker.local_rank)),
        }
        log = self._logs / f"rank-{worker.global_rank}.log" if self._logs else None
        pid = self._zygote.spawn(RANK_TARGET, arguments, environment, log, f"ddp-rank-{worker.global_rank}", is_deaf=True)
        self._running[pid] = worker.local_rank
        return pid

    def kill(self) -> None:
        """At once. They are gone when their deaths have come to `bury`."""
        for pid in self._running:
            self._zygote.kill(pid, signal.SIGKILL)

    def bury(self, deaths: Iterable[Death]) -> None:
        """They have ended, and it does not matter how."""
        for death in deaths:
            self._running.pop(death.pid, None)

    def forget(self) -> None:
        """Whatever still runs is nobody's any more."""
        self._running.clear()

    def lead(self) -> dict[str, Any] | None:
        """What the first of them said last, in whatever attempt."""
        return self._page.read(0)

    def have_all_ended_well(self, deaths: Iterable[Death]) -> bool:
        """Whether each of these had left as it was asked to, or had finished. Before they are buried: of others it says yes."""
        return all(death.code == LEFT_EXIT or self._has_finished(self._running.get(death.pid)) for death in deaths)

    def failures(self, deaths: Iterable[Death]) -> list[Fault]:
        """Bury these; a fault for each that ended before its training did."""
        found = []
        for death in deaths:
            local_rank = self._running.pop(death.pid, None)
            is_over = local_rank is None or death.code == LEFT_EXIT or self._has_finished(local_rank)
            if local_rank is None or is_over or (death.code == -signal.SIGSEGV and self._diagnosis.has_looked):
                continue
            step = int((self._page.read(local_rank) or {}).get("step") or 0)
            fault = of_death(death.code, self._note(local_rank), self._node, self._global_ranks[local_rank], step)
            found.append(replace(fault, struck_at=death.seen_at))
        return found

    def slow(self) -> list[str]:
        """A sentence for each rank of the run that has become slow, from what rank 0 heard: only for the node that has it."""
        return self._diagnosis.slow_ranks((self._own_words(0) if 0 in self._running.values() else None) or {})

    def hang(self) -> Hang | None:
        """The hang that has come to light among them, once per attempt."""
        traces = {local: (pid, self._trace(local)) for pid, local in self._running.items()}
        return self._diagnosis.hang(self._facts(), traces, self._global_ranks)

    def end_finished(self) -> None:
        """One that has finished and does not end, in the tear-down of a library, is ended: no hang, since nothing is left to do."""
        for pid, local_rank in self._running.items():
            since = self._finished_since.setdefault(pid, time.monotonic()) if self._has_finished(local_rank) else None
            if since is not None and time.monotonic() - since > self._config.fault_tolerance.save_limit_seconds:
                _log.warning("process %d (local rank %d) has finished and does not end; it is killed", pid, local_rank)
                self._zygote.kill(pid, signal.SIGKILL)
                self._finished_since[pid] = math.inf  # once: what is stuck in the kernel does not end by more of it

    def _facts(self) -> dict[int, dict[str, Any] | None]:
        """What each living one has said in this attempt."""
        return {local_rank: self._own_words(local_rank) for local_rank in self._running.values()}

    def _own_words(self, local_rank: int) -> dict[str, Any] | None:
        """What a rank has said in this attempt: the page may still have its predecessor's."""
        said = self._page.read(local_rank)
        return said if said and said.get("attempt") == self._attempt else None

    def _has_finished(self, local_rank: int | None) -> bool:
        """Whether a rank has said so in this attempt: then it is done, however its process ends; and else it is not, also with a 0."""
        if local_rank is None:  # killed by us, of a time before
            return True
        return (self._own_words(local_rank) or {}).get("phase") == "finished"

    def _note(self, local_rank: int) -> Path:
        return self._scratch / f"last-words-{local_rank}.json"

    def _trace(self, local_rank: int) -> Path:
        return self._scratch / f"stacks-{local_rank}.txt"
