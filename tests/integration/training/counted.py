"""A task with a network of two layers, quick to compile, whose ranks count in $COUNTS what was compiled and what came from the cache."""

import json
import os
from pathlib import Path

from torch import nn

from ddp_trainer.tasks.cifar10 import Cifar10


class Counted(Cifar10):
    def build_model(self):
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))

    def metrics(self, outputs, targets):
        """Called in every step and in the evaluation, so that the last word is about the whole run."""
        from torch._dynamo.utils import counters

        inductor, autograd = counters["inductor"], counters["aot_autograd"]
        counts = {
            "compiled": inductor["fxgraph_cache_miss"] + autograd["autograd_cache_miss"],
            "kept": inductor["fxgraph_cache_hit"] + autograd["autograd_cache_hit"],
        }
        Path(os.environ["COUNTS"], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(counts))
        return super().metrics(outputs, targets)
