"""Start runs that are to be disturbed, and know what the undisturbed one gives.

Every run is a real `ddp local` (or `ddp launch`) of the small task, forked from one warm process, since importing torch costs more than
most cases' work. What is left of it at the end of a case is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "integration"))

from runs import REPOSITORY, RUNS, Run, wait_until_gone  # noqa: E402  # found by the line above

from ddp_trainer.resilience.compiler_import import postpone  # noqa: E402
from ddp_trainer.resilience.zygote import Zygote  # noqa: E402

PRELOAD = ("torch.distributed", "torch.nn.parallel", "torchvision.models", "ddp_trainer.resilience.agent", "ddp_trainer.cli")
STEPS = 60
STEP_SECONDS = 0.03
NEVER = 10**9
SETTINGS: dict[str, Any] = {
    "task.name": "small_task:Small",
    "data.source": "sample",
    "data.global_batch": 32,
    "data.micro_batches": 8,
    "optim.lr": 0.02,
    "optim.max_steps": STEPS,
    "precision.dtype": "fp32",
    "precision.threads_per_rank": 1,
    "distributed.device": "cpu",
    "distributed.backend": "gloo",
    "checkpoint.every_steps": 10,
    "checkpoint.every_seconds": "null",
    "checkpoint.memory_every_steps": 2,
    "telemetry.port": 0,
    "telemetry.log_every_steps": 1,
    "telemetry.eval_every_epochs": NEVER,
    "telemetry.tensorboard": "false",
}
MEMORY_EVERY_STEPS = 2


def run_command(argv: Sequence[str]) -> None:
    """The forked child's body: the same `main()` as the console script's, with this run's faults in place."""
    import faulty_system

    from ddp_trainer.cli import main
    from ddp_trainer.resilience import entrypoint

    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    entrypoint.TERMINATION_LOG = Path(os.environ.get("TERMINATION_LOG", entrypoint.TERMINATION_LOG))
    faulty_system.install(faulty_system.plan(), os.getpid())
    sys.argv = ["ddp", *argv]
    main()


class Drill:
    """One for the whole suite. `folder` holds the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        postpone()  # as `ddp local` does
        self._warm = Zygote.fork(("faulty_system", *PRELOAD))
        self._warm.wait_ready()
        self._started: list[Run] = []
        self._references: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._losses: dict[tuple[int, int], dict[int, float]] = {}
        self._count = 0

    def start(
        self,
        *,
        workers: int = 4,
        procs: int = 1,
        settings: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
        run_dir: Path | None = None,
    ) -> Run:
        """`ddp local` with `workers` agents of `procs` ranks; `plan` as in small_task and faulty_system."""
        words = ["local", "--workers", str(workers)]
        return self.start_as(words, {"distributed.procs_per_node": procs, **(settings or {})}, plan, run_dir)

    def start_as(
        self,
        words: Sequence[str],
        settings: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
        run_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        """Any command of `ddp`, on a run directory."""
        self._count += 1
        home, log = run_dir or self.new_folder("run"), self.folder / f"ddp-{self._count}.log"
        pairs = {**SETTINGS, "data.cache_dir": str(self.folder / "cache"), **settings}
        argv = [*words, "--run-dir", str(home), *(word for key, value in pairs.items() for word in ("--set", f"{key}={value}"))]
        path = os.pathsep.join([str(REPOSITORY), str(HERE)])
        chaos = json.dumps({"step_seconds": STEP_SECONDS, **(plan or {})})
        pid = self._warm.spawn(
            "drill:run_command", {"argv": argv}, {**os.environ, "PYTHONPATH": path, "CHAOS": chaos, **(environment or {})}, log
        )
        run = Run(self._warm, pid, log, home)
        RUNS[pid] = run
        self._started.append(run)
        return run

    def new_folder(self, name: str) -> Path:
        """A path that nobody has used."""
        self._count += 1
        return self.folder / f"{name}-{self._count}"

    def undisturbed(self, world_size: int = 4, steps: int = STEPS) -> dict[str, Tensor]:
        """The final state that nobody disturbed; trained once for each world size and length."""
        from outcome import state_of

        if (world_size, steps) not in self._references:
            run = self.start(workers=world_size, settings={"optim.max_steps": steps}, plan={"step_seconds": 0.0})
            if run.wait() != 0:
                raise RuntimeError(f"the undisturbed run left with {run.code}:\n{run.output}")
            self._references[world_size, steps] = state_of(run, steps)
            self._losses[world_size, steps] = {line["step"]: line["loss"] for line in run.metrics if line["kind"] == "train"}
        return self._references[world_size, steps]

    def undisturbed_losses(self, world_size: int = 4, steps: int = STEPS) -> dict[int, float]:
        """The loss of each step of that run."""
        self.undisturbed(world_size, steps)
        return self._losses[world_size, steps]

    def clear(self, *, keep: bool = False) -> None:
        """Kill what a case has left running, and remove its runs, unless they are to be kept."""
        for run in self._started:
            if run.code is None:
                tree = [pid for pid in run.processes() if pid != run.pid]
                self._warm.kill(run.pid, signal.SIGKILL)
                run.wait()
                wait_until_gone(tree)
            if not keep:
                shutil.rmtree(run.run_dir, ignore_errors=True)
            RUNS.pop(run.pid, None)
        self._started.clear()

    def close(self) -> None:
        """End the warm process, and with it all that is left."""
        self.clear()
        self._warm.close()
