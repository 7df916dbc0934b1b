"""The store that node 0's agent hosts, as every agent reaches it: each operation is bounded, whatever happens to its host.

Torch's client waits for an answer without a bound: `add`, `check`, `compare_set` and the constructor itself hang for as long as the host
is frozen, or its network swallows packets, because the connection looks alive. So a thread of this module speaks over the connection, and
who asks waits for the thread, with a bound. A thread that hangs is left behind, with its connection, and ends when the kernel gives up.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import resource
import socket
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]  # the stubs do not export them

from ddp_trainer.errors import ConfigError, PeerLostError

CONNECT_SECONDS = 2.0
"""How long one attempt to connect may be refused or left without a reply; attempts follow each other until the caller's deadline."""
OPERATION_SECONDS = 10.0
"""Bound of one store operation: far above a busy store's answer (milliseconds), far below anybody's patience."""
RETRY_SECONDS = 0.25
"""Between two attempts to connect, and between two looks while one is under way."""
LOOPBACK = "127.0.0.1"
BACKLOG = 4096
"""Connections that may wait to be accepted: all agents and ranks of a large run at once, as far as the kernel allows."""
HOST_SECONDS = 5.0
"""How long the rendezvous port may be in use: a connection of somebody else's that is closing, or a predecessor on its way out."""
DESCRIPTORS = 65536
"""Open files that the host asks for: each agent and each rank of the run is one connection."""

LAST_SECONDS = CONNECT_SECONDS + 1.0
"""How long the process waits at its end for connections that were left, so that most have ended."""

T = TypeVar("T")

_left_behind: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _await_left_behind() -> None:
    """A thread that returns from torch while the interpreter ends aborts the process (SIGABRT), and the exit code would be lost."""
    deadline = time.monotonic() + LAST_SECONDS
    for thread in list(_left_behind):
        thread.join(max(0.0, deadline - time.monotonic()))


class StoreLostError(PeerLostError):
    """The store does not answer: node 0's agent is gone, or cannot be reached."""


class AgentStore:
    """One agent's way to the store; node 0's own is the store itself. Used by one thread."""

    def __init__(self, host: str, port: int, *, is_host: bool) -> None:
        """Raises ConfigError where the port is in use on node 0. Other nodes do not connect yet."""
        self._host, self._port = host, port
        self._is_host = is_host
        self._line: _Line | _Here | None = _Here(_serve(host, port)) if is_host else None
        self._where = f"the store of node 0 at {host}:{port}"
        self.patience_seconds = math.inf
        """Bound of one operation, where that is less than `OPERATION_SECONDS`: who has to leave soon cannot wait as long."""

    def connect(self, deadline: float, patience_seconds: float, while_waiting: Callable[[], None]) -> bool:
        """Have a connection, at the latest at `deadline` (monotonic seconds); True when it is a new one, perhaps to a new store.

        `while_waiting` is called a few times per second, and may raise to end the wait.

        Raises:
            PeerLostError: nobody answers; `patience_seconds` is for its sentence.
        """
        if self._line is not None:
            return False
        while True:
            line = _Line(self._open)
            try:
                line.opened(min(deadline, time.monotonic() + OPERATION_SECONDS), while_waiting)
            except (DistError, RuntimeError, OSError, Empty) as error:
                line.hang_up()
                if time.monotonic() >= deadline:
                    reason = "no answer" if isinstance(error, Empty) else str(error).splitlines()[0]
                    raise PeerLostError(
                        f"node 0 does not answer at {self._host}:{self._port} after {patience_seconds:.0f} s "
                        f"({reason}); see whether it runs, or raise distributed.peer_timeout_seconds"
                    ) from None
            except BaseException:
                line.hang_up()
                raise
            else:
                self._line = line
                # not at the interpreter's end: a thread that wakes then dies inside torch's destructors, loudly
                weakref.finalize(self, line.hang_up).atexit = False
                return True
            while_waiting()
            time.sleep(RETRY_SECONDS)

    def disconnect(self) -> None:
        """Leave the connection; on node 0, where there is none, nothing happens."""
        if self._line is not None and not self._is_host:
            self._line.hang_up()
            self._line = None

    @property
    def torchs(self) -> Store:
        """Torch's own object, for torch; its operations are not bounded."""
        if self._line is None or self._line.store is None:
            raise StoreLostError(f"{self._where} is gone")
        return self._line.store

    def do(self, operation: Callable[[Store], T]) -> T:
        """Run an operation on the store, within `OPERATION_SECONDS`, or `patience_seconds`.

        Raises:
            StoreLostError: no answer, or a connection that broke; it is left, and what follows fails at once until `connect`.
        """
        if self._line is None:
            raise StoreLostError(f"{self._where} is gone")
        bound_seconds = min(OPERATION_SECONDS, self.patience_seconds)
        try:
            answer: T = self._line.ask(operation, bound_seconds)
        except Empty:
            self.disconnect()
            raise StoreLostError(f"{self._where} did not answer within {bound_seconds:g} s") from None
        except (DistError, RuntimeError) as error:
            self.disconnect()
            raise StoreLostError(f"{self._where} does not answer: {str(error).splitlines()[0]}") from None
        except BaseException:
            self.disconnect()  # an answer may still be on its way, and must not be taken for the next one's
            raise
        return answer

    def has(self, keys: list[str]) -> bool:
        """Whether all of them are there."""
        return bool(self.do(lambda store: store.check(keys)))

    def peek(self, key: str) -> str | None:
        """The value, or None where there is none: a look, not a wait."""
        if not self.has([key]):
            return None
        return bytes(self.do(lambda store: store.get(key))).decode()

    def count(self, key: str, more: int = 0) -> int:
        """Add to a counter and read it, in one request."""
        return int(self.do(lambda store: store.add(key, more)))

    def first(self, key: str, value: str) -> str:
        """Write where nobody has, in one request; gives what stands there now."""
        return bytes(self.do(lambda store: store.compare_set(key, "", value))).decode()

    def missing(self, keys: list[str], most: int) -> list[int]:
        """Which keys are not there, as indices in order; a search by halves that ends soon after `most` have been found."""
        found: list[int] = []
        spans = [(0, len(keys))]
        while spans and len(found) < most:
            start, stop = spans.pop()
            if self.has(keys[start:stop]):
                continue
            if stop - start == 1:
                found.append(start)
            else:
                middle = (start + stop) // 2
                spans += [(middle, stop), (start, middle)]
        return found

    def _open(self) -> Store:
        # asked first in Python: torch tries for seconds where nobody listens, and a thread inside torch is not to be left lightly
        socket.create_connection((self._host, self._port), timeout=CONNECT_SECONDS).close()
        store = TCPStore(self._host, self._port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
        store.set_timeout(timedelta(seconds=OPERATION_SECONDS))
        return store


class _Here:
    """The host's own way: in its process nothing can come between."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ask(self, operation: Callable[[Store], Any], bound_seconds: float) -> Any:  # noqa: ARG002  # as over a line
        """The operation's result."""
        return operation(self.store)

    def hang_up(self) -> None:
        """Nothing to leave."""


class _Line:
    """A connection and the thread that speaks over it, one question at a time."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self.store: Store | None = None
        self._questions: SimpleQueue[Callable[[Store], Any] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        # a daemon: where it hangs, nobody waits for it at the end of the process
        self._thread = threading.Thread(target=_speak, args=(open_store, self._questions, self._answers), daemon=True, name="agent-store")
        self._thread.start()

    def opened(self, deadline: float, while_waiting: Callable[[], None]) -> None:
        """Wait for the connection; raises Empty at the deadline, or torch's error."""
        while True:
            try:
                self.store = self._answer(max(0.0, min(RETRY_SECONDS, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    raise
                while_waiting()
            else:
                return

    def ask(self, operation: Callable[[Store], Any], bound_seconds: float) -> Any:
        """The operation's result; raises Empty when it does not come in time, or the operation's error."""
        self._questions.put(operation)
        return self._answer(bound_seconds)

    def hang_up(self) -> None:
        """Let the thread end, now or when it is no longer stuck."""
        self.store = None
        self._questions.put(None)
        _left_behind.add(self._thread)

    def _answer(self, bound_seconds: float) -> Any:
        value, error = self._answers.get(timeout=bound_seconds)
        if error is not None:
            raise error
        return value


def _speak(open_store: Callable[[], Store], questions: SimpleQueue[Any], answers: SimpleQueue[Any]) -> None:
    """The thread: connect, say so, then question by question, until None or until it fails."""
    try:
        store = open_store()
        answers.put((store, None))
        while (operation := questions.get()) is not None:
            answers.put((operation(store), None))
    except Exception as error:  # it belongs to the thread that asked
        answers.put((None, error))


def _serve(host: str, port: int) -> Store:
    """Open the store on this node. Every agent and rank is one open file here, and 1,024, a usual limit, would refuse the next one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a smaller run does without
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    deadline = time.monotonic() + HOST_SECONDS
    while True:
        try:
            return TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=OPERATION_SECONDS),
                master_listen_fd=_listener(host, port),
            )
        except (DistError, RuntimeError, OSError) as error:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"the rendezvous port {port} on this node cannot be opened: {str(error).splitlines()[0]}; "
                    f"stop what uses it, or set another MASTER_PORT"
                ) from None
        time.sleep(RETRY_SECONDS)


def _listener(host: str, port: int) -> int | None:
    """The descriptor of an IPv4 socket that listens; None leaves it to torch, where node 0 has only IPv6 addresses.

    Torch's own listens as IPv6, and its store asks for the name of whoever connects: `::ffff:127.0.0.1` is not in /etc/hosts, so that
    became a question to the name server in the store's only thread, and 5 s of silence for all nodes whenever the answer was lost. On
    a cluster it is bound on every interface, since pods reach it by name; the port is the run's own, and a NetworkPolicy guards it.
    """
    if host == LOOPBACK:
        return socket.create_server((LOOPBACK, port), backlog=BACKLOG).detach()
    try:
        families = {found[0] for found in socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)}
    except OSError:  # a host that does not know its own name
        families = {socket.AF_INET}
    if socket.AF_INET not in families:
        return None
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG).detach()  # noqa: S104  # see above
