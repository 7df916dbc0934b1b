"""Real processes for the tests: starting them below a zygote, and watching those that are not ours to wait for.

Watched by pidfd, so a reused number cannot deceive and nobody has to poll.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE_SECONDS = 60.0
"""A bound against hanging only; what is waited for takes milliseconds on a quiet machine."""


_PROGRAM = Path(__file__).with_name("zygote_parent.py")


class Parent:
    """A process with a zygote (the program beside this file), told what to do over a pipe."""

    def __init__(self, preload):
        self.process = subprocess.Popen(
            [sys.executable, _PROGRAM, json.dumps(list(preload))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._spawned = []

    def ask(self, method, *arguments):
        """The answer, or (kind, sentence) of the error."""
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["value"] if "value" in answer else (answer["kind"], answer["error"])

    def spawn(self, target, environment=None, log=None, is_deaf=False, **arguments):
        """Fork a child that runs a function of `zygote_targets`, or `module:function`; gives its pid."""
        where = target if ":" in target else f"zygote_targets:{target}"
        answer = self.ask("spawn", where, arguments, environment or {}, str(log) if log else None, is_deaf)
        if isinstance(answer, int):
            with contextlib.suppress(ProcessLookupError):  # it may have ended already
                self._spawned.append(os.pidfd_open(answer))
        return answer

    def deaths(self, count):
        """The next deaths, as {pid: code}."""
        found = []
        while len(found) < count:
            more = self.ask("deaths", PATIENCE_SECONDS)
            assert more, f"{count} were to end, of which have: {found}"
            found += more
        assert len(dict(found)) == len(found) == count
        return dict(found)

    def run(self, target, **options):
        """Spawn and wait: the exit code."""
        pid = self.spawn(target, **options)
        return self.deaths(1)[pid]

    def end(self):
        """With all that is below it: what should have died with it, and has not, must not outlive the tests either."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        for descriptor in self._spawned:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


class Watch:
    """A process that is alive now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def ends(self) -> bool:
        """Whether it ends within our patience."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(PATIENCE_SECONDS * 1000))

    def lives(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)


def exists(pid: int) -> bool:
    """Whether the number belongs to anything, zombies included."""
    return Path(f"/proc/{pid}").exists()


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
