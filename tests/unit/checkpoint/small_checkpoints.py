"""Small real checkpoints: two tensors and a complete manifest."""

from __future__ import annotations

import torch

from ddp_trainer.checkpoint.manifest import FileEntry, Manifest


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((3, 4), float(step)), "model.count": torch.tensor(step)}


def manifest_of(step: int, files: dict[str, FileEntry]) -> Manifest:
    return Manifest(
        step=step,
        epoch=step // 10,
        sample_offset=step % 10,
        global_batch=8,
        micro_batches=4,
        world_size=2,
        seed=0,
        config_hash="c" * 16,
        identity={"seed": 0, "optim": {"lr": 0.1}},
        data_fingerprint="d" * 16,
        attempt=1,
        saved_at=1.0,
        wall_seconds=2.0,
        libraries={"torch": "2"},
        files=files,
    )
