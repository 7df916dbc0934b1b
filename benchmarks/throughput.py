"""Samples per second of the whole trainer beside the compute limit and three peers, in one interleaved run.

    python benchmarks/throughput.py            world 1 and 2, about 15 minutes on 2 cores
    python benchmarks/throughput.py --quick    about 3 minutes
    python benchmarks/throughput.py --compile  the compiled limit, ours compiled, and what a restart with a warm cache compiles

All contestants of a world are started and warmed up first, then take turns of a few seconds. "of limit" is the median of the ratios to
the bare loop's burst of the same round; "CPU ms/sample" counts all processes of a contestant, and hardly moves on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contest import Burst, Player, entered, play
from contestants import Contestant, Workload, bare, ours, peers
from precision import native_precision
from processes import BenchmarkError, end_in_order_when_told
from table import machine, mebibytes, middle, paired_ratio, print_table, spread

COLUMNS = ("contestant", "world", "settings", "samples/s", "min - max", "of limit", "CPU ms/sample", "peak rank")


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, world 1 and the best settings only")
    parser.add_argument("--compile", action="store_true", help="compare compiled networks instead")
    parser.add_argument("--worlds", type=int, nargs="+", default=None, help="default: 1 2 (--quick: 1)")
    parser.add_argument("--rounds", type=int, default=None, help="turns of each contestant; default 14 (--quick: 8)")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps in a turn")
    parser.add_argument("--batch", type=int, default=64, help="samples per rank and step")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--stem", choices=("imagenet", "cifar"), default="imagenet")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=native_precision())
    parser.add_argument("--only", nargs="+", default=None, help="contestants, such as: bare ours fabric")
    flags = parser.parse_args()
    rounds = flags.rounds or (8 if flags.quick else 14)
    cores = len(os.sched_getaffinity(0))
    workload = Workload(batch=flags.batch, model=flags.model, stem=flags.stem, precision=flags.precision)
    print(machine())
    print(
        f"{flags.model}, {flags.stem} stem, 32 x 32 pixels, {flags.precision}, batch {flags.batch} per rank; "
        f"n = {rounds} turns of {flags.steps} steps each\n"
    )
    try:
        if flags.compile:
            return compare_compiled(replace(workload, threads=cores, compile=True), rounds, flags.steps)
        rows = []
        for world in flags.worlds or ((1,) if flags.quick else (1, 2)):
            rows += compare(
                replace(workload, world=world, threads=max(1, cores // world)), rounds, flags.steps, quick=flags.quick, only=flags.only
            )
    except BenchmarkError as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1
    print_table(COLUMNS, rows)
    return 0


def compare(workload: Workload, rounds: int, steps: int, *, quick: bool, only: Sequence[str] | None) -> list[list[str]]:
    """All contestants at one world size; a table row for each.

    Raises:
        BenchmarkError: one of them failed; a table with a row missing would be no comparison.
    """
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch, contextlib.ExitStack() as stack:
        field = [bare(workload), ours(workload, Path(scratch, "run"))]
        field += [peer for peer in peers(workload) if not quick or peer.settings.startswith("best")]
        field = [c for c in field if only is None or c.name in only or c.name == "bare"]
        players = [start(stack, contestant, workload, Path(scratch, f"{i}.log")) for i, contestant in enumerate(field)]
        seen = play(players, rounds, steps)
    return [row(contestant, workload, seen[i], seen[0]) for i, contestant in enumerate(field)]


def start(
    stack: contextlib.ExitStack, contestant: Contestant, workload: Workload, log: Path, environment: dict[str, str] | None = None
) -> Player:
    """Enter a contestant and let it warm up."""
    player = stack.enter_context(entered(contestant, workload.threads, log, environment))
    player.burst(workload.warmup)
    print(f"... {contestant.name} ({contestant.settings}) is warm", file=sys.stderr, flush=True)
    return player


def row(contestant: Contestant, workload: Workload, mine: Sequence[Burst], limit: Sequence[Burst]) -> list[str]:
    """The table row of a contestant."""
    rates = [burst.samples_per_second for burst in mine]
    ratio = paired_ratio(rates, [burst.samples_per_second for burst in limit])
    processor = middle([burst.processor_seconds_per_sample * 1000 for burst in mine], 2)
    memory = mebibytes(max(burst.peak_rss_bytes for burst in mine))
    return [contestant.name, str(workload.world), contestant.settings, middle(rates), spread(rates), f"{ratio:.3f}", processor, memory]


def compare_compiled(workload: Workload, rounds: int, steps: int) -> int:
    """The compiled limit and ours; then ours once more on the cache that the first start filled."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        print("torch.compile needs a C++ compiler on the CPU (g++ or clang++) and none is installed: nothing to compare")
        return 0
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch, contextlib.ExitStack() as stack:
        cache = ["--set", f"precision.compile_cache_dir={scratch}/cache"]
        limit = bare(workload)
        players, starts = [], []
        for contestant, name in (
            (limit, "limit"),
            (ours(workload, Path(scratch, "cold"), cache), "cold"),
            (ours(workload, Path(scratch, "warm"), cache), "warm"),
        ):
            began = time.monotonic()
            # the limit has a cache of its own, and nobody profits from what earlier runs of this benchmark left behind
            environment = {"TORCHINDUCTOR_CACHE_DIR": f"{scratch}/cache-{name}"} if name == "limit" else None
            players.append(start(stack, contestant, workload, Path(scratch, f"{name}.log"), environment))
            starts.append(time.monotonic() - began)
        seen = play(players, rounds, steps)
    rows = []
    for i, title in enumerate(("bare, compiled", "ours, first start", "ours, restart with a warm cache")):
        cells = row(replace(players[i].contestant, name=title), workload, seen[i], seen[0])
        rows.append([*cells, f"{starts[i]:.0f} s", str(seen[i][0].compiled["misses"]), str(seen[i][0].compiled["hits"])])
    print_table((*COLUMNS, "start and warm-up", "graphs compiled", "from the cache"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
