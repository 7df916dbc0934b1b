"""The engine: what trains a model, step by step, and knows of nothing else.

`build` makes a rank's `Training`; once its state is what it should be, `begin` readies it, and `train` runs it to the end. `Hooks` are all
that the outside sees of it.
"""

from ddp_trainer.engine.building import build
from ddp_trainer.engine.evaluation import evaluate
from ddp_trainer.engine.loop import Hooks, LeavingError, train
from ddp_trainer.engine.precision import assert_machine, choose_dtype, compiles
from ddp_trainer.engine.schedule import count_steps, evaluation_is_due, learning_rate
from ddp_trainer.engine.step import one_step
from ddp_trainer.engine.training import Training
from ddp_trainer.engine.warm_up import begin

__all__ = [
    "Hooks",
    "LeavingError",
    "Training",
    "assert_machine",
    "begin",
    "build",
    "choose_dtype",
    "compiles",
    "count_steps",
    "evaluate",
    "evaluation_is_due",
    "learning_rate",
    "one_step",
    "train",
]
