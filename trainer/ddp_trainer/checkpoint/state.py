"""What a run's state is: model, optimizer, average, by name; and how it gets into a file and back.

Names are `model.<parameter or buffer>`, `optimizer.<parameter>.<slot>` and `ema.<parameter>`. Everything else a run needs is in the
manifest: the order of samples and all randomness are functions of seed and step, so there is no generator to save.
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
        """The live tensors by name, in a fixed order; not copies."""
        return dict(self._live())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def copy_to(self, views: Mapping[str, Tensor]) -> None:
        """Write the state over tensors of the same names and shapes, such as those of an `Image`. One call per device, not per tensor.

        Returns when all is there; from a GPU that is waited for once, at the end.
        """
        live, is_on_gpu = dict(self._live()), self.device.type == "cuda"
        targets, sources = [views[name] for name in live], list(live.values())
        with torch.no_grad():
            torch._foreach_copy_(targets, sources, non_blocking=is_on_gpu)  # public in spirit: torch.optim's
        if is_on_gpu:
            torch.cuda.current_stream(self.device).synchronize()

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

    def _live(self) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        for name, parameter in self.model.named_parameters():
            for slot, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer.{name}.{slot}", value
        for name, tensor in self.ema.items():
            yield f"ema.{name}", tensor
