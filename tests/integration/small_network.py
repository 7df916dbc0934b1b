"""Tasks with a network that is far smaller than ResNet-18: where the network itself says nothing, four ranks of ResNet-18 would spend most
of the tests' CPU time on eleven million numbers. For runs that are disturbed it is as slow.
"""

import time

from torch import nn

from ddp_trainer.checkpoint import manifest
from ddp_trainer.tasks.blank import all_in_state
from ddp_trainer.tasks.cifar10 import Cifar10

STEP_SECONDS = 0.25
"""A step of one micro-batch per rank: it leaves as much time to disturb the run in the middle as ResNet-18 does, and uses no CPU."""


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class QuickNetwork(Cifar10):
    @all_in_state  # as the built-in ones are, so that every restart of a test goes on from tensors that nobody has drawn
    def build_model(self):
        """0.4 million parameters: more than DDP's first bucket of 1 MiB holds, so that gradients are summed in several; and statistics."""
        return nn.Sequential(*block(3, 32), *block(32, 128), *block(128, 320), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 10))


class SmallNetwork(QuickNetwork):
    def loss(self, outputs, targets):
        time.sleep(STEP_SECONDS)
        return super().loss(outputs, targets)


VERIFYING_SECONDS = 12.0
"""What a rank takes to hash one file of a checkpoint, where it is a large one on a slow volume."""


class SlowToVerify(QuickNetwork):
    """In its ranks, hashing a file takes long, and is heard of block by block."""

    def __init__(self, config):
        super().__init__(config)
        real, blocks = manifest.sha256_of, 60

        def slow(path, hashed):
            for _ in range(blocks):
                time.sleep(VERIFYING_SECONDS / blocks)
                hashed()
            return real(path, hashed)

        manifest.sha256_of = slow
