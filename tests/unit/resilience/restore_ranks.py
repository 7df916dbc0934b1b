"""States in memory and on disk, and what each rank of a gang finds and ends up with."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_trainer.checkpoint.image import Image
from ddp_trainer.checkpoint.manifest import FileEntry, Manifest
from ddp_trainer.checkpoint.snapshot import SnapshotMemory
from ddp_trainer.checkpoint.state import RunState
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.distributed import Group
from ddp_trainer.resilience import restore


def state_of(seed: int, steps: int = 1, width: int = 4) -> RunState:
    """A state that differs from that of any other seed and is the same in every process; before the first step there is no momentum."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 4, 2))
    model = model.to(memory_format=torch.channels_last)
    model[1].running_mean.normal_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if steps:
        optimizer.state.update({parameter: {"momentum_buffer": torch.randn_like(parameter)} for parameter in model.parameters()})
    return RunState(model, optimizer, {name: parameter.detach() + 1 for name, parameter in model.named_parameters()})


def digest(state: RunState) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(state.tensors().items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def meta_of(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": 0,
        "sample_offset": step,
        "global_batch": 8,
        "micro_batches": 4,
        "world_size": 2,
        "seed": 0,
        "config_hash": "c" * 16,
        "identity": {"seed": 0},
        "data_fingerprint": "d" * 16,
        "attempt": 1,
        "wall_seconds": 2.0,
        "libraries": {"torch": "2"},
        "metrics": {"accuracy": 0.5},
        "skipped": [[2, 3]],
        "stall_seconds": 0.25,
        "stall_seconds_so_far": 0.75,
        "history": [[step, {"accuracy": 0.5}]],
    }


def keep(
    memory: SnapshotMemory, state: RunState, step: int, *, durable: bool = False, slots: int = 2, meta: dict[str, Any] | None = None
) -> Any:
    """As a rank does it."""
    image = Image.of(state.tensors())
    memory.reserve(image, slots)
    return memory.write(lambda slot: state.copy_to(image.views(memory.block(slot))), lambda: meta or meta_of(step), durable=durable)


def empty() -> SnapshotMemory:
    return SnapshotMemory(SnapshotMemory.create())


def put_on_disk(store: CheckpointStore, state: RunState, step: int) -> None:
    """As the background writer does it."""
    memory = empty()
    snapshot = keep(memory, state, step)
    meta = {name: value for name, value in snapshot.meta.items() if name not in {"stall_seconds", "stall_seconds_so_far", "history"}}

    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(**meta, saved_at=time.time(), files=files)

    files: dict[str, Any] = {name: [content] for name, content in memory.files(snapshot).items()}
    store.commit(files | {"state.json": [b'{"history": [[1, {"accuracy": 0.25}]]}']}, describe, attempt=1)


STATES = {
    # name: ((seed, step, ...) of each rank's memory or None, (seed, step) on disk or None); a seed below 0: not good
    "rank 0 lacks it": ((None, (71, 7)), None),
    "rank 1 lacks it": (((70, 7), None), None),
    "rank 1 has an older one": (((70, 7), (51, 5)), None),
    "both have it": (((70, 7), (70, 7)), None),
    "both have it, differing in bits": (((70, 7), (71, 7)), None),
    "the disk is newer": (((70, 7), (70, 7)), (90, 9)),
    "the disk is older": (((70, 7), None), (50, 5)),
    "the disk is newer and bad": (((70, 7), (70, 7)), (-90, 9)),
    "only the disk has something": ((None, None), (90, 9)),
    "nothing anywhere": ((None, None), None),
    "rank 0's newest is not finite": (((70, 7, -80, 8), (70, 7)), None),
    "nobody's newest is finite": (((70, 7, -80, 8), (70, 7, -80, 8)), None),
    "nothing in memory is finite": (((-70, 7, -80, 8), (-80, 8)), (50, 5)),
}


def found(group: Group) -> dict[str, Any]:
    """What this rank finds in each of `STATES`, and the state that it has then."""
    return {name: _find(group, held[group.rank], on_disk) for name, (held, on_disk) in STATES.items()}


def poisoned(state: RunState, name: str = "model.1.running_var") -> RunState:
    """With a NaN in one tensor: norm statistics are the first to have one."""
    with torch.no_grad():
        tensor = state.tensors()[name]
        tensor[(-1,) * tensor.ndim] = float("nan")
    return state


def _find(group: Group, held: tuple[int, ...] | None, on_disk: tuple[int, int] | None) -> dict[str, Any]:
    memory, loads = empty(), []
    for seed, step in zip((held or ())[::2], (held or ())[1::2], strict=True):
        keep(memory, state_of(seed) if seed > 0 else poisoned(state_of(-seed)), step)
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        if on_disk and group.rank == 0:
            put_on_disk(store, state_of(abs(on_disk[0])), on_disk[1])
            if on_disk[0] < 0:
                (store.folder(on_disk[1]) / "model.safetensors").write_bytes(b"rubbish")

        def load(above: int) -> Any:
            loads.append(above)
            return store.load_newest(newer_than=above)

        newest = max(store.steps(), default=restore.NOTHING) if group.rank == 0 else restore.NOTHING
        origin = restore.find(group, memory, newest, load)
    state = state_of(900 + group.rank, steps=0)
    before = digest(state)
    restore.put(origin, state, group)
    return {
        "source": origin.source,
        "step": origin.meta["step"],
        "history": origin.meta.get("history"),
        "sent": origin.is_sent,
        "loads": loads,
        "state": digest(state),
        "before": before,
    }
