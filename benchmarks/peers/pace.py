"""What all contestants share: the same few flags, the same network, and steps that are timed in bursts.

A peer is a generator that yields the number of samples after each optimizer step; `run` drives it. Alone, it warms up, times `--steps`
steps and prints one JSON line. With `--control PORT` every rank connects to the benchmark and times a burst whenever it is told to, so
that contestants which are all warm can alternate within seconds: the machine's mood changes from minute to minute.

A paused rank blocks in a socket read and takes no processor time. Rates are the sum over ranks of each rank's own samples per second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

CONNECT_SECONDS = 10.0
"""The benchmark listens before it starts anybody, so a longer wait would only hide that it is gone."""
SAVERS = ("none", "floor", "torch", "dcp-thread", "dcp-process", "fabric")
"""What `savers.py` can save with; "floor" writes and hashes the same number of bytes in a process beside it."""


@dataclass(frozen=True)
class Rank:
    """Which process of a contestant this is."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0


@dataclass(frozen=True)
class Order:
    """A burst: `lead` steps that are not timed (they empty what was prefetched in the pause), then `steps` that are."""

    lead: int
    steps: int


Train = Callable[[argparse.Namespace, Rank], Generator[int]]
"""A peer's training loop: yields the samples of this rank after each step, for ever."""


class Pacer:
    """Counts steps, times the ordered ones, and blocks between bursts.

    `orders` gives the next burst or None at the end; `report` takes what was measured.
    """

    def __init__(self, orders: Callable[[], Order | None], report: Callable[[dict[str, Any]], None], device: torch.device) -> None:
        self._orders, self._report = orders, report
        self.device = device
        self._order = Order(0, 0)
        self._begun = False
        self._count = self._samples = 0
        self._started = 0.0

    def begin(self) -> bool:
        """Wait for the first order; False if there is none."""
        self._begun = True
        return self._next()

    def stepped(self, samples: int) -> bool:
        """One more step is done; False when there is nothing left to do. Blocks while this contestant is paused."""
        if not self._begun:
            return self.begin()
        self._count += 1
        if self._count == self._order.lead:
            self._start()
        elif self._count > self._order.lead:
            self._samples += samples
        if self._count < self._order.lead + self._order.steps:
            return True
        self._finish()
        return self._next()

    def _start(self) -> None:
        self._settle()
        self._samples, self._started = 0, time.perf_counter()

    def _finish(self) -> None:
        self._settle()
        seconds = time.perf_counter() - self._started
        self._report(
            {
                "samples": self._samples,
                "seconds": seconds,
                "samples_per_second": self._samples / seconds,
                "peak_rss_bytes": peak_rss_bytes(),
                "peak_gpu_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0,
                "compiled": compiled(),
            }
        )

    def _next(self) -> bool:
        order = self._orders()
        if order is None:
            return False
        self._order, self._count = order, 0
        if not order.lead:
            self._start()
        return True

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the clock is to see the work, not its being queued


class Control:
    """A rank's line to the benchmark that started it."""

    def __init__(self, port: int) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS)
        connection.settimeout(None)  # a pause lasts as long as the others' turns; the benchmark's end closes the line
        self._lines = connection.makefile("rw", encoding="utf-8")
        self.tell({"pid": os.getpid()})

    def tell(self, words: dict[str, Any]) -> None:
        """One line to the benchmark."""
        self._lines.write(json.dumps(words) + "\n")
        self._lines.flush()

    def order(self) -> Order | None:
        """The next burst; None when the benchmark has closed the line."""
        line = self._lines.readline()
        return Order(**json.loads(line)) if line else None


def run(name: str, train: Train) -> None:
    """Be the contestant `name`: parse the flags, become the ranks, train, and say how fast that was."""
    flags = parse(name)
    if flags.world > 1 and "RANK" not in os.environ:
        sys.exit(_start_ranks(flags.world))
    torch.set_num_threads(flags.threads)
    me = Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), _device(flags))
    if flags.control:
        control = Control(flags.control)
        pacer = Pacer(control.order, control.tell, me.device)
    else:
        orders = iter((Order(flags.warmup, flags.steps), None))
        pacer = Pacer(lambda: next(orders), lambda seen: _print(name, me, seen), me.device)
    if pacer.begin():
        steps = train(flags, me)
        while pacer.stepped(next(steps)):
            pass
        steps.close()  # ends the data loader's processes
    sys.stdout.flush()
    os._exit(0)  # ranks end at different steps, so an orderly end of the process group would wait for ever


def parse(name: str) -> argparse.Namespace:
    """The flags that every contestant takes; their defaults are the tools' own, so that nothing is tuned unless asked for."""
    parser = argparse.ArgumentParser(prog=name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="a ResNet of torchvision's")
    parser.add_argument("--stem", choices=("imagenet", "cifar"), default="imagenet", help="7x7 stride 2 and max-pool, or 3x3 stride 1")
    parser.add_argument("--batch", type=int, default=64, help="samples per rank and step")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="bf16 is autocast")
    parser.add_argument("--channels-last", action="store_true", help="memory layout of images and weights")
    parser.add_argument("--fused", action="store_true", help="SGD(fused=True)")
    parser.add_argument(
        "--ddp-knobs", action="store_true", help="gradients as views of buckets, static graph, no buffer broadcast per step"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--workers", type=int, default=4, help="data-loader processes per rank")
    parser.add_argument("--persistent", action="store_true", help="keep the data-loader processes from epoch to epoch")
    parser.add_argument("--images", choices=("jpeg", "memory"), default="jpeg", help="decode files each epoch, or keep decoded images")
    parser.add_argument("--data", type=Path, default=None, help="folder with train/<class>/<image>; default: the package's sample")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a rank")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--world", type=int, default=1, help="ranks; torchrun may start them instead")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=20, help="steps on the clock")
    parser.add_argument(
        "--resume", type=Path, default=None, help="folder for checkpoints to go on from (examples_imagenet, lightning_loop)"
    )
    parser.add_argument("--stamps", type=Path, default=None, help="file to note first steps in, for startup.py and recovery.py")
    parser.add_argument("--save-with", choices=SAVERS, default="none", help="how checkpoints are written (savers only)")
    parser.add_argument("--save-every", type=int, default=10**9, help="steps between checkpoints (savers only)")
    parser.add_argument("--saves", type=Path, default=None, help="folder for them (savers only)")
    parser.add_argument("--control", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def build_model(flags: argparse.Namespace) -> nn.Module:
    """The network of the flags, on the CPU, freshly initialised from seed 0."""
    from torchvision import models

    torch.manual_seed(0)
    model: nn.Module = models.get_model(flags.model, weights=None, num_classes=10)
    if flags.stem == "cifar":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False), nn.Identity()
    return model.to(memory_format=torch.channels_last) if flags.channels_last else model


def build_optimizer(flags: argparse.Namespace, model: nn.Module) -> torch.optim.SGD:
    """SGD with the same arithmetic for everybody; which implementation does it is the flag's."""
    options: dict[str, Any] = {"fused": True} if flags.fused else {}
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, **options)


def ddp_options(flags: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of DistributedDataParallel: none, or the ones that speed up this model."""
    return {"gradient_as_bucket_view": True, "static_graph": True, "forward_sync_buffers": False} if flags.ddp_knobs else {}


def peak_rss_bytes() -> int:
    """The largest resident size that this process ever had; 0 where the kernel does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def compiled() -> dict[str, int]:
    """How many graphs inductor compiled (`misses`) and how many came from its cache (`hits`) in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    counts = dynamo.counters["inductor"] if dynamo else {}
    aot = dynamo.counters["aot_autograd"] if dynamo else {}
    return {
        "misses": int(counts.get("fxgraph_cache_miss", 0)),
        "hits": int(counts.get("fxgraph_cache_hit", 0)) + int(aot.get("autograd_cache_hit", 0)),
    }


def _device(flags: argparse.Namespace) -> torch.device:
    if flags.device == "cpu":
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", local)


def _start_ranks(world: int) -> int:
    """Start this script once per rank, with the variables that torchrun would set; the first failure ends all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **fixed, "RANK": str(r), "LOCAL_RANK": str(r), "NODE_RANK": "0"})
        for r in range(world)
    ]
    try:
        return max(abs(process.wait()) for process in ranks)
    finally:
        for process in ranks:
            process.kill()


def _print(name: str, me: Rank, seen: dict[str, Any]) -> None:
    if me.leads:  # ranks go in lockstep, so rank 0's pace is everybody's
        rate = seen["samples_per_second"] * me.world
        print(json.dumps({"name": name, "world": me.world, **seen, "samples_per_second": round(rate, 1)}), flush=True)
