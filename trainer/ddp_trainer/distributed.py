"""The process group of a rank: device, threads, DDP wrapping and the few collectives that the rest may use.

Every call here that talks to other ranks blocks for at most `distributed.collective_timeout_seconds`, and fails with what `is_echo`
recognises when a peer has died: somebody else's fault, to be reported as such.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # the stubs do not export them
from torch.nn.parallel import DistributedDataParallel

from ddp_trainer.config import RunConfig
from ddp_trainer.cores import cores
from ddp_trainer.errors import ConfigError
from ddp_trainer.exchange.gradient_sum import GradientSum
from ddp_trainer.exchange.shared_sum import PIECE_BYTES, Offer, SharedSum
from ddp_trainer.heap import keep_freed_memory

_log = logging.getLogger(__name__)

POLL_SECONDS = (0.005, 0.25)
"""First and longest pause between two looks at who is there."""
BEAT_SECONDS = 1.0
SHARE_BYTES = 32 * 1024 * 1024
"""Most that is broadcast at once: large enough for the network, small beside the state, which would else be in memory twice."""
ONE_BUCKET_MB = 1_000_000
"""More than any model has gradients."""
_CALLBACK = re.compile(r"^Got the following error when running the callback: (\w+\.)*(?P<type>\w+): ")
"""What torch puts before the words of an error that has come through `Future.then`, as those of `GradientSum` do; its type is lost."""
_ECHOES = re.compile(
    r"gloo/transport|connectFullMesh|Connection (closed|reset) by peer|Broken pipe|Timed out waiting \d+ ?ms|caused pair closure"
    r"|NCCL (operation timed out|communicator was aborted)|remote process exited",
    re.IGNORECASE,
)
"""What gloo says in a plain RuntimeError when a peer is gone, and NCCL in some versions of torch; the store raises `DistError`s."""


@dataclass(frozen=True)
class Place:
    """Where this rank stands, as its agent said: torch's RANK, WORLD_SIZE and friends."""

    rank: int
    world_size: int
    local_rank: int
    ranks_on_machine: int
    store_host: str
    store_port: int
    store_prefix: str


class Meeting:
    """Where the ranks of a generation wait for each other before they are a group: a corner of the agents' store.

    Raises:
        DistNetworkError: the store cannot be reached.
    """

    def __init__(self, config: RunConfig, place: Place) -> None:
        self.world_size = place.world_size
        self._beaten_at = -math.inf
        if self.world_size > 1:
            self.bound = timedelta(seconds=config.distributed.collective_timeout_seconds)
            client = TCPStore(place.store_host, place.store_port, is_master=False, timeout=self.bound)
            self.store = PrefixStore(place.store_prefix, client)

    def beat(self) -> None:
        """This rank is not there yet, and busy: a sign of life for those that wait, at most once in `BEAT_SECONDS`."""
        if self.world_size > 1 and time.monotonic() - self._beaten_at >= BEAT_SECONDS:
            self._beaten_at = time.monotonic()
            self.store.add("beats", 1)

    def await_all(self, waiting: Callable[[int], None], place: str = "here") -> None:
        """Wait until every rank of this generation is at a place: here, its data read. `waiting(signs)` at every sign of life of others.

        Without a bound of its own: one node's download may take an hour, and a group that is formed waits for a late rank no longer than
        for a collective. Who is awaited and silent, since its node is gone, makes those that wait stand still for their agents.
        """
        if self.world_size == 1:
            return
        here, pause, signs = self.store.add(place, 1), POLL_SECONDS[0], -1
        while here < self.world_size:
            if (newest := here + self.store.add("beats", 0)) != signs:
                signs = newest
                waiting(signs)
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS[1])
            here = self.store.add(place, 0)


class Group:
    """The ranks of one generation, seen from one of them."""

    def __init__(self, place: Place, device: torch.device, backend: str) -> None:
        self.rank = place.rank
        self.world_size = place.world_size
        self.local_rank = place.local_rank
        self._ranks_on_machine = place.ranks_on_machine
        self.device = device
        self.backend = backend

    @classmethod
    def join(cls, config: RunConfig, place: Place, meeting: Meeting, waiting: Callable[[int], None] = lambda _: None) -> Self:
        """Choose device and threads, and meet the other ranks; `waiting` as in `Meeting.await_all`.

        Raises:
            ConfigError: more ranks than GPUs, or nccl without one.
        """
        device = choose_device(config, place.local_rank)
        backend = choose_backend(config, device)
        torch.set_num_threads(config.precision.threads_per_rank or max(1, cores() // place.ranks_on_machine))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            keep_freed_memory()
        meeting.await_all(waiting)
        if place.world_size > 1:
            dist.init_process_group(
                backend,
                store=meeting.store,
                rank=place.rank,
                world_size=place.world_size,
                timeout=meeting.bound,
                device_id=device if backend == "nccl" else None,
            )
        return cls(place, device, backend)

    def wrap(self, model: nn.Module, exchange: GradientSum) -> nn.Module:
        """DDP around a model that is the same on all ranks (see `share`); the model itself when it is alone.

        Gradients are summed, not averaged (see `GradientSum`): measured over gloo, not over NCCL.
        Buffers are not synchronised in every forward (for ResNet-50 that is 159 broadcasts): see `share_buffers`.
        `static_graph` and `batched_grad_copy` were measured beside this (2 CPU ranks, alternating): within 3 % of it, which is noise.
        """
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        shared = self._shared_sum(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
        _log.info("gradients of %d ranks are added up %s", self.world_size, "in memory" if shared else f"by {self.backend}")
        wrapped = DistributedDataParallel(
            model,
            device_ids=devices,
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
            init_sync=False,
            # in one go at the end: a core that sums while it computes does both more slowly
            bucket_cap_mb=ONE_BUCKET_MB if shared else None,
        )
        exchange.serve(wrapped, shared)
        return wrapped

    def _shared_sum(self, gradient_bytes: int) -> SharedSum | None:
        """On CPUs of one machine, where every rank can open the first one's memory; None on each of them where one cannot."""
        if self.device.type != "cpu" or self._ranks_on_machine < self.world_size:
            return None
        piece_bytes = min(PIECE_BYTES, gradient_bytes)
        with SharedSum.offered(self.world_size, piece_bytes) if self.rank == 0 else contextlib.nullcontext() as offer:
            told = self.share_json(asdict(offer) if offer else None)
            opened = SharedSum.open(Offer(**told), self.rank, self.world_size) if told else None
            have = self.sum(torch.tensor([float(opened is not None)]))
        return opened if int(have) == self.world_size else None

    @property
    def hears_late(self) -> bool:
        """Whether ranks hear of each other's words a step after they were said: on GPUs, where looking at once would stop the pipeline."""
        return self.device.type == "cuda" and self.world_size > 1

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's norm statistics: only those are the run's."""
        self.share(list(model.buffers()))

    def share(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Overwrite tensors with rank `source`'s, in few broadcasts of at most `SHARE_BYTES`."""
        if self.world_size == 1:
            return
        for group in _portions(tensors):
            flat = torch.cat([t.detach().reshape(-1) for t in group])
            dist.broadcast(flat, src=source)
            if self.rank != source:
                with torch.no_grad():
                    for tensor, part in zip(group, torch.split(flat, [t.numel() for t in group]), strict=True):
                        tensor.copy_(part.view(tensor.shape))

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every rank's whole numbers, in rank order; equally many on each."""
        if self.world_size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def share_json(self, value: Any, source: int = 0) -> Any:
        """Rank `source`'s JSON value, on every rank. No pickle."""
        if self.world_size == 1:
            return value
        data = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, src=source)
        body = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == source:
            body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(body, src=source)
        return json.loads(bytes(body.cpu().numpy()))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Concatenate every rank's rows `[n_r, k]` in rank order; `sizes` are the n_r, known to all."""
        if self.world_size == 1:
            return rows
        longest = max(sizes)
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def leave(self) -> None:
        """Tear the group down after everybody's last collective."""
        if self.world_size > 1:
            dist.destroy_process_group()


def _portions(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype, at most `SHARE_BYTES` together (or one alone), in an order that is the same on all ranks."""
    open_groups: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        group, size = open_groups.get(tensor.dtype, ([], 0))
        bytes_ = tensor.numel() * tensor.element_size()
        if group and size + bytes_ > SHARE_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        open_groups[tensor.dtype] = (group, size + bytes_)
    yield from (group for group, _ in open_groups.values())


def choose_device(config: RunConfig, local_rank: int) -> torch.device:
    """The rank's device under `distributed.device`.

    Raises:
        ConfigError: cuda asked for and not there, or more local ranks than GPUs.
    """
    wanted, ranks = config.distributed.device, config.distributed.procs_per_node
    if wanted == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if wanted == "auto" and not gpus:
        return torch.device("cpu")
    if not gpus:
        raise ConfigError(
            "distributed.device is cuda but no GPU is visible here; use distributed.device=cpu, or check the driver with nvidia-smi"
        )
    if local_rank >= gpus:
        raise ConfigError(
            f"distributed.procs_per_node is {ranks} but only {gpus} GPU(s) are visible on this node; "
            f"use distributed.procs_per_node={gpus}, or distributed.device=cpu"
        )
    return torch.device("cuda", local_rank)


def choose_backend(config: RunConfig, device: torch.device) -> str:
    """The configured backend; `auto` is nccl for GPUs and gloo for CPUs.

    Raises:
        ConfigError: nccl with ranks on the CPU.
    """
    wanted = config.distributed.backend
    if wanted == "nccl" and device.type != "cuda":
        raise ConfigError(
            "distributed.backend is nccl but this rank has no GPU; use distributed.backend=gloo (or auto), or start where there is a GPU"
        )
    if wanted != "auto":
        return wanted
    return "nccl" if device.type == "cuda" else "gloo"


def is_echo(error: BaseException) -> bool:
    """Whether an error is what a failed collective raises: the echo of another rank's fault, never a root cause."""
    if isinstance(error, dist.DistError):
        return True
    if type(error) is not RuntimeError:
        return False
    wrapped = _CALLBACK.match(str(error))
    return bool(_ECHOES.search(str(error))) or (wrapped is not None and issubclass(getattr(dist, wrapped["type"], object), dist.DistError))


def words_of_echo(error: BaseException) -> str:
    """One line of what it says, without what torch puts before it."""
    return _CALLBACK.sub("", str(error).splitlines()[0]) if str(error) else type(error).__name__
