"""The sum of a model's gradients over the ranks of one machine: through memory that they share, beside gloo over the loopback interface.

    python benchmarks/gradient_sum.py                        W = 2 and 4, ResNet-50's 94 MB, half a minute

Nothing but the sum: no model, no step. The two alternate in the same processes, so that the machine's drift hits both; a turn takes as
long as its slowest rank.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from table import machine, middle, paired_ratio, print_table, spread

from ddp_trainer.exchange.shared_sum import Offer, SharedSum

RESNET50_PARAMETERS = 23_528_522
"""With ten classes, as the demo trains it."""
WARM_UP_TURNS = 3


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--elements", type=int, default=RESNET50_PARAMETERS, help="float32 numbers to be summed, in one bucket")
    flags = parser.parse_args()
    print(machine(), "\n")
    rows = []
    for world in flags.worlds:
        seconds = measure(world, flags.elements, flags.turns)
        for name, turns in seconds.items():
            times = [turn * 1000 for turn in turns]
            ratio = paired_ratio(turns, seconds["gloo"])
            rows.append([name, str(world), f"{middle(times, 1)} ms", f"{spread(times, 1)} ms", f"{ratio:.2f}"])
    print(f"{flags.elements * 4 / 1e6:.0f} MB of float32 in one bucket; n = {flags.turns}, turns alternate\n")
    print_table(("sum", "world", "time", "min - max", "of gloo's"), rows)
    return 0


def measure(world: int, elements: int, turns: int) -> dict[str, list[float]]:
    """Seconds of the slowest rank at each turn, by way."""
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder, SharedSum.offered(world) as offer:
        if offer is None:
            raise SystemExit("gradient_sum: this machine gives no memory that processes can share (memfd_create)")
        asked = json.dumps({"folder": folder, "elements": elements, "turns": turns, "offer": asdict(offer)})
        processes.start_processes(_rank, (world, asked), nprocs=world, start_method="spawn")
        return json.loads(Path(folder, "seconds").read_text(encoding="utf-8"))


def _rank(rank: int, world: int, asked: str) -> None:
    request = json.loads(asked)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    dist.init_process_group("gloo", init_method=f"file://{request['folder']}/meeting", rank=rank, world_size=world)
    shared = SharedSum.open(Offer(**request["offer"]), rank, world)
    if shared is None:
        raise SystemExit(f"gradient_sum: rank {rank} cannot open the memory of the ranks' parent")
    ways: dict[str, Callable[[torch.Tensor], object]] = {"gloo": dist.all_reduce, "shared memory": shared.add_up}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    bucket = torch.ones(request["elements"])
    for turn in range(WARM_UP_TURNS + request["turns"]):
        for name, add_up in ways.items():
            bucket.fill_(1)
            dist.barrier()
            began = time.perf_counter()
            add_up(bucket)
            took = torch.tensor(time.perf_counter() - began)
            if not bool((bucket == world).all()):
                raise SystemExit(f"gradient_sum: {name} gives a wrong sum")
            dist.all_reduce(took, dist.ReduceOp.MAX)
            if turn >= WARM_UP_TURNS:
                seconds[name].append(took.item())
    if rank == 0:
        Path(request["folder"], "seconds").write_text(json.dumps(seconds), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
