"""From the start of a run to its first step: 4 agents on this machine, ours beside torchrun. Restarts are recovery.py's.

    python benchmarks/startup.py [--trials 3]     about 3 minutes on 2 cores

Ours is `ddp local --workers 4`. The peer is plain torchrun (c10d rendezvous, 4 agents, one rank each) running peers/examples_imagenet.py.
Both train ResNet-50 at the same batch. The break-down of ours comes from its own events and from marks that rank 0 makes; "machinery" is
all but model building and the step itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gangs
from contestants import DDP, PEERS
from gangs import NODES, running, whole_lines
from processes import BenchmarkError, end_in_order_when_told, started, wait_for
from table import machine, middle, print_table, spread
from timeline import NOT_MACHINERY, PARTS, Incident

START_SECONDS = 300.0
NEVER = 10**9


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
    print(f"{NODES} agents x 1 rank, {flags.model}, imagenet stem, batch {flags.batch} per rank; n = {trials}, trials alternate\n")
    ours: list[Incident] = []
    theirs: list[float] = []
    try:
        for number in range(trials):
            if flags.only != "torchrun":
                ours.append(try_ours(flags.model, flags.batch))
            if flags.only != "ours":
                theirs.append(try_torchrun(flags.model, flags.batch))
            print(f"... trial {number + 1} of {trials} done", file=sys.stderr, flush=True)
    except BenchmarkError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 1
    seconds = [start.total_seconds for start in ours]
    rows = [["ours (ddp local)", _seconds(seconds), spread(seconds, 1)]]
    rows.append(["torchrun c10d + examples_imagenet", _seconds(theirs), spread(theirs, 1)])
    print_table(("", "start -> first step", "min - max"), rows)
    if ours:
        print("\nWhere ours spends it (medians):\n")
        _print_parts(ours)
    return 0


def try_ours(model: str, batch: int) -> Incident:
    """One start of ours."""
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder:
        run_dir, stamps, log = Path(folder, "run"), Path(folder, "stamps.jsonl"), Path(folder, "log")
        settings = gangs.settings_of_ours(model, batch, stamps) | {"telemetry.port": 0}
        pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [str(DDP), "local", "--workers", str(NODES), "--run-dir", str(run_dir), *pairs]
        began = time.time()
        with started(command, log, PEERS) as process:
            stepped = wait_for(lambda: _event(run_dir, "first_step"), process, log, START_SECONDS, "the first step")
            marks = {"began": 0.0, "form": _event(run_dir, "form") - began, "stepped": stepped - began}  # type: ignore[operator]  # formed, as it stepped
            for mark in whole_lines(stamps):
                if mark["rank"] == 0:
                    marks.setdefault(mark["what"], mark["time"] - began)
            return Incident(marks)


def try_torchrun(model: str, batch: int) -> float:
    """One start of the peer: seconds to its first step."""
    peer = gangs.torchrun("examples_imagenet", model, batch)
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, running(Path(folder), *peer) as gang:
        began = gang.start_all()

        def stepped() -> dict[str, Any] | None:
            return next((mark for mark in gang.marks() if mark["what"] == "step"), None)

        return float(gang.wait(stepped, START_SECONDS, "torchrun's first step")["time"]) - began


def _event(run_dir: Path, kind: str) -> float | None:
    """When it first happened."""
    return next((event["time"] for event in whole_lines(run_dir / "events.jsonl") if event["kind"] == kind), None)


def _print_parts(starts: Sequence[Incident]) -> None:
    rows = []
    for name, _, _ in PARTS:
        if name in starts[0].parts():
            words = name + (" (not machinery)" if name in NOT_MACHINERY else "")
            rows.append([words, _seconds([start.parts()[name] for start in starts], 2)])
    rows.append(["total", _seconds([start.total_seconds for start in starts], 2)])
    rows.append(["of it machinery", _seconds([start.machinery_seconds for start in starts], 2)])
    print_table(("part", "start"), rows)


def _seconds(values: Sequence[float], digits: int = 1) -> str:
    return f"{middle(values, digits)} s" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
