"""A warm process from which others are forked in milliseconds.

Importing torch costs seconds of CPU; forking a process that has it imported costs milliseconds. So an agent forks a zygote as its very
first act, before it has a thread, and asks it for ranks; `ddp local` asks one for agents. Whoever is forked dies with its parent
(parent-death signal SIGKILL, all the way down), so killing any process of a run leaves no ghost that trains on.

The zygote must stay single-threaded and must not touch CUDA: a lock held by another thread, or a CUDA context, does not survive a
fork. It runs no user code itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ddp_trainer.errors import RANK_CRASHED, DdpError
from ddp_trainer.parentage import adopt_orphans, children, die_with

ASKING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What asks an agent to leave. Slurm and systemd may send it to a whole tree, where only agents are to act on it."""
MESSAGE_BYTES = 256 * 1024
"""Largest request: a configuration and an environment are a few KiB."""
REPLY_SECONDS = 120.0
"""Bound of one request, the zygote's first imports included (4 to 40 s on a busy 2-core machine)."""


@dataclass(frozen=True)
class Death:
    """A child that has ended: `code` is its exit code, or minus the signal that killed it."""

    pid: int
    code: int
    seen_at: float | None = None
    """When the zygote learned of it, which is at once."""


class ZygoteError(DdpError):
    """The zygote died, or could not import what it was to preload."""

    exit = RANK_CRASHED


class Zygote:
    """The parent's handle on its zygote."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._deaths: deque[Death] = deque()
        self._ready: bool | str | None = None  # not heard of yet, ready, or why not

    @classmethod
    def fork(cls, preload: Sequence[str]) -> Zygote:
        """Start a zygote. Call it before this process has a second thread; returns at once, the imports go on in the zygote."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            mine.close()
            _serve(theirs, preload, parent)
        theirs.close()
        return cls(pid, mine)

    def fileno(self) -> int:
        """Readable when a child has ended: for `select`."""
        return self._channel.fileno()

    def wait_ready(self) -> None:
        """Block until the preload is done, at most `REPLY_SECONDS`.

        Raises:
            ZygoteError: naming the import that failed. A preload that fails in silence would only make every restart slow.
        """
        if self._ready is None:
            self._ready = self._receive("ready")["ready"]
        if self._ready is not True:
            raise ZygoteError(f"the fork server cannot import what ranks need: {self._ready}")

    def spawn(
        self,
        target: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path | None = None,
        name: str = "",
        is_deaf: bool = False,
    ) -> int:
        """Fork a child that runs `module:function(**arguments)` and exits with what it returns; gives its pid.

        Its environment is exactly `environment`; its output is appended to `log` where given; `ps` and `top` show `name` (15 characters).
        One that `is_deaf` ignores `ASKING_SIGNALS` from its first instant on.
        """
        self.wait_ready()
        request = {"target": target, "arguments": arguments, "environment": dict(environment)}
        self._send({**request, "log": str(log) if log else None, "name": name, "is_deaf": is_deaf})
        return int(self._receive("pid")["pid"])

    def kill(self, pid: int, signum: int) -> None:
        """Signal a child. The zygote does it, since it alone knows that the number has not been reused."""
        self._send({"kill": pid, "signal": int(signum)})

    def kill_orphans(self) -> None:
        """End what killed children have left behind: processes of their own, such as a data loader's, which are the zygote's by now."""
        self._send({"orphans": True})

    def deaths(self, timeout_seconds: float = 0.0) -> list[Death]:
        """Children that ended since the last call, waiting at most `timeout_seconds` for the first."""
        while select.select([self._channel], [], [], 0.0 if self._deaths else timeout_seconds)[0]:
            self._sort_in(self._read())
        found = list(self._deaths)
        self._deaths.clear()
        return found

    def close(self) -> None:
        """End the zygote and, through the parent-death signal, every child it still has."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as error:
            raise ZygoteError(f"the fork server (pid {self.pid}) is gone: {error}") from error

    def _read(self) -> dict[str, Any]:
        try:
            data = self._channel.recv(MESSAGE_BYTES)
        except OSError as error:
            raise ZygoteError(f"the fork server (pid {self.pid}) is gone: {error}") from error
        if not data:
            raise ZygoteError(f"the fork server (pid {self.pid}) is gone")
        message: dict[str, Any] = json.loads(data)
        return message

    def _sort_in(self, message: dict[str, Any]) -> dict[str, Any]:
        if "died" in message:
            self._deaths.append(Death(message["died"], message["code"], message["time"]))
        return message

    def _receive(self, key: str) -> dict[str, Any]:
        deadline = time.monotonic() + REPLY_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._channel], [], [], left)[0]:
                message = self._sort_in(self._read())
                if key in message:
                    return message
        raise ZygoteError(f"the fork server (pid {self.pid}) did not answer in {REPLY_SECONDS:.0f} s")


def _serve(channel: socket.socket, preload: Sequence[str], parent: int) -> NoReturn:
    try:
        die_with(parent)
        adopt_orphans()  # else they would be PID 1's, which in a container is the agent: zombies, or processes that go on
        os.setsid()  # Ctrl-C on the terminal is the parent's business: it stops its children in order
        for signum in ASKING_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        channel.send(json.dumps({"ready": _import(preload)}).encode())
        gc.collect()
        gc.freeze()  # keeps the shared pages shared: a collection in a child would write to all of them
        own: set[int] = set()
        while True:
            ready = select.select([channel.fileno(), wake_read], [], [])[0]
            if wake_read in ready:
                os.read(wake_read, 4096)
                _reap(channel, own)
            if channel.fileno() in ready:
                try:
                    data = channel.recv(MESSAGE_BYTES)
                except ConnectionResetError:  # the parent has left without reading what it was told
                    break
                if not data:
                    break
                _obey(json.loads(data), channel, own)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _import(preload: Sequence[str]) -> str | bool:
    try:
        for name in preload:
            importlib.import_module(name)
    except Exception as error:  # reported to the parent, which refuses to go on
        return f"{type(error).__name__}: {error}"
    return True


def _obey(request: dict[str, Any], channel: socket.socket, own: set[int]) -> None:
    if "kill" in request:
        if request["kill"] in own:
            os.kill(request["kill"], request["signal"])
        return
    if "orphans" in request:
        for pid in children(os.getpid()) - own:
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        return
    me = os.getpid()
    # held back until the child has its own dispositions: it is born with this process's, and would lose a signal sent at once
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING_SIGNALS)
    pid = os.fork()
    if pid == 0:
        channel.close()
        _become(request, me)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING_SIGNALS)
    own.add(pid)
    channel.send(json.dumps({"pid": pid}).encode())


def _reap(channel: socket.socket, own: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid not in own:  # an orphan
            continue
        own.discard(pid)
        channel.send(json.dumps({"died": pid, "code": os.waitstatus_to_exitcode(status), "time": time.time()}).encode())


def _become(request: dict[str, Any], parent: int) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for signum in ASKING_SIGNALS:
            signal.signal(signum, signal.SIG_IGN if request["is_deaf"] else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING_SIGNALS)
        die_with(parent)
        if request["name"]:
            Path("/proc/self/comm").write_text(request["name"], encoding="utf-8")  # a fork keeps its parent's command line
        os.environ.clear()
        os.environ.update(request["environment"])
        if request["log"]:
            _redirect(request["log"])
        module, _, name = request["target"].partition(":")
        code = getattr(importlib.import_module(module), name)(**request["arguments"]) or 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # the parent may have replaced its streams; a child's are its own descriptors
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
