"""Contestants that are all warm and take turns: one burst each, round after round, while the others sleep in a socket read.

Starting a process and warming it up costs half a minute; a burst costs seconds. So everybody is started once, and a round in which each
has one burst lasts less than the minute in which this machine changes its mind. The order rotates from round to round.

A contestant that fails ends the benchmark: a table with a row missing would be no comparison.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from contestants import PEERS, Contestant
from processes import BenchmarkError, family, started, stop, tail

START_SECONDS = 300.0
"""Bound of start, decoding and warm-up; compiling ResNet-50 takes a minute of it."""
BURST_SECONDS = 600.0
"""Bound of a burst, the first one with its compilation included: ten times what that takes on two cores."""


@dataclass(frozen=True)
class Burst:
    """What a contestant's ranks measured in one turn, put together."""

    samples_per_second: float
    """Of all ranks together."""
    peak_rss_bytes: int
    """Of its largest rank."""
    peak_gpu_bytes: int
    processor_seconds_per_sample: float
    """Of all its processes, data loaders and agents included: hardly changed by whoever else is using the machine."""
    compiled: dict[str, int]


class Player:
    """A running contestant."""

    def __init__(
        self, contestant: Contestant, process: subprocess.Popen[bytes], ranks: dict[int, Any], log: Path, start_seconds: float
    ) -> None:
        self.contestant = contestant
        self.process = process
        self.start_seconds = start_seconds
        """From the start of the process until all its ranks had their data and asked for orders."""
        self._ranks = ranks
        self._log = log

    def burst(self, steps: int) -> Burst:
        """Let it run its lead-in off the clock and `steps` on it; blocks until all ranks have answered.

        Raises:
            BenchmarkError: one of them did not, within `BURST_SECONDS`.
        """
        self.wake()
        lead = self.contestant.lead_steps
        before = self._processor_seconds()
        try:
            for lines in self._ranks.values():
                lines.write(json.dumps({"lead": lead, "steps": steps}) + "\n")
                lines.flush()
            answers = [json.loads(lines.readline()) for lines in self._ranks.values()]
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{self.contestant.name} stopped in a burst ({error}); its log ends:\n{tail(self._log)}") from None
        used = self._processor_seconds() - before
        self._signal_helpers(signal.SIGSTOP)
        samples = sum(a["samples"] for a in answers) / steps * (lead + steps)
        return Burst(
            samples_per_second=sum(a["samples_per_second"] for a in answers),
            peak_rss_bytes=max(a["peak_rss_bytes"] for a in answers),
            peak_gpu_bytes=max(a["peak_gpu_bytes"] for a in answers),
            processor_seconds_per_sample=used / samples,
            compiled=answers[0]["compiled"],
        )

    def wake(self) -> None:
        """Let stopped processes run, so that they can hear that they are to end."""
        self._signal_helpers(signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Of all its processes, shared pages divided among those that share them: ranks, agents, data loaders."""
        total = 0
        for process in family(self.process.pid):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def _processor_seconds(self) -> float:
        """Used so far by its processes, and by those that have ended and were waited for."""
        total = 0.0
        for process in family(self.process.pid):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def _signal_helpers(self, signum: signal.Signals) -> None:
        """Agents and fork servers look around ten times a second: a burden on the others' turns that would flatter their own."""
        if self.contestant.freezes:
            # children are stopped before their parents and woken after them: node 0's agent, the oldest, answers until the others are still
            order = family(self.process.pid)[:: -1 if signum == signal.SIGSTOP else 1]
            for process in order:
                if process.pid not in self._ranks:
                    with contextlib.suppress(psutil.Error):
                        process.send_signal(signum)


@contextlib.contextmanager
def entered(contestant: Contestant, threads: int, log: Path, environment: dict[str, str] | None = None) -> Iterator[Player]:
    """Start a contestant, and stop it at the end of the block.

    Raises:
        BenchmarkError: it did not come up.
    """
    variables = {"OMP_NUM_THREADS": str(threads), **(environment or {})}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [*contestant.command, *contestant.port_flag.format(port=port).split()]
        began = time.monotonic()
        with started(command, log, PEERS, variables) as process:
            ranks = _accept(server, contestant, process, log)
            player = Player(contestant, process, ranks, log, time.monotonic() - began)
            try:
                yield player
            finally:
                player.wake()
                # asked to stop while its ranks still wait for orders: a closed line would look like a fault to them
                stop(process)
                for lines in ranks.values():
                    with contextlib.suppress(OSError):
                        lines.close()


def play(players: Sequence[Player], rounds: int, steps: int) -> dict[int, list[Burst]]:
    """`rounds` rounds of one burst each, in rotating order; the bursts by the player's place in `players`."""
    seen: dict[int, list[Burst]] = {i: [] for i in range(len(players))}
    for number in range(rounds):
        for turn in range(len(players)):
            i = (turn + number) % len(players)
            seen[i].append(players[i].burst(steps))
    return seen


def _accept(server: socket.socket, contestant: Contestant, process: subprocess.Popen[bytes], log: Path) -> dict[int, Any]:
    """The lines to the ranks, by process number."""
    ranks: dict[int, Any] = {}
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        while len(ranks) < contestant.ranks:
            if ready.select(timeout=0.5):
                connection, _ = server.accept()
                connection.settimeout(BURST_SECONDS)
                lines = connection.makefile("rw", encoding="utf-8")
                ranks[json.loads(lines.readline())["pid"]] = lines
            elif process.poll() is not None or time.monotonic() > deadline:
                why = f"left with {process.returncode}" if process.returncode is not None else f"was not ready after {START_SECONDS:.0f} s"
                raise BenchmarkError(f"{contestant.name} ({contestant.settings}) {why}; its log ends:\n{tail(log)}")
    return ranks
