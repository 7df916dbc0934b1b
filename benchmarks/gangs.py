"""Four nodes on one machine, ours and torchrun's: started, watched by what their ranks note, hurt, and started again.

A node of ours is one `ddp launch`, as in a container: it imports torch for itself, and its snapshots in memory die with it. A node of the
peers is one torchrun with a rank. Whoever kills a node kills all its processes, as the loss of a machine would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from contestants import DDP, PEERS
from precision import native_precision
from processes import BenchmarkError, family, started, wait_for
from prometheus_client.parser import text_string_to_metric_families

Found = TypeVar("Found")

NODES = 4
NEVER = 10**9
TORCHRUN = Path(sys.executable).with_name("torchrun")


@dataclass
class Node:
    """One node's place: its command's log, and the block that stops it."""

    log: Path
    stack: contextlib.ExitStack
    process: Any = None


@dataclass
class Gang:
    """All nodes. Enter it with `running`."""

    folder: Path
    command: Callable[[int], list[str]]
    """Of a node."""
    environment: Callable[[int], dict[str, str]]
    nodes: list[Node] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)
    """Ours: where each node says how it is."""

    @property
    def run_dir(self) -> Path:
        """Ours: the run directory. Theirs: where they save."""
        return self.folder / "run"

    @property
    def stamps(self) -> Path:
        """What the ranks note."""
        return self.folder / "stamps.jsonl"

    def start(self, node: int) -> float:
        """Start a node, for the first time or in the place of a dead one; says when."""
        self.nodes[node].stack.close()
        at = time.time()
        entering = started(self.command(node), self.nodes[node].log, PEERS, self.environment(node))
        self.nodes[node].process = self.nodes[node].stack.enter_context(entering)
        return at

    def start_all(self) -> float:
        """Start every node; says when the first was."""
        return min([self.start(node) for node in range(NODES)])

    def kill(self, *nodes: int) -> float:
        """SIGKILL all processes of nodes at once, as a power cut would; says when."""
        victims = [process for node in nodes for process in family(self.nodes[node].process.pid)]
        at = time.time()
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        for node in nodes:
            self.nodes[node].process.wait()
        return at

    def terminate_all(self, bound_seconds: float) -> float:
        """SIGTERM every node, as a cluster that wants its machines back, and wait until they have left; says when."""
        at = time.time()
        for node in self.nodes:
            node.process.send_signal(signal.SIGTERM)
        for node in self.nodes:
            node.process.wait(bound_seconds)
        return at

    def signal_rank(self, rank: int, signum: signal.Signals) -> float:
        """Send a signal to the newest process that has trained as `rank`; says when."""
        pid = next(mark["pid"] for mark in reversed(self.marks()) if mark["rank"] == rank)
        at = time.time()
        os.kill(pid, signum)  # a rank of this gang, as it said itself
        return at

    def marks(self) -> list[dict[str, Any]]:
        """What the ranks have noted, in order."""
        return whole_lines(self.stamps)

    def reading(self, name: str) -> float | None:
        """Ours: a metric of node 0's, without labels; None while it does not say."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return next((sample.value for family in families for sample in family.samples if sample.name == name), None)
        return None

    def wait(self, look: Callable[[], Found | None], bound_seconds: float, what: str) -> Found:
        """Until something is there, or node 0 ends without it.

        Raises:
            BenchmarkError: with the end of node 0's log.
        """
        return wait_for(look, self.nodes[0].process, self.nodes[0].log, bound_seconds, what)

    def within(self, look: Callable[[], Found | None], bound_seconds: float) -> Found | None:
        """The same for those that may not come back: None then."""
        try:
            return self.wait(look, bound_seconds, "")
        except BenchmarkError:
            return None


@contextlib.contextmanager
def running(folder: Path, command: Callable[[Gang, int], list[str]], environment: Callable[[int], dict[str, str]]) -> Iterator[Gang]:
    """A gang, all of whose nodes have been started; at the end of the block they are killed together."""
    with contextlib.ExitStack() as stack:
        gang = Gang(folder, lambda node: command(gang, node), environment)
        gang.run_dir.mkdir()
        gang.nodes = [Node(folder / f"node-{node}.log", stack.enter_context(contextlib.ExitStack())) for node in range(NODES)]
        try:
            yield gang
        finally:
            gang.kill(
                *[number for number, node in enumerate(gang.nodes) if node.process is not None]
            )  # one by one they wait for each other
            digest = hashlib.sha256(str(gang.run_dir.absolute()).encode()).hexdigest()[:12]
            for left in Path("/dev/shm").glob(f"ddp-{digest}-node-*"):  # noqa: S108  # what a killed agent of ours cannot clear
                shutil.rmtree(left, ignore_errors=True)


def ours(model: str, batch: int) -> tuple[Callable[[Gang, int], list[str]], Callable[[int], dict[str, str]]]:
    """Command and environment of our nodes: everything about checkpoints and faults at its default."""
    port = free_port()

    def command(gang: Gang, node: int) -> list[str]:
        gang.ports[node] = free_port()
        settings = settings_of_ours(model, batch, gang.stamps) | {"telemetry.port": gang.ports[node]}
        pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return [str(DDP), "launch", "--run-dir", str(gang.run_dir), *pairs]

    def environment(node: int) -> dict[str, str]:
        return {"PET_NNODES": str(NODES), "PET_NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    return command, environment


def settings_of_ours(model: str, batch: int, stamps: Path) -> dict[str, Any]:
    """What our nodes train, the watched task in front; everything about checkpoints and faults stays at its default."""
    return {
        "task.name": "stamped:Stamped",
        "task.options.stamps": stamps,
        "data.source": "sample",
        "data.global_batch": NODES * batch,
        "data.micro_batches": NODES,
        "model.name": model,
        "optim.epochs": NEVER,
        "optim.lr": 0.01,
        "precision.threads_per_rank": 1,
        "distributed.device": "cpu",
        "telemetry.log_every_steps": 1,
        "telemetry.eval_every_epochs": NEVER,
    }


def torchrun(script: str, model: str, batch: int) -> tuple[Callable[[Gang, int], list[str]], Callable[[int], dict[str, str]]]:
    """Command and environment of a peer's nodes: the c10d rendezvous, more restarts than it needs, a save every five steps."""
    endpoint = f"127.0.0.1:{free_port()}"

    def command(gang: Gang, node: int) -> list[str]:  # noqa: ARG001  # c10d finds out by itself
        elastic = [f"--nnodes={NODES}", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=bench"]
        same = [
            f"--model={model}",
            f"--batch={batch}",
            f"--precision={native_precision()}",
            "--threads=1",
            "--workers=1",
            "--channels-last",
        ]
        where = [f"--resume={gang.run_dir}", f"--stamps={gang.stamps}", f"--steps={NEVER}"]
        return [str(TORCHRUN), *elastic, "--max-restarts=10", str(PEERS / f"{script}.py"), *same, *where]

    return command, lambda _: {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
