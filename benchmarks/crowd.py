"""Simulated nodes for the barrier's benchmark: many in one process, each a thread with its own connection, doing what agents do at rest.

Real are the store, its protocol, the sockets (of the loopback) and the rendezvous handlers; not there are ranks, networks and other
machines, and the nodes of one process share an interpreter, so that the times of a large crowd are upper bounds.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend as c10d_backend
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # the stubs do not export it
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ddp_trainer.resilience import agent_store, rendezvous

PATIENCE_SECONDS = 600
TORCHRUN_LOOK_SECONDS = 0.1
"""torchrun's default monitor interval."""
STACK_BYTES = 2**19

_requests = itertools.count()


MESSAGES = {"add": 1, "check": 1, "set": 1, "compare_set": 1, "get": 2}
"""What torch's client sends per call; `get` asks first whether the key is there."""


def _counted(name: str, messages: int) -> Callable[..., Any]:
    def call(store: Any, *arguments: Any) -> Any:
        for _ in range(messages):
            next(_requests)
        return getattr(TCPStore, name)(store, *arguments)

    return call


CountedStore = type("CountedStore", (TCPStore,), {name: _counted(name, messages) for name, messages in MESSAGES.items()})


class Generation:
    """A node with our barrier."""

    def __init__(self, node: int, nodes: int, port: int) -> None:
        self._barrier = rendezvous.GenerationBarrier(
            node=node, nodes=nodes, host="127.0.0.1", port=port, run_id="crowd", timeout_seconds=PATIENCE_SECONDS
        )

    def meet(self) -> None:
        """Until all are there."""
        self._barrier.next_rendezvous()

    def is_over(self) -> bool:
        """One look, after the pause before it; node 0 has more to look at, and decides."""
        barrier = self._barrier
        time.sleep(barrier.look_seconds)
        if barrier.node == 0:
            barrier.waiting()
            if barrier.fault() or barrier.echo():
                barrier.ask_for_next()
        return barrier.is_superseded()

    def fail(self) -> None:
        """A rank has died here."""
        self._barrier.post_fault("a rank died")


class C10d:
    """A node with torchrun's rendezvous."""

    def __init__(self, node: int, nodes: int, port: int) -> None:
        self._arguments = {
            "backend": "c10d",
            "endpoint": f"127.0.0.1:{port}",
            "run_id": "crowd",
            "min_nodes": nodes,
            "max_nodes": nodes,
            "local_addr": "127.0.0.1",
            "is_host": node == 0,
            "join_timeout": PATIENCE_SECONDS,
        }
        self._handler: Any = None
        self._has_failed = False
        if node == 0:
            self._connect()

    def _connect(self) -> None:
        self._handler = get_rendezvous_handler(RendezvousParameters(**self._arguments))

    def meet(self) -> None:
        """Until all are there."""
        if self._handler is None:
            self._connect()
        self._has_failed = False
        self._handler.next_rendezvous()

    def is_over(self) -> bool:
        """One look of torch's agent."""
        time.sleep(TORCHRUN_LOOK_SECONDS)
        return self._has_failed or self._handler.num_nodes_waiting() > 0

    def fail(self) -> None:
        """A rank has died here: this agent restarts its own, which the others see as a node that waits."""
        self._has_failed = True


KINDS: dict[str, Any] = {"generation": Generation, "c10d": C10d}


def be(kind: str, nodes: list[int], of: int, port: int, commands: Connection) -> None:
    """Be these of `of` nodes; says ("ready",), ("formed", round, monotonic seconds) and ("requests", n) through the pipe it is led by."""
    agent_store.TCPStore = CountedStore  # type: ignore[misc]  # a class in place of a class, which is the point
    c10d_backend.TCPStore = CountedStore  # type: ignore[misc]  # as above
    threading.stack_size(STACK_BYTES)
    them = {node: KINDS[kind](node, of, port) for node in nodes}
    go, talk, formed = threading.Event(), threading.Lock(), itertools.count()
    faults = dict.fromkeys(nodes, False)

    def live(node: int) -> None:
        go.wait()
        for number in itertools.count():
            them[node].meet()
            with talk:
                if (next(formed) + 1) % len(nodes) == 0:
                    commands.send(("formed", number, time.monotonic()))
            while not them[node].is_over():
                if faults[node]:
                    faults[node] = False
                    them[node].fail()

    for node in nodes:
        threading.Thread(target=live, args=(node,), daemon=True).start()
    commands.send(("ready",))
    while True:
        command, *arguments = commands.recv()
        if command == "go":
            go.set()
        elif command == "fail":
            faults[arguments[0]] = True
        else:
            with talk:
                commands.send(("requests", next(_requests)))
