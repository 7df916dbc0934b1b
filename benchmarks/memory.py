"""Peak memory of a rank, ours and the peers, at W = 1, 2 and 4; and how the time of an epoch grows with the number of images.

    python benchmarks/memory.py --source CIFAR10.tar.gz     about 10 minutes on 2 cores
    python benchmarks/memory.py                             memory only

"peak rank" is the largest resident size of the largest rank; "whole run" adds all processes (agents, fork servers, data loaders) with
shared pages counted once. Growth is measured on whole epochs of ResNet-18, from tars with the first images of each class of `--source`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from contest import entered
from contestants import DDP, Workload, bare, ours, peers
from precision import native_precision
from processes import BenchmarkError, end_in_order_when_told, started, tail
from table import machine, mebibytes, middle, print_table, spread

STEPS = 6
"""Enough for every buffer of a step to have existed, the prefetched batches included."""
SIZES = (5_000, 10_000, 20_000, 50_000)
CLASSES = 10
TEST_PER_CLASS = 100
NEVER = 10**9


def main() -> int:
    """Parse, measure, print."""
    end_in_order_when_told()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=64, help="samples per rank and step")
    parser.add_argument(
        "--source", type=Path, default=None, help="a tar with train/<class>/<image> and test/<class>/<image>, 50,000 + 10,000 images"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="training images in an epoch")
    parser.add_argument("--rounds", type=int, default=2, help="epochs measured at each size")
    parser.add_argument("--quick", action="store_true", help="worlds 1 and 2, up to 10,000 images, one round")
    flags = parser.parse_args()
    worlds, sizes, rounds = ([1, 2], SIZES[:2], 1) if flags.quick else (flags.worlds, tuple(flags.sizes), flags.rounds)
    print(machine(), "\n")
    try:
        memory_of_ranks(worlds, flags.batch)
        if flags.source is None:
            print("\nGrowth of the epoch's time is not measured: give a tar of images with --source")
        else:
            growth(flags.source, sizes, rounds)
    except BenchmarkError as error:
        print(f"memory: {error}", file=sys.stderr)
        return 1
    return 0


def memory_of_ranks(worlds: Sequence[int], batch: int) -> None:
    """One contestant at a time, so that nobody's pages push out another's."""
    rows = []
    cores = len(os.sched_getaffinity(0))
    for world in worlds:
        workload = Workload(world=world, batch=batch, threads=max(1, cores // world))
        with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch:
            for number, contestant in enumerate((bare(workload), ours(workload, Path(scratch, "run")), *peers(workload))):
                with entered(contestant, workload.threads, Path(scratch, f"{number}.log")) as player:
                    burst = player.burst(workload.warmup + STEPS)
                    whole = mebibytes(player.memory_bytes())
                rows.append([contestant.name, str(world), contestant.settings, mebibytes(burst.peak_rss_bytes), whole])
                print(f"... world {world}: {contestant.name} done", file=sys.stderr, flush=True)
    print(f"ResNet-50, imagenet stem, {native_precision()}, batch {batch} per rank\n")
    print_table(("contestant", "world", "settings", "peak rank", "whole run"), rows)


def growth(source: Path, sizes: Sequence[int], rounds: int) -> None:
    """Time of an epoch at each size, sizes alternating, and the straight line through them."""
    epochs: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="ddp-bench-") as scratch:
        tars = {size: cut(source, Path(scratch, f"{size}.tar"), size // CLASSES) for size in sizes}
        for number in range(rounds):
            for size in sizes:
                epochs[size].append(epoch_seconds(tars[size], size, Path(scratch, f"{size}-{number}"), Path(scratch, "cache")))
                print(f"... {size} images, round {number + 1}: {epochs[size][-1]:.1f} s", file=sys.stderr, flush=True)
    medians = [float(np.median(epochs[size])) for size in sizes]
    slope, intercept = np.polyfit(sizes, medians, 1)
    left_over = np.array(medians) - (slope * np.array(sizes) + intercept)
    fit = 1 - float((left_over**2).sum() / ((np.array(medians) - np.mean(medians)) ** 2).sum())
    print(f"\nResNet-18, imagenet stem, batch 256, world 1; n = {rounds} epochs at each size, evaluation not counted\n")
    rows = [
        [str(s), f"{middle(epochs[s], 1)} s", spread(epochs[s], 1), f"{m / s * 1e6:.0f} us"] for s, m in zip(sizes, medians, strict=True)
    ]
    print_table(("images", "epoch", "min - max", "per image"), rows)
    print(f"\nepoch seconds = {slope * 1e6:.0f} us x images {intercept:+.2f} s, R^2 = {fit:.4f}")


def epoch_seconds(tar: Path, images: int, run_dir: Path, cache: Path) -> float:
    """One epoch, from the end of its first step to the end of its last, scaled to all its steps."""
    settings = {
        "data.source": tar,
        "data.cache_dir": cache,
        "data.global_batch": 256,
        "model.name": "resnet18",
        "optim.epochs": 1,
        "optim.lr": 0.01,
        "checkpoint.every_seconds": "null",
        "checkpoint.every_steps": NEVER,
        "distributed.device": "cpu",
        "telemetry.port": 0,
        "telemetry.log_every_steps": 1,
        "telemetry.tensorboard": "false",
    }
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    log = run_dir.with_suffix(".log")
    with started([str(DDP), "local", "--workers", "1", "--run-dir", str(run_dir), *pairs], log) as process:
        code = process.wait()
    if code:
        raise BenchmarkError(f"an epoch of {images} images left with {code}; its log ends:\n{tail(log)}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [line["time"] for line in lines if line["kind"] == "train"]
    return float((times[-1] - times[0]) / (len(times) - 1) * images / 256)


def cut(source: Path, destination: Path, per_class: int) -> Path:
    """A tar with the first `per_class` training images of each class of `source`, and `TEST_PER_CLASS` test images of each."""
    seen: Counter[str] = Counter()
    with tarfile.open(source) as whole, tarfile.open(destination, "w") as part:
        for member in whole:
            place = member.name.strip("./").rpartition("/")[0]
            seen[place] += member.isfile()
            content = whole.extractfile(member)
            if content and seen[place] <= (per_class if place.startswith("train") else TEST_PER_CLASS):
                part.addfile(member, io.BytesIO(content.read()))
    return destination


if __name__ == "__main__":
    sys.exit(main())
