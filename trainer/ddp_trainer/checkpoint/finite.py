"""Whether a state may be gone on from: one that is not finite fails again at every start, and is neither saved nor restored."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a NaN or an infinity in it; None if there is none. About 10 ms for 200 MB."""
    for name, tensor in tensors.items():
        # the sum carries on what is not finite, fourteen times as fast as looking at each; it may also overflow by itself, so then look
        if tensor.is_floating_point() and not bool(tensor.sum(dtype=tensor.dtype).isfinite()) and not bool(tensor.isfinite().all()):
            return name
    return None
