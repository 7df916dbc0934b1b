"""Who takes part, and how each is started: one table that the benchmarks read.

Everybody gets the same network, stem, batch per rank, precision and threads. "default" is the tool's own way with nothing tuned, as its
examples and documentation have it; "best" is what was found fastest for it. `ours` is always the whole trainer: `ddp local`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from precision import native_precision

DDP = Path(sys.executable).with_name("ddp")
PEERS = Path(__file__).resolve().parent / "peers"

DEFAULT_LOADER = {"examples_imagenet": 4, "fabric": 0, "hf_accelerate": 0}
"""Data-loader processes at the tools' defaults: that script's own default, and DataLoader's."""
BEST = ("--channels-last", "--fused", "--ddp-knobs", "--images", "memory", "--workers", "1", "--persistent")
"""One worker per rank: augmentation of 32-pixel images needs a tenth of a core, and more processes only take turns with the ranks."""
KEPT_MEMORY = ("env", "MALLOC_TRIM_THRESHOLD_=4000000000", f"MALLOC_MMAP_THRESHOLD_={32 << 20}")
"""What our trainer does by itself (heap.py), as anybody can have it from the C library."""
PREFETCHED = 2
"""Batches that a DataLoader keeps ready for each of its processes, by default."""
NEVER_STEPS = 10**9
NEVER_SECONDS = 10**6


@dataclass(frozen=True)
class Workload:
    """What is the same for all."""

    world: int = 1
    batch: int = 64
    """Samples per rank and step."""
    threads: int = 2
    """Of a rank."""
    model: str = "resnet50"
    stem: str = "imagenet"
    precision: str = field(default_factory=native_precision)
    compile: bool = False
    device: str = "cpu"
    warmup: int = 5


@dataclass(frozen=True)
class Contestant:
    """A row of a table."""

    name: str
    settings: str
    """For people."""
    command: Sequence[str]
    """Without the control port."""
    port_flag: str
    """How the command takes the control port, `{port}` to be filled in."""
    ranks: int
    lead_steps: int = 2
    """Steps off the clock at the beginning of each turn; more than what its data loaders have prefetched in the pause."""
    freezes: bool = False
    """Its processes other than ranks do something while the ranks are paused, so they are stopped for that time."""


def bare(workload: Workload) -> Contestant:
    """The compute limit."""
    return _peer("bare", "bare", "limit: one resident batch, no data, no exchange", workload, "--channels-last", "--fused")


def ours(workload: Workload, run_dir: Path, extra: Sequence[str] = ()) -> Contestant:
    """The trainer, end to end; checkpoints and evaluation are out of the way, since no peer has them."""
    settings = {
        "task.name": "ours:Paced",
        "run.resume": "auto",
        "data.source": "sample",
        "data.global_batch": workload.batch * workload.world,
        "data.micro_batches": workload.world,
        "model.name": workload.model,
        "model.stem": workload.stem,
        "optim.lr": 0.01,
        "optim.epochs": NEVER_STEPS,
        "precision.dtype": workload.precision,
        "precision.threads_per_rank": workload.threads,
        "precision.compile": '"on"' if workload.compile else '"off"',
        "checkpoint.every_seconds": "null",
        "fault_tolerance.hang_floor_seconds": 1_000_000,  # its ranks are stopped between turns
        "fault_tolerance.start_limit_seconds": 1_000_000,
        "checkpoint.every_steps": NEVER_STEPS,
        "distributed.device": workload.device,
        "distributed.collective_timeout_seconds": NEVER_SECONDS,
        "fault_tolerance.max_restarts": 0,
        "telemetry.port": 0,
        "telemetry.eval_every_epochs": NEVER_STEPS,
    }
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [str(DDP), "local", "--workers", str(workload.world), "--run-dir", str(run_dir), *pairs]
    shown = "whole trainer: data, augmentation, metrics, telemetry" + (", compiled" if workload.compile else "")
    return Contestant("ours", shown, [*command, *extra], "--set task.options.control={port}", workload.world, freezes=True)


def peers(workload: Workload) -> list[Contestant]:
    """Each peer at its default and at its best settings."""
    found = []
    for script, workers in DEFAULT_LOADER.items():
        found.append(_peer(script, script, f"default: JPEG files, {workers} loader processes", workload, "--workers", str(workers)))
        best = _peer(script, script, "best: " + " ".join(BEST).replace("--", "") + ", freed memory kept", workload, *BEST)
        found.append(replace(best, command=[*KEPT_MEMORY, *best.command]))
    return found


def _peer(name: str, script: str, settings: str, workload: Workload, *flags: str) -> Contestant:
    same = {
        "--model": workload.model,
        "--stem": workload.stem,
        "--batch": workload.batch,
        "--precision": workload.precision,
        "--threads": workload.threads,
        "--device": workload.device,
        "--world": workload.world,
        "--warmup": workload.warmup,
    }
    words = [word for flag, value in same.items() for word in (flag, str(value))]
    if workload.compile:
        words.append("--compile")
    words += flags
    workers = int(words[words.index("--workers") + 1]) if "--workers" in words else 0
    command = [sys.executable, str(PEERS / f"{script}.py"), *words]
    return Contestant(name, settings, command, "--control {port}", workload.world, lead_steps=2 + PREFETCHED * workers)
