"""What a node's process does in the barrier's tests: meet, say whom it met, and come back when the generation is over, as an agent does."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousClosedError

from ddp_trainer.resilience.rendezvous import GenerationBarrier, StoreLostError

MONITOR_SECONDS = 0.02


def be(node: int, nodes: int, port: int, mailbox: str) -> int:
    """Be node `node` until the run is closed. Every meeting, and the end, is one datagram to `mailbox`."""
    reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reports.connect(mailbox)

    def report(**words: Any) -> None:
        reports.send(json.dumps({"node": node, "pid": os.getpid(), **words}).encode())

    barrier = GenerationBarrier(node=node, nodes=nodes, host="127.0.0.1", port=port, run_id="test", timeout_seconds=60)
    report(event="started")
    try:
        while True:
            try:
                store = barrier.next_rendezvous().store
                store.set(f"pid/{node}", str(os.getpid()))
                report(event="formed", generation=barrier.generation, met=[int(store.get(f"pid/{n}")) for n in range(nodes)])
                while not barrier.is_superseded():
                    time.sleep(MONITOR_SECONDS)
            except StoreLostError:
                report(event="store lost")
    except RendezvousClosedError as closed:
        report(event="closed", ending=str(closed))
    barrier.farewell()
    return 0


def host(nodes: int, port: int, mailbox: str) -> None:
    """Host the store and do nothing else, until stopped."""
    kept = GenerationBarrier(node=0, nodes=nodes, host="127.0.0.1", port=port, run_id="test", timeout_seconds=60)
    reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reports.connect(mailbox)
    reports.send(b'{"event": "hosting"}')
    while kept:
        signal.pause()
