"""A program, not a test: an agent's custody of snapshots, with a real zygote and real writers; a bench per test.

Each line of its input is [method, arguments...]; it answers each with one line: {"value": ...} or {"error": ..., "kind": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ddp_trainer.resilience.compiler_import import postpone

postpone()  # as an agent does

from ddp_trainer.checkpoint.snapshot import SnapshotMemory  # noqa: E402
from ddp_trainer.resilience.zygote import Death, Zygote  # noqa: E402

BENCHES = 64

descriptors = [SnapshotMemory.create() for _ in range(BENCHES)]  # before the fork, so that writers inherit them
zygote = Zygote.fork(["ddp_trainer.resilience.persister"])

import torch  # noqa: E402
from restore_ranks import keep, meta_of, state_of  # noqa: E402

from ddp_trainer.config import RunConfig  # noqa: E402
from ddp_trainer.resilience import custody as custody_module  # noqa: E402
from ddp_trainer.resilience.custody import Custody  # noqa: E402
from ddp_trainer.telemetry.facts import FactsPage  # noqa: E402

SLOT = 1
"""Of the facts page; a rank has the one before."""


class Bench:
    """One agent's custody."""

    def __init__(self, descriptor: int) -> None:
        self.memory = SnapshotMemory(descriptor)
        self.custody: Custody | None = None

    def agent(self, root: str, settings: dict[str, Any], attempt: int, leads: bool = True) -> None:
        """A new agent on this memory."""
        config = RunConfig().with_values({"run.root": root, "run.name": "run", "distributed.device": "cpu", **settings})
        config.run_dir.mkdir(parents=True, exist_ok=True)
        page = FactsPage.create(Path(root) / "facts", slots=SLOT + 1)
        self.memory.begin_attempt(attempt)
        log = Path(root) / "writer.log"
        self.alarms, self.now = [], 0.0
        where = (self.memory, page, SLOT, zygote, config if leads else None, {"PATH": os.environ["PATH"]}, log)
        self.custody = Custody(*where, alarm=self.alarms.append, clock=lambda: self.now)

    def begin_attempt(self, attempt: int) -> None:
        self.memory.begin_attempt(attempt)

    def start(self) -> int | None:
        """The writer's pid."""
        self.custody.start_writer()
        return self.custody._writer

    def keep(self, seed: int, step: int, durable: bool, width: int = 4, poison: str = "", changes: dict[str, Any] | None = None) -> int:
        """What a rank does; `poison` names a tensor that is not finite."""
        state = state_of(seed, width=width)
        if poison:
            with torch.no_grad():
                tensor = state.tensors()[poison]
                tensor[(-1,) * tensor.ndim] = float("inf")
        return keep(self.memory, state, step, durable=durable, slots=3, meta=meta_of(step) | (changes or {})).number

    def report(self) -> dict[str, Any]:
        return self.custody.report()

    def wanted_number(self) -> int:
        return self.memory.wanted_number()

    def write_newest(self, bound_seconds: float) -> list[Any]:
        """The answer, and how often the agent could do other things meanwhile."""
        times = []
        return [self.custody.write_newest(bound_seconds, lambda: times.append(1)), len(times)]

    def write_newest_and_what_is_left(self, bound_seconds: float) -> list[Any]:
        """The answer, and the part of the bound that was not used."""
        begun = time.monotonic()
        return [self.custody.write_newest(bound_seconds, lambda: None), begun + bound_seconds - time.monotonic()]

    def write_newest_when_freed(self, bound_seconds: float, in_the_way: str, tries: int) -> bool:
        """The answer, where what is in the writer's way goes after so many tries."""

        def free() -> None:
            if (self.report().get("failed") or {}).get("times", 0) >= tries and Path(in_the_way).is_file():
                Path(in_the_way).unlink()  # the writer makes a folder of that name

        return self.custody.write_newest(bound_seconds, free)

    def deaths(self, count: int) -> list[bool]:
        """Wait until custody has said so often that it was its writer that died; others' are another test's."""
        found: list[bool] = []
        while len(found) < count:
            found += [True for death in zygote.deaths(1.0) if self.custody.is_writers(death)]
        return found

    def look_after(self, seconds: float) -> int | None:
        """The agent looks again so much later; the writer's pid then."""
        self.now += seconds
        self.custody.look()
        return self.custody._writer

    def heard_alarms(self) -> list[str]:
        return self.alarms

    def close(self, left_seconds: float) -> int | None:
        """The end with so much time left, where without that bound it would take for ever; the writer's pid after it."""
        custody_module.END_SECONDS = 10.0**6
        self.custody.close(lambda: left_seconds)
        return self.custody._writer

    def is_writers(self, pid: int) -> bool:
        return self.custody.is_writers(Death(pid, 0))

    def writer(self) -> int | None:
        return self.custody._writer

    def signal(self, signum: int) -> None:
        zygote.kill(self.custody._writer, signum)


benches = [Bench(descriptor) for descriptor in descriptors]
for line in sys.stdin:
    which, method, *arguments = json.loads(line)
    try:
        answer = {"value": getattr(benches[which], method)(*arguments)}
    except Exception as error:  # told to the test, which decides
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)
