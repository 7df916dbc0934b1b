"""Snapshots of a GPU's state go through memory that the GPU can write by itself, where the driver allows it.

Into ordinary memory the driver copies twice, through a small buffer of its own; into registered memory it copies once, and training
stands still for less. A slot is shared between processes, so it cannot be allocated as pinned: its mapping is registered afterwards, by
the one process that writes. The registration goes with that process.

Written by the documentation of CUDA and torch, and not tested on a GPU so far: nothing depends on it, since a copy into memory that is not
registered is as right, and only slower.
"""

from __future__ import annotations

import contextlib
import logging

import torch

_log = logging.getLogger(__name__)


def pin(block: memoryview, device: torch.device) -> bool:
    """Register a slot's memory with the driver, if the state is on a GPU; says in a sentence if that is refused, and goes on without.

    `block` must stay mapped for as long as this process copies into it.
    """
    if device.type != "cuda":
        return False
    flat = torch.frombuffer(block, dtype=torch.uint8)
    try:
        refused = int(torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), flat.numel(), 0))
    except (RuntimeError, AttributeError, TypeError) as error:
        refused, reason = -1, str(error).splitlines()[0]
    else:
        reason = f"cudaHostRegister gave error {refused}"
    if not refused:
        return True
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device)  # the driver remembers the refusal, and would report it with the next kernel, as that kernel's error
    _log.warning(
        "snapshots of %.0f MB are copied through ordinary memory, which takes longer: %s; see the limit of locked memory (ulimit -l)",
        flat.numel() / 1e6,
        reason,
    )
    return False
