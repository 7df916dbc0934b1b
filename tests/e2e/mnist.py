"""Upstream's example of a PyTorchJob, for a cluster without the internet: the same network and arguments, on images that are made up.

Plain torch. It knows nothing of this repository: it serves no progress, keeps no checkpoint, and a peer that goes is an exception.
"""

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

BATCHES = 200
PAUSE_SECONDS = 0.1


class Net(nn.Module):
    """Two convolutions and two layers, as upstream's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(4 * 4 * 50, 500), nn.Linear(500, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logarithms of the classes' probabilities."""
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
        return functional.log_softmax(self.fc2(functional.relu(self.fc1(x))), dim=1)


def main() -> None:
    """Train for some epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group(arguments.backend)
    model = nn.parallel.DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    for epoch in range(1, arguments.epochs + 1):
        for batch in range(BATCHES):
            labels = torch.randint(10, (64,))
            images = torch.randn(64, 1, 28, 28) + labels[:, None, None, None] / 10
            optimizer.zero_grad()
            loss = functional.nll_loss(model(images), labels)
            loss.backward()
            optimizer.step()
            print(f"Train Epoch: {epoch} [{batch}/{BATCHES}]\tloss={loss.item():.4f}", flush=True)
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
