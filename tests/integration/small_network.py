"""Tasks with a network that is far smaller than ResNet-18: where the network itself says nothing, four ranks of ResNet-18 would spend most
of the tests' CPU time on eleven million numbers. For runs that are disturbed it is as slow.
"""

import time

from torch import nn

from ddp_trainer.tasks.cifar10 import Cifar10

STEP_SECONDS = 0.25
"""A step of one micro-batch per rank: it leaves as much time to disturb the run in the middle as ResNet-18 does, and uses no CPU."""


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class QuickNetwork(Cifar10):
    def build_model(self):
        """0.4 million parameters: more than DDP's first bucket of 1 MiB holds, so that gradients are summed in several; and statistics."""
        return nn.Sequential(*block(3, 32), *block(32, 128), *block(128, 320), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 10))


class SmallNetwork(QuickNetwork):
    def loss(self, outputs, targets):
        time.sleep(STEP_SECONDS)
        return super().loss(outputs, targets)
