"""Small real checkpoints: three files of tensors, a small state, and a complete manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import torch as saved_tensors

from ddp_trainer.checkpoint.manifest import FileEntry, Manifest, sealed
from ddp_trainer.checkpoint.store import CheckpointStore

IDENTITY = {"seed": 0, "optim": {"lr": 0.1}}
"""Of the configuration that they are said to be of."""


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {
        "model.weight": torch.full((3, 4), float(step)),
        "model.count": torch.tensor(step),
        "optimizer.weight.momentum_buffer": torch.full((3, 4), -float(step)),
        "ema.weight": torch.full((3, 4), step / 2),
    }


def extra_of(step: int) -> dict[str, list[int]]:
    return {"history": [step]}


def files_of(step: int) -> dict[str, list[memoryview | bytes]]:
    """The data files' contents; the tensors' in two buffers, as a writer may have them in pieces."""
    by_file: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors_of(step).items():
        file, _, rest = name.partition(".")
        by_file.setdefault(file, {})[rest] = tensor
    files: dict[str, list[memoryview | bytes]] = {}
    for file, tensors in by_file.items():
        content = saved_tensors.save(tensors)
        files[f"{file}.safetensors"] = [memoryview(bytearray(content[:50])), content[50:]]
    return files | {"state.json": [b'{"history":', f" [{step}]}}".encode()]}


def manifest_of(step: int, files: dict[str, FileEntry], metrics: dict[str, float] | None = None) -> Manifest:
    return Manifest(
        step=step,
        epoch=step // 10,
        sample_offset=step % 10,
        global_batch=8,
        micro_batches=4,
        world_size=2,
        seed=0,
        config_hash="c" * 16,
        identity=IDENTITY,
        data_fingerprint="d" * 16,
        attempt=1,
        saved_at=1.0,
        wall_seconds=2.0,
        metrics=metrics or {},
        libraries={"torch": "2"},
        files=files,
    )


def commit(
    store: CheckpointStore, step: int, metrics: dict[str, float] | None = None, durable: Callable[[], None] = lambda: None
) -> Manifest:
    return store.commit(files_of(step), lambda files: manifest_of(step, files, metrics), 1, durable)


def is_state_of(loaded, step: int) -> bool:
    """Whether what was loaded is exactly the state of a step."""
    expected = tensors_of(step)
    return (
        loaded.manifest.step == step
        and loaded.tensors.keys() == expected.keys()
        and all(torch.equal(loaded.tensors[name], expected[name]) for name in expected)
        and loaded.extra == extra_of(step)
    )


def edited(manifest: bytes, **changes: Any) -> bytes:
    """A manifest as somebody would have written it who meant other values."""
    document = json.loads(manifest)
    document.pop("sha256")
    return sealed(json.dumps(document | changes, indent=1).encode())
