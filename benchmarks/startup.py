"""From the start of a run to its first step, and from the SIGKILL of a rank to the first new step: 4 agents, ours beside torchrun.

    python benchmarks/startup.py [--trials 3]     about 10 minutes on 2 cores: a torchrun that does not come back is given 120 s each time

Ours is `ddp local --workers 4`. The peer is plain torchrun (c10d rendezvous, 4 agents on this machine, one rank each) running
peers/examples_imagenet.py with `--resume`. Both train ResNet-50 at the same batch and save every 5 steps; the rank is killed once step 12
is done. The break-down of ours comes from its own events and from marks that rank 0 makes; "machinery" is all but model building and the
step itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contestants import DDP, PEERS
from processes import BenchmarkError, end_in_order_when_told, family, started, wait_for
from table import machine, middle, print_table, spread
from timeline import NOT_MACHINERY, PARTS, Incident

AGENTS = 4
VICTIM_RANK = 2
KILL_AFTER_STEP = 12
SAVE_STEPS = 5
START_SECONDS = 300.0
PEER_RESTART_SECONDS = 120.0
"""torchrun was seen not to be back after this long; waiting longer says nothing more."""
NEVER = 10**9
TORCHRUN = Path(sys.executable).with_name("torchrun")


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one trial each")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="samples per rank and step")
    parser.add_argument("--only", choices=("ours", "torchrun"), default=None)
    flags = parser.parse_args()
    trials = 1 if flags.quick else flags.trials
    print(machine())
    print(f"{AGENTS} agents x 1 rank, {flags.model}, imagenet stem, bf16, batch {flags.batch} per rank; n = {trials}, trials alternate\n")
    starts, restarts, peer_starts, peer_restarts = [], [], [], []
    try:
        for number in range(trials):
            if flags.only != "torchrun":
                start, restart = try_ours(flags.model, flags.batch)
                starts.append(start)
                restarts.append(restart)
            if flags.only != "ours":
                first, back = try_torchrun(flags.model, flags.batch)
                peer_starts.append(first)
                peer_restarts.append(back)
            print(f"... trial {number + 1} of {trials} done", file=sys.stderr, flush=True)
    except BenchmarkError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 1
    print_table(
        ("", "start -> first step", "min - max", "SIGKILL of a rank -> first new step", "min - max", "back within 120 s"),
        [_ours_row(starts, restarts), _peer_row(peer_starts, peer_restarts)],
    )
    if starts:
        print("\nWhere ours spends it (medians):\n")
        _print_parts(starts, restarts)
    return 0


def try_ours(model: str, batch: int) -> tuple[Incident, Incident]:
    """One run of ours: its start, and its restart after a kill."""
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder:
        run_dir, stamps, log = Path(folder, "run"), Path(folder, "stamps.jsonl"), Path(folder, "log")
        settings = {
            "task.name": "stamped:Stamped",
            "task.options.stamps": stamps,
            "data.source": "sample",
            "data.global_batch": AGENTS * batch,
            "data.micro_batches": AGENTS,
            "model.name": model,
            "optim.epochs": NEVER,
            "optim.lr": 0.01,
            "checkpoint.every_seconds": "null",
            "checkpoint.every_steps": SAVE_STEPS,
            "distributed.device": "cpu",
            "telemetry.port": 0,
            "telemetry.log_every_steps": 1,
            "telemetry.eval_every_epochs": NEVER,
        }
        pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [str(DDP), "local", "--workers", str(AGENTS), "--run-dir", str(run_dir), *pairs]
        began = time.time()
        with started(command, log, PEERS) as process:
            wait_for(lambda: _stepped(run_dir, began, KILL_AFTER_STEP), process, log, START_SECONDS, f"step {KILL_AFTER_STEP}")
            start = _incident(run_dir, stamps, began)
            victim = next(m["pid"] for m in _lines(stamps) if m["what"] == "rank runs" and m["rank"] == VICTIM_RANK)
            killed = time.time()
            os.kill(victim, signal.SIGKILL)  # a rank of the run that was started three lines above
            wait_for(lambda: _formed_and_stepped(run_dir, killed), process, log, START_SECONDS, "a step after the kill")
            return start, _incident(run_dir, stamps, killed)


def try_torchrun(model: str, batch: int) -> tuple[float, float | None]:
    """One run of the peer: seconds to the first step, and from the kill to the first new step (None: not within the bound)."""
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, contextlib.ExitStack() as stack:
        stamps, saves = Path(folder, "stamps.jsonl"), Path(folder, "saves")
        saves.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        elastic = [
            "--nnodes",
            str(AGENTS),
            "--nproc-per-node",
            "1",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            endpoint,
            "--rdzv-id",
            "bench",
        ]
        script = [
            str(PEERS / "examples_imagenet.py"),
            "--model",
            model,
            "--batch",
            str(batch),
            "--threads",
            "1",
            "--workers",
            "1",
            "--channels-last",
        ]
        script += ["--steps", str(NEVER), "--resume", str(saves), "--stamps", str(stamps)]
        command = [str(TORCHRUN), *elastic, "--max-restarts", "10", *script]
        began = time.time()
        agents = [
            stack.enter_context(started(command, Path(folder, f"{number}.log"), PEERS, {"OMP_NUM_THREADS": "1"}))
            for number in range(AGENTS)
        ]
        log = Path(folder, "0.log")
        wait_for(
            lambda: _first(stamps, began, KILL_AFTER_STEP, frozenset()), agents[0], log, START_SECONDS, f"torchrun's step {KILL_AFTER_STEP}"
        )
        first = _first(stamps, began, 1, frozenset())
        old = frozenset(m["pid"] for m in _lines(stamps))
        victim = next(m["pid"] for m in _lines(stamps) if m["rank"] == VICTIM_RANK)
        killed = time.time()
        os.kill(victim, signal.SIGKILL)  # a rank of the agents that were started above
        back = None
        while back is None and time.time() < killed + PEER_RESTART_SECONDS and any(agent.poll() is None for agent in agents):
            time.sleep(0.1)
            back = _first(stamps, killed, 1, old)
        _stop_together(agents)
        assert first is not None
        return first, back


def _stop_together(agents: Sequence[subprocess.Popen[bytes]]) -> None:
    """Agents that are stopped one by one make the others wait for them."""
    for relatives in [family(agent.pid) for agent in agents]:
        for relative in relatives:
            with contextlib.suppress(Exception):  # already gone
                relative.kill()


def _first(stamps: Path, since: float, step: int, old: frozenset[int]) -> float | None:
    """Seconds from `since` until a process that is not an old one had done `step`, or a later step."""
    times = [m["time"] for m in _lines(stamps) if m["what"] == "step" and m["step"] >= step and m["pid"] not in old and m["time"] > since]
    return min(times) - since if times else None


def _stepped(run_dir: Path, since: float, step: int) -> float | None:
    """When ours had done `step`, or a later step, after `since`."""
    times = [m["time"] for m in _lines(run_dir / "metrics.jsonl") if m["kind"] == "train" and m["step"] >= step and m["time"] > since]
    return min(times) if times else None


def _formed_and_stepped(run_dir: Path, killed: float) -> float | None:
    formed = [e["time"] for e in _lines(run_dir / "events.jsonl") if e["kind"] == "form" and e["time"] > killed]
    return _stepped(run_dir, formed[-1], 1) if formed else None


def _incident(run_dir: Path, stamps: Path, began: float) -> Incident:
    """The marks of rank 0 and of node 0's events after `began`, of the last generation that was formed."""
    events = [e for e in _lines(run_dir / "events.jsonl") if e["time"] >= began]
    marks = {"began": 0.0}
    for event in events:
        if event["kind"] in {"form", "fault"}:
            marks[event["kind"]] = event["time"] - began
    for mark in _lines(stamps):
        if mark["rank"] == 0 and mark["time"] >= began + marks["form"]:
            marks[mark["what"]] = mark["time"] - began
    stepped = _stepped(run_dir, began + marks["form"], 1)
    assert stepped is not None
    return Incident({**marks, "stepped": stepped - began})


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _ours_row(starts: Sequence[Incident], restarts: Sequence[Incident]) -> list[str]:
    first, back = [i.total_seconds for i in starts], [i.total_seconds for i in restarts]
    return ["ours (ddp local)", _seconds(first), spread(first, 1), _seconds(back), spread(back, 1), f"{len(back)} of {len(back)}"]


def _peer_row(first: Sequence[float], back: Sequence[float | None]) -> list[str]:
    came = [seconds for seconds in back if seconds is not None]
    capped = [PEER_RESTART_SECONDS if seconds is None else seconds for seconds in back]
    median = f"> {PEER_RESTART_SECONDS:.0f} s" if len(came) * 2 < len(back) else _seconds(capped)
    return ["torchrun c10d + examples_imagenet", _seconds(first), spread(first, 1), median, spread(came, 1), f"{len(came)} of {len(back)}"]


def _print_parts(starts: Sequence[Incident], restarts: Sequence[Incident]) -> None:
    rows = []
    for name, _, _ in PARTS:
        cells = [_seconds([i.parts()[name] for i in incidents if name in i.parts()], 2) for incidents in (starts, restarts)]
        rows.append([name + (" (not machinery)" if name in NOT_MACHINERY else ""), *cells])
    rows.append(["total", *(_seconds([i.total_seconds for i in incidents], 2) for incidents in (starts, restarts))])
    rows.append(["of it machinery", *(_seconds([i.machinery_seconds for i in incidents], 2) for incidents in (starts, restarts))])
    print_table(("part", "start", "restart after SIGKILL"), rows)


def _seconds(values: Sequence[float], digits: int = 1) -> str:
    return f"{middle(values, digits)} s" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
