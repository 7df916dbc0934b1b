"""The generation barrier: how agents meet, and how whoever learns of trouble makes all of them meet again.

Node 0's agent hosts a store. In it stands one number, the generation. Joining a generation is to claim one's own place in it and to wait
until every place is claimed, so nobody who is dead can be counted. Asking for the next generation is a compare-and-set from the one
that failed, so that many agents who notice one incident ask for the same number, and there is no cascade. Healthy agents see the new
number within one monitor interval and come back.

A plug-in of torch's rendezvous registry: `rendezvous_handler_registry.create_handler(RendezvousParameters(backend="generation", ...))`.
Every wait is bounded by `distributed.peer_timeout_seconds`.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # the stubs do not export them
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ddp_trainer.errors import ConfigError, PeerLostError
from ddp_trainer.resilience.fault import Fault

BACKEND = "generation"
POLL_SECONDS = (0.01, 0.25)
"""First and longest pause between two looks while waiting: quick when all are near, cheap for the store when one is far."""
CONNECT_SECONDS = 2.0
"""Bound of one attempt to connect; attempts follow each other until the peer timeout."""
OPERATION_SECONDS = 10.0
"""Bound of one store operation: far above a busy store's answer (milliseconds), far below anybody's patience."""
LOOPBACK = "127.0.0.1"
BACKLOG = 1024
"""Connections that may wait to be accepted: all agents and ranks of one machine at once, by far."""
HOST_SECONDS = 5.0
"""How long the rendezvous port may be in use: a connection of somebody else's that is closing, or a predecessor on its way out."""
FAREWELL_SECONDS = 5.0
"""How long node 0 keeps the store open for the others to read the end."""

T = TypeVar("T")


def _nothing() -> None:
    """The wait has nothing else to do."""


class StoreLostError(PeerLostError):
    """The store does not answer: node 0's agent is gone, or cannot be reached."""


class SupersededError(Exception):
    """A newer generation has begun while this one was forming: meet again."""


class GenerationBarrier(RendezvousHandler):
    """One node's view of the barrier. Used by one thread."""

    def __init__(self, *, node: int, nodes: int, host: str, port: int, run_id: str, timeout_seconds: float) -> None:
        self.node = node
        self.nodes = nodes
        self.host = host
        self.port = port
        self.generation = -1
        """The generation this node has joined last; -1 before the first."""
        self.while_waiting: Callable[[], None] = _nothing
        """Called at every look while waiting; may raise to end the wait."""
        self._run_id = run_id
        self._timeout_seconds = timeout_seconds
        self._token = uuid.uuid4().hex
        self._store: Store | None = None
        if node == 0:
            self._store = self._host()

    # --- torch's interface -------------------------------------------------------------------------------------------------------

    def get_backend(self) -> str:
        """The name in torch's registry."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Ranks meet in the agents' store, under a prefix of the generation."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the newest generation and wait until it is complete.

        Raises:
            PeerLostError: somebody did not come within the peer timeout; the message names them.
            RendezvousClosedError: the run has ended; `ending` says how.
        """
        deadline = time.monotonic() + self._timeout_seconds
        while True:
            try:
                if self._join(deadline):
                    store = PrefixStore(self.prefix, self._connected(deadline))
                    return RendezvousInfo(store, self.node, self.nodes, RendezvousStoreInfo(self.host, self.port))
            except StoreLostError:
                self._forget_store()
                if time.monotonic() >= deadline:
                    raise

    def is_closed(self) -> bool:
        """Whether the run has ended for all."""
        return self.ending() is not None

    def set_closed(self) -> None:
        """Torch's form of `close`, without a reason."""
        self.close("{}")

    def num_nodes_waiting(self) -> int:
        """1 when this node's generation is over, which makes a torch agent re-form."""
        return int(self.is_superseded())

    def get_run_id(self) -> str:
        """The run's name."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing to do: the store goes with its host's process."""
        return True

    # --- what the agent uses beyond it -------------------------------------------------------------------------------------------

    @property
    def prefix(self) -> str:
        """Keys of this generation's ranks."""
        return f"ranks/{self.generation}/"

    def is_superseded(self) -> bool:
        """Whether somebody has asked for a newer generation. One small request."""
        return self._newest() > self.generation

    def ask_for_next(self) -> None:
        """Make everybody re-form, once per incident however many ask."""
        self._ask_beyond(self.generation)

    def post_fault(self, fault_json: str) -> None:
        """Propose the root cause of this generation's end; the first one stands."""
        self._do(lambda store: store.compare_set(f"fault/{self.generation}", "", fault_json))

    def fault(self) -> str | None:
        """The root cause agreed for this generation."""
        return self._peek(f"fault/{self.generation}")

    def post_echo(self, fault_json: str) -> None:
        """Say that ranks here failed because of somebody else."""
        self._do(lambda store: store.compare_set(f"echo/{self.generation}", "", fault_json))

    def echo(self) -> str | None:
        """The first such word in this generation."""
        return self._peek(f"echo/{self.generation}")

    def post_finished(self) -> None:
        """All ranks of this node have finished this generation's work. Call once per generation."""
        self._do(lambda store: store.add(f"finished/{self.generation}", 1))

    def all_finished(self) -> bool:
        """Whether every node has."""
        return int(self._do(lambda store: store.add(f"finished/{self.generation}", 0))) >= self.nodes

    def share(self, key: str, value: str) -> None:
        """Node 0: tell the other nodes of this generation something."""
        self._do(lambda store: store.set(f"{key}/{self.generation}", value))

    def shared(self, key: str) -> str:
        """What node 0 told this generation; waits at most `OPERATION_SECONDS` for it.

        Raises:
            SupersededError: a newer generation has begun, so node 0 may never say it.
            StoreLostError: node 0 did not say it in time.
        """
        deadline = time.monotonic() + OPERATION_SECONDS
        while (value := self._peek(f"{key}/{self.generation}")) is None:
            if self.is_superseded():
                raise SupersededError
            if time.monotonic() >= deadline:
                raise StoreLostError(f"node 0 did not tell {key} of generation {self.generation} within {OPERATION_SECONDS:.0f} s")
            self.while_waiting()
            time.sleep(POLL_SECONDS[0])
        return value

    def close(self, ending_json: str) -> None:
        """End the run for all agents, with these words; the first ones stand."""
        self._do(lambda store: store.compare_set("ending", "", ending_json))
        self.ask_for_next()

    def ending(self) -> str | None:
        """How the run ended, if it has."""
        return self._peek("ending")

    def farewell(self) -> None:
        """The common end was read here; as node 0, keep the store open until all have read it, at most `FAREWELL_SECONDS`."""
        with contextlib.suppress(StoreLostError):
            self._do(lambda store: store.set(f"left/{self.node}", "1"))
            everybody = [f"left/{node}" for node in range(self.nodes)]
            deadline = time.monotonic() + FAREWELL_SECONDS
            while self.node == 0 and time.monotonic() < deadline and not self._do(lambda store: store.check(everybody)):
                time.sleep(POLL_SECONDS[0])

    # --- inside ------------------------------------------------------------------------------------------------------------------

    def _join(self, deadline: float) -> bool:
        """One attempt: True when the generation is complete, False when a newer one has begun."""
        self._connected(deadline)
        if (ending := self.ending()) is not None:
            raise RendezvousClosedError(ending)
        newest = self._newest()
        claim = self._do(lambda store: store.compare_set(f"node/{newest}/{self.node}", "", self._token))
        if newest == self.generation or claim.decode() != self._token:
            # this place was taken by oneself before a fault, or by a predecessor that has died: it cannot be taken twice
            if newest != self.generation:
                lost = Fault("peer_loss", self.node, None, 0, 0, "the agent was lost and has been replaced")
                self._do(lambda store: store.compare_set(f"fault/{newest}", "", lost.to_json()))
            self._ask_beyond(newest)
            return False
        self.generation = newest
        self._do(lambda store: store.add(f"joined/{newest}", 1))
        pause = POLL_SECONDS[0]
        while self._newest() == newest:
            if int(self._do(lambda store: store.add(f"joined/{newest}", 0))) >= self.nodes:
                return True
            if time.monotonic() >= deadline:
                raise PeerLostError(
                    f"{self._absent(newest)} did not come to generation {newest} within {self._timeout_seconds:.0f} s; "
                    f"see why they do not start, or raise distributed.peer_timeout_seconds"
                )
            self.while_waiting()
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS[1])
        return False

    def _absent(self, generation: int) -> str:
        absent = [n for n in range(self.nodes) if not self._peek(f"node/{generation}/{n}")]
        listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")  # noqa: PLR2004  # a line, not a list
        return f"node{'s' * (len(absent) > 1)} {listed}"

    def _newest(self) -> int:
        return int(self._do(lambda store: store.add("generation", 0)))

    def _ask_beyond(self, generation: int) -> None:
        self._do(lambda store: store.compare_set("generation", str(generation), str(generation + 1)))

    def _peek(self, key: str) -> str | None:
        if not self._do(lambda store: store.check([key])):
            return None
        return bytes(self._do(lambda store: store.get(key))).decode()

    def _do(self, operation: Callable[[Store], T]) -> T:
        if self._store is None:
            raise StoreLostError(f"the store of node 0 at {self.host}:{self.port} is gone")
        try:
            return operation(self._store)
        except (DistError, RuntimeError) as error:
            raise StoreLostError(f"the store of node 0 at {self.host}:{self.port} does not answer: {str(error).splitlines()[0]}") from None

    def _host(self) -> Store:
        deadline = time.monotonic() + HOST_SECONDS
        while True:
            try:
                return TCPStore(
                    self.host,
                    self.port,
                    is_master=True,
                    wait_for_workers=False,
                    timeout=timedelta(seconds=OPERATION_SECONDS),
                    master_listen_fd=_listener(self.host, self.port),
                )
            except (DistError, RuntimeError, OSError) as error:
                if time.monotonic() >= deadline:
                    raise ConfigError(
                        f"the rendezvous port {self.port} on this node cannot be opened: {str(error).splitlines()[0]}; "
                        f"stop what uses it, or set another MASTER_PORT"
                    ) from None
            time.sleep(POLL_SECONDS[1])

    def _connected(self, deadline: float) -> Store:
        while self._store is None:
            try:
                self._store = TCPStore(self.host, self.port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))
                self._store.set_timeout(timedelta(seconds=OPERATION_SECONDS))
            except (DistError, RuntimeError) as error:
                if time.monotonic() >= deadline:
                    raise PeerLostError(
                        f"node 0 does not answer at {self.host}:{self.port} after {self._timeout_seconds:.0f} s "
                        f"({str(error).splitlines()[0]}); see whether it runs, or raise distributed.peer_timeout_seconds"
                    ) from None
                self.while_waiting()
                time.sleep(POLL_SECONDS[1])
        return self._store

    def _forget_store(self) -> None:
        if self.node != 0:
            self._store = None
            self.generation = -1  # a new store starts counting anew
            self._token = uuid.uuid4().hex


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


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    host, _, port = parameters.endpoint.rpartition(":")
    return GenerationBarrier(
        node=int(parameters.config["node"]),
        nodes=parameters.max_nodes,
        host=host,
        port=int(port),
        run_id=parameters.run_id,
        timeout_seconds=float(parameters.config["timeout_seconds"]),
    )


def register() -> None:
    """Enter the barrier in torch's registry; calling it again changes nothing."""
    rendezvous_handler_registry.register(BACKEND, _create)
