"""What a run's state is: model, optimizer, average, by name; and how it gets into a file and back.

Names are `model.<parameter or buffer>`, `optimizer.<parameter>.<slot>` and `ema.<parameter>`. Everything else a run needs is in the
manifest: the order of samples and all randomness are functions of seed and step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddp_trainer.checkpoint.manifest import BadCheckpointError


@dataclass(frozen=True)
class RunState:
    """The live objects whose tensors are the state. `ema` holds one tensor per trainable parameter, or none."""

    model: nn.Module
    optimizer: Optimizer
    ema: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Contiguous CPU copies of the whole state: nothing that training does later changes them."""
        return {name: _copy(tensor) for name, tensor in self._live()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Write saved tensors over the live ones, keeping memory layouts (channels_last weights have strides that files have not).

        Raises:
            BadCheckpointError: a name is missing, left over, or of another shape.
        """
        self.make_slots({name: tensor.shape for name, tensor in tensors.items() if name.startswith("optimizer.")})
        live = dict(self._live())
        if live.keys() != tensors.keys():
            odd = sorted(live.keys() ^ tensors.keys())
            raise BadCheckpointError(f"state differs from the model's: {len(odd)} names do not match, such as {odd[0]}")
        with torch.no_grad():
            for name, tensor in live.items():
                if tensor.shape != tensors[name].shape:
                    raise BadCheckpointError(f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(tensor.shape)} in the model")
                tensor.copy_(tensors[name])

    def slots(self) -> dict[str, list[int]]:
        """Names and shapes of the optimizer tensors that exist now."""
        return {name: list(tensor.shape) for name, tensor in self._live() if name.startswith("optimizer.")}

    def make_slots(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Create the optimizer tensors that a step would have created, so that they can be filled.

        Raises:
            BadCheckpointError: one of them belongs to no parameter.
        """
        parameters = dict(self.model.named_parameters())
        for name, shape in shapes.items():
            owner, _, slot = name.removeprefix("optimizer.").rpartition(".")
            if owner not in parameters:
                raise BadCheckpointError(f"{name} belongs to no parameter of the model")
            parameter = parameters[owner]
            same = tuple(shape) == tuple(parameter.shape)  # else a counter, such as Adam's step
            empty = torch.zeros_like(parameter) if same else torch.zeros(tuple(shape), device=parameter.device)
            self.optimizer.state[parameter].setdefault(slot, empty)

    def shared(self) -> list[Tensor]:
        """What DDP does not broadcast by itself: optimizer and average, in a fixed order."""
        return [tensor for name, tensor in sorted(self._live(), key=lambda item: item[0]) if not name.startswith("model.")]

    def _live(self) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        for name, parameter in self.model.named_parameters():
            for slot, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer.{name}.{slot}", value
        for name, tensor in self.ema.items():
            yield f"ema.{name}", tensor


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
