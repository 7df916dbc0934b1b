"""A network that is about to be given a saved state is built without drawing values of its own, where its task says that nothing is missed.

Drawing the first values of ResNet-50 takes a third of a second, and a second where four ranks share two cores: a fifth of a restart.
torch's meta device is for the same; it imports SymPy for the first thing that it does in Python, which takes longer than what is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from ddp_trainer.tasks.protocol import Task

_Build = TypeVar("_Build", bound=Callable[..., nn.Module])
_MARK = "all_in_state"


def all_in_state(build_model: _Build) -> _Build:
    """Mark a task's `build_model`: nothing that depends on the first values of parameters is kept outside the parameters and saved buffers.

    A restart then calls it with draws into parameters (`normal_` and the like, and so `nn.init`) left out: they hold whatever their
    memory held, until the state is put in their place. Not to be marked is one that keeps a copy of the first weights or a number
    computed from them, or that branches on one. The mark is the function's: one that overrides or wraps it has none unless it is given
    one.
    """
    setattr(build_model, _MARK, build_model)  # itself: `functools.wraps` copies attributes to what may do more
    return build_model


def build_model(task: Task, *, is_blank: bool) -> nn.Module:
    """The task's network, on the CPU. The torch generator is seeded for it already.

    Args:
        task: whose network it is.
        is_blank: a state is about to be put in place of all values, so that they need not be drawn.
    """
    method = getattr(task.build_model, "__func__", task.build_model)
    if not is_blank or getattr(method, _MARK, None) is not method:
        return task.build_model()
    with _NothingDrawn():
        return task.build_model()


_DRAWS = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.log_normal_, Tensor.random_),
        # those of nn.init that are seen as a whole, and what they call is not
        *(init.normal_, init.uniform_, init.kaiming_uniform_),
    }
)


class _NothingDrawn(TorchFunctionMode):
    """Leaves out draws into parameters. What else is drawn may be looked at: `trunc_normal_` draws again until all is within bounds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWS and isinstance(target := args[0] if args else given.get("tensor"), nn.Parameter):
            return target
        return func(*args, **given)
