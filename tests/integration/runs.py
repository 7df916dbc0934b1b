"""Real `ddp` processes for tests. Each is forked from one warm process, since importing torch costs more than most tests' work.

The forked child runs the same `main()` as the console script, with its own arguments and environment; `cold_ddp` starts the real script.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ddp_trainer.resilience.zygote import Zygote
from ddp_trainer.telemetry.events import read_events, read_metrics

WARM = ("torch.distributed", "torch.nn.parallel", "torchvision.models", "ddp_trainer.resilience.agent", "ddp_trainer.cli")
"""What the warm process has imported."""
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 150.0


def run_command(argv):
    """The forked child's body."""
    from ddp_trainer.cli import main
    from ddp_trainer.resilience import entrypoint

    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    # a container's kubelet mounts a file for the last words; here a test may name one
    entrypoint.TERMINATION_LOG = Path(os.environ.get("TERMINATION_LOG", entrypoint.TERMINATION_LOG))
    sys.argv = ["ddp", *argv]
    main()


def run_apart(argv, errors):
    """Like `run_command`, with a file of its own for what goes to stderr."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    run_command(argv)


@dataclass
class Run:
    """One `ddp` process and its run directory."""

    zygote: Zygote
    pid: int
    log: Path
    run_dir: Path
    code: int | None = None

    def wait(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.code is None:
            assert time.monotonic() < deadline, f"still running after {PATIENCE_SECONDS} s:\n{self.output}"
            self._look(timeout_seconds=0.5)
        return self.code

    def _look(self, timeout_seconds=0.0):
        for death in self.zygote.deaths(timeout_seconds):
            RUNS[death.pid].code = death.code

    @property
    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def events(self):
        return read_events(self.run_dir / "events.jsonl")

    def of_kind(self, kind):
        return [event for event in self.events if event["kind"] == kind]

    @property
    def metrics(self):
        return read_metrics(self.run_dir / "metrics.jsonl")

    @property
    def progress(self):
        return json.loads((self.run_dir / "progress.json").read_text())

    def losses(self):
        return [line["loss"] for line in self.metrics if line["kind"] == "train"]

    def words_of_agents(self):
        return [json.loads(path.read_text()) for path in sorted((self.run_dir / "logs").glob("agent-*.end.json"))]

    def until(self, fact, what):
        """Wait for a fact about the run, with a bound."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._look()
            ended = self.code is not None  # asked first, so that what the run did last is still seen
            if found := fact():
                return found
            assert not ended, f"ended with {self.code} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE_SECONDS} s:\n{self.output}"
            time.sleep(0.02)

    def trained_to(self, step, attempt=0):
        """Wait until a train line of `step` or later was written, by `attempt` or a later one."""

        def lines():
            return [m for m in self.metrics if m["kind"] == "train" and m["step"] >= step and m.get("attempt", 0) >= attempt]

        return self.until(lines, f"step {step}")[-1]

    def processes(self):
        """pid -> role ("supervisor", "nursery", "agent", "zygote", "rank", "writer") of every living process of this run."""
        roles = ("supervisor", "nursery", "agent", "zygote", "rank")
        found, level = {self.pid: roles[0]}, [self.pid]
        for role in roles[1:]:
            level = [pid for parent in level for pid in children(parent)]
            found.update(dict.fromkeys(level, role))
        return {pid: "writer" if command(pid) == "ddp-writer" else role for pid, role in found.items()}

    def pids(self, role):
        return [pid for pid, its in self.processes().items() if its == role]


RUNS: dict[int, Run] = {}


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def wait_until_gone(pids):
    """The kernel ends a killed run's processes one after the other, from the top of the tree."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there after {PATIENCE_SECONDS} s: {left}"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
