"""What only a GPU can show: samples per second beside the limit and the peers, memory, and the time to 94 % and 95.5 % test accuracy.

    python benchmarks/gpu.py [--source CIFAR10.tar.gz] [--epochs 60]

Without a GPU it says so and ends with 0. Speed: ResNet-50 with the 3x3 stem, bf16, channels_last, world 1, all contestants
alternating; then ours at world 2 on the same GPU, over gloo with CUDA tensors (NCCL refuses two ranks on one GPU), which shows that it
works and what it costs, not how it scales. Accuracy: one run on all of CIFAR-10, evaluated every epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from contest import play
from contestants import DDP, Workload, bare, ours, peers
from processes import BenchmarkError, end_in_order_when_told, started, tail
from table import machine, mebibytes, middle, paired_ratio, print_table, spread
from throughput import start

TARGETS = (0.94, 0.955)
COLUMNS = ("contestant", "world", "settings", "samples/s", "min - max", "of limit", "peak GPU memory of a rank")


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="samples per step")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps in a turn")
    parser.add_argument("--compile", action="store_true", help="compile the limit, ours and the peers")
    parser.add_argument("--source", default="download", help="all of CIFAR-10, for the accuracy: a path, or download")
    parser.add_argument("--epochs", type=int, default=60, help="length of the accuracy run; 0 leaves it out")
    parser.add_argument("--lr", type=float, default=0.4, help="peak learning rate of the accuracy run at batch 512")
    flags = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("There is no GPU here that torch can use, so there is nothing to measure; the CPU's numbers come from: make bench")
        return 0
    print(machine())
    try:
        speed(
            Workload(batch=flags.batch, stem="cifar", device="cuda", precision="bf16", compile=flags.compile, warmup=20),
            flags.rounds,
            flags.steps,
        )
        if flags.epochs:
            accuracy(flags.source, flags.epochs, flags.batch, flags.lr, "on" if flags.compile else "off")
    except BenchmarkError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    return 0


def speed(workload: Workload, rounds: int, steps: int) -> None:
    """World 1 with everybody in turns, then ours at world 2 beside the limit at world 1."""
    print(f"ResNet-50, 3x3 stem, bf16, {workload.batch} samples per step; n = {rounds} turns of {steps} steps each\n")
    rows = []
    halves = replace(workload, world=2, batch=workload.batch // 2)
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch:
        alone = [bare(workload), ours(workload, Path(scratch, "alone")), *peers(workload)]
        pair = [bare(workload), ours(halves, Path(scratch, "pair"), ["--set", "distributed.backend=gloo"])]
        for field, environment in ((alone, {}), (pair, {"CUDA_VISIBLE_DEVICES": "0,0"})):
            with contextlib.ExitStack() as stack:
                players = []
                for number, contestant in enumerate(field):
                    # the same device twice: `ddp local` gives one entry of the list to each of its two agents
                    variables = environment if contestant.name == "ours" else {}
                    log = Path(scratch, f"{contestant.name}-{contestant.ranks}-{number}.log")
                    players.append(start(stack, contestant, workload, log, variables))
                seen = play(players, rounds, steps)
            limit = [burst.samples_per_second for burst in seen[0]]
            for i, contestant in enumerate(field):
                rates = [burst.samples_per_second for burst in seen[i]]
                memory = mebibytes(max(burst.peak_gpu_bytes for burst in seen[i]))
                cells = [middle(rates), spread(rates), f"{paired_ratio(rates, limit):.3f}", memory]
                rows.append([contestant.name, str(contestant.ranks), contestant.settings, *cells])
    print_table(COLUMNS, rows)


def accuracy(source: str, epochs: int, batch: int, lr: float, compile_mode: str) -> None:
    """Train on everything and report when each target was first reached."""
    settings = {
        "data.source": source,
        "data.global_batch": batch,
        "data.eval_batch": 1000,
        "model.name": "resnet50",
        "model.stem": "cifar",
        "optim.epochs": epochs,
        "optim.lr": lr,
        "precision.dtype": "bf16",
        "precision.compile": f'"{compile_mode}"',
        "distributed.device": "cuda",
        "telemetry.port": 0,
        "telemetry.log_every_steps": 20,
    }
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as folder:
        run_dir, log = Path(folder, "run"), Path(folder, "log")
        with started([str(DDP), "local", "--workers", "1", "--run-dir", str(run_dir), *pairs], log) as process:
            code = process.wait()
        if code:
            raise BenchmarkError(f"the accuracy run left with {code}; its log ends:\n{tail(log)}")
        events: list[dict[str, Any]] = [json.loads(line) for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        lines: list[dict[str, Any]] = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    began = next(event["time"] for event in events if event["kind"] == "form")
    tests = [line for line in lines if line["kind"] == "eval"]
    print(f"\nResNet-50, 3x3 stem, all of CIFAR-10, batch {batch}, peak learning rate {lr}, a schedule of {epochs} epochs, n = 1")
    print("time from the start of the ranks, checkpoints and an evaluation every epoch included; the length of the schedule matters\n")
    rows = []
    for target in TARGETS:
        hit = next((line for line in tests if line["accuracy"] >= target), None)
        rows.append([f"{target:.1%}", f"{hit['epoch']:.0f}" if hit else "not reached", f"{hit['time'] - began:.0f} s" if hit else "-"])
    rows.append([f"the end: {tests[-1]['accuracy']:.2%}", f"{tests[-1]['epoch']:.0f}", f"{tests[-1]['time'] - began:.0f} s"])
    print_table(("test accuracy", "epoch", "time"), rows)


if __name__ == "__main__":
    sys.exit(main())
