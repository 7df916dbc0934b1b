"""Two nodes as two network namespaces with a switch between them: the cable is pulled, for a while or for good."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from drill import MEMORY_EVERY_STEPS, Drill
from outcome import lost_steps, recovery_seconds
from runs import Run
from table import LeftOutError, Row, Sight

from cases.survival import DISTURBED_AT, ended
from ddp_trainer.checkpoint.store import CheckpointStore

PREFIX = f"chaos{os.getpid() % 10000}"
SWITCH = f"{PREFIX}s"
PORT = "29400"
DOWN_SECONDS = 20.0
PEER_TIMEOUT_SECONDS = 20
GONE_WITHIN_SECONDS = 60.0
"""The floor of a hang, its echo, the peer timeout, and room for a busy machine."""
LEFT = (161, 162)


def cable_back(drill: Drill) -> Iterator[Row]:
    """The link between two nodes is down for 20 s."""
    reference, sight = drill.undisturbed(2), Sight()
    with _two_nodes(drill, {}) as nodes:
        since = _pull(nodes[0])
        time.sleep(DOWN_SECONDS)  # this is the fault itself
        _switch("up")
        codes = [node.wait() for node in nodes]
        sight.fact(f"exits {codes}", codes == [0, 0])
        ended(nodes[0], sight, reference)
        noted = [event["cause"] for event in nodes[0].of_kind("fault")]
        sight.fact(f"faults noted: {', '.join(noted) or 'none'}", len(noted) <= 2)
        lost = lost_steps(nodes[0])
        sight.fact(f"{lost} steps lost", lost <= 4)
        seconds = recovery_seconds(nodes[0], since)
    expected = "training goes on, or all meet again; ends with the undisturbed bits"
    yield sight.row(f"link between 2 nodes down for {DOWN_SECONDS:.0f} s", expected, seconds, lost)


def cable_gone(drill: Drill) -> Iterator[Row]:
    """It stays down: each side finds that out for itself, and leaves with a code that a cluster retries."""
    sight = Sight()
    with _two_nodes(drill, {"distributed.peer_timeout_seconds": PEER_TIMEOUT_SECONDS}) as nodes:
        since = _pull(nodes[0])
        took = []
        for node in nodes:
            node.wait()
            took.append(time.time() - since)
        for number, node in enumerate(nodes):
            sight.fact(f"node {number} left with {node.code}", node.code in LEFT)
            sight.fact("in a sentence" if "Traceback" not in node.output else "with a traceback", "Traceback" not in node.output)
        sight.fact(f"after {max(took):.0f} s", max(took) <= GONE_WITHIN_SECONDS)
        lost = _kept(nodes[0], sight)
    timeout = f"peer_timeout_seconds={PEER_TIMEOUT_SECONDS}"
    expected = (
        f"both leave with 161 or 162 within {GONE_WITHIN_SECONDS:.0f} s; node 0's state is on disk, at most {MEMORY_EVERY_STEPS} steps old"
    )
    yield sight.row(f"link down for good, {timeout}", expected, lost_steps=lost)


def _kept(node: Run, sight: Sight) -> int:
    """Look at what it has left on disk; how many of the steps that it had done are not in it."""
    verified = list(CheckpointStore(node.run_dir / "checkpoints").verified())
    bad = [step for step, manifest, _ in verified if manifest is None]
    sight.fact(f"{len(bad)} of {len(verified)} checkpoints bad", verified and not bad)
    newest, done = max((step for step, manifest, _ in verified if manifest), default=0), max(line["step"] for line in node.metrics)
    sight.fact(f"step {newest} of {done} on disk", done - MEMORY_EVERY_STEPS <= newest)
    return int(done - newest)


def _pull(node: Run) -> float:
    node.trained_to(DISTURBED_AT)
    _switch("down")
    return time.time()


@contextlib.contextmanager
def _two_nodes(drill: Drill, settings: dict[str, Any]) -> Iterator[list[Run]]:
    home = drill.new_folder("run")
    try:
        _lay_cables()
        yield [
            drill.start_as(
                ["launch"],
                settings,
                {"network": f"{PREFIX}{index}", "step_seconds": 0.1},
                home,
                {
                    "PET_NNODES": "2",
                    "PET_NODE_RANK": str(index),
                    "MASTER_ADDR": "10.77.0.1",
                    "MASTER_PORT": PORT,
                    "GLOO_SOCKET_IFNAME": "cable",
                },
            )
            for index in range(2)
        ]
    finally:
        drill.clear(keep=True)
        for name in (f"{PREFIX}0", f"{PREFIX}1", SWITCH):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _lay_cables() -> None:
    try:
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "bridge", "up")
        for index in range(2):
            node, port = f"{PREFIX}{index}", f"port{index}"
            _ip("netns", "add", node)
            _ip("-n", SWITCH, "link", "add", port, "type", "veth", "peer", "name", "cable", "netns", node)
            _ip("-n", SWITCH, "link", "set", port, "master", "bridge", "up")
            _ip("-n", node, "address", "add", f"10.77.0.{index + 1}/24", "dev", "cable")
            for name in ("lo", "cable"):
                _ip("-n", node, "link", "set", name, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise LeftOutError(f"no network namespaces here: {str(said).strip()}; run as root, with iproute2") from None


def _switch(state: str) -> None:
    """The switch's port to node 1, whose carrier goes with it."""
    _ip("-n", SWITCH, "link", "set", "port1", state)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


CASES = (cable_back, cable_gone)
