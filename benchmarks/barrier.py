"""The generation barrier beside torchrun's rendezvous: how long n nodes take to meet, and what they cost the store once they have.

    python benchmarks/barrier.py [--trials 3] [--sizes 4,64,1000]     about 5 minutes on 2 cores

Nodes are simulated by crowd.py: node 0, with the store, is a process of its own, the others are threads of a few processes. Each trial
starts anew: all meet; they rest for 10 s, each looking after the others as its agent does; one node reports a fault, and all meet again.
"CPU of the host" is what node 0's process uses at rest, the store and its own agent's looks together, in percent of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

# torch's client asks the name server who 127.0.0.1 is, and a crowd on one machine asks so much at once that answers are lost: 5 s each
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # connections that end with their process are no news

import crowd
import psutil
from processes import BenchmarkError, end_in_order_when_told
from table import machine, print_table, spread

CROWDS = 4
"""Processes over which the nodes other than node 0 are spread."""
REST_SECONDS = 10.0
SETTLE_SECONDS = 1.0
CAP_SECONDS = 120.0
PEER_SIZES = 64
"""Above this torchrun's rendezvous is not tried: every node writes the whole state, and every other one's write is then refused."""


@dataclass
class Trial:
    """What one trial showed; None: not within the cap."""

    form_seconds: float | None = None
    requests_per_second: float | None = None
    cpu_percent: float | None = None
    reform_seconds: float | None = None


class Nodes:
    """The processes, led through pipes."""

    def __init__(self, kind: str, nodes: int, stack: contextlib.ExitStack) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        fork = multiprocessing.get_context("fork")  # torch is imported here already
        others = [part for part in (list(range(1 + i, nodes, CROWDS)) for i in range(CROWDS)) if part]
        self.pipes: list[Connection] = []
        for part in ([0], *others):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=crowd.be, args=(kind, part, nodes, port, theirs), daemon=True)
            process.start()
            stack.callback(_end, process)
            theirs.close()
            self.pipes.append(ours)
            self.await_all("ready", 60.0, [ours])  # the store is there before anybody asks for it
            if part == [0]:
                self.host = psutil.Process(process.pid)
        self.last = nodes - 1
        self._last_pipe = next(pipe for pipe, part in zip(self.pipes, [[0], *others], strict=True) if self.last in part)

    def tell(self, *command: Any) -> None:
        """The same to all."""
        for pipe in self.pipes:
            pipe.send(command)

    def fail(self) -> None:
        """The last node has a fault."""
        self._last_pipe.send(("fail", self.last))

    def await_all(self, word: str, bound_seconds: float, pipes: list[Connection] | None = None) -> list[Any] | None:
        """What each process says with this word; None when one does not within the bound."""
        missing = list(pipes or self.pipes)
        said, deadline = [], time.monotonic() + bound_seconds
        while missing:
            ready = wait(missing, max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    heard, *rest = pipe.recv()
                except EOFError:
                    raise BenchmarkError("a process with nodes has died; see its words above") from None
                if heard == word:
                    said.append(rest[-1] if rest else None)
                    missing.remove(pipe)
        return said

    def requests(self) -> int:
        """Sent by all so far."""
        self.tell("count")
        return sum(self.await_all("requests", CAP_SECONDS) or [])


def _end(process: Any) -> None:
    process.kill()
    process.join()


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--sizes", default="4,64,1000")
    parser.add_argument("--rest", type=float, default=REST_SECONDS, help="seconds")
    parser.add_argument("--only", choices=tuple(crowd.KINDS), default=None)
    flags = parser.parse_args()
    print(machine())
    print(f"n = {flags.trials} per row; node 0 is one process, the other nodes are threads of up to {CROWDS} more\n")
    wanted = [(kind, size) for size in map(int, flags.sizes.split(",")) for kind in crowd.KINDS if flags.only in (None, kind)]
    tried = [(kind, size) for kind, size in wanted if kind == "generation" or size <= PEER_SIZES]
    try:
        rows = [_row(kind, size, [one(kind, size, flags.rest) for _ in range(flags.trials)]) for kind, size in tried]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    columns = ("rendezvous", "nodes", "forms, s", "requests/s at rest", "CPU of the host", "re-forms after a fault, s")
    print_table(columns, rows)
    return 0


def one(kind: str, nodes: int, rest_seconds: float) -> Trial:
    """Meet, rest, fail, meet again."""
    trial = Trial()
    with _nodes(kind, nodes) as them:
        began = time.monotonic()
        them.tell("go")
        formed = them.await_all("formed", CAP_SECONDS)
        if formed is None:
            return trial
        trial.form_seconds = max(formed) - began
        time.sleep(SETTLE_SECONDS)
        requests, cpu, since = them.requests(), sum(them.host.cpu_times()[:2]), time.monotonic()
        time.sleep(rest_seconds)
        cpu_seconds, seconds = sum(them.host.cpu_times()[:2]) - cpu, time.monotonic() - since
        trial.requests_per_second = (them.requests() - requests) / seconds
        trial.cpu_percent = 100 * cpu_seconds / seconds
        failed = time.monotonic()
        them.fail()
        formed = them.await_all("formed", CAP_SECONDS)
        trial.reform_seconds = None if formed is None else max(formed) - failed
    return trial


@contextlib.contextmanager
def _nodes(kind: str, nodes: int) -> Iterator[Nodes]:
    with contextlib.ExitStack() as stack:
        yield Nodes(kind, nodes, stack)


def _row(kind: str, size: int, trials: list[Trial]) -> tuple[str, ...]:
    return (
        "ours" if kind == "generation" else "torchrun's c10d",
        f"{size:,}",
        _cell([trial.form_seconds for trial in trials], 2),
        _cell([trial.requests_per_second for trial in trials], 0),
        _cell([trial.cpu_percent for trial in trials], 1, " %"),
        _cell([trial.reform_seconds for trial in trials], 2),
    )


def _cell(values: list[float | None], digits: int, unit: str = "") -> str:
    """Median and spread; what did not end within the cap counts as longer than everything."""
    seen = sorted(value for value in values if value is not None)
    if len(seen) < len(values):
        return f"{len(values) - len(seen)} of {len(values)} not within {CAP_SECONDS:.0f} s"
    return f"{seen[len(seen) // 2]:.{digits}f}{unit} ({spread(seen, digits)})"


if __name__ == "__main__":
    sys.exit(main())
