"""The metrics of the whole test set, every sample counted once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddp_trainer.data.order import evaluation_slice
from ddp_trainer.engine.randomness import EVALUATION_PLACE, seed_generators
from ddp_trainer.engine.training import Training


def evaluate(run: Training, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Metrics over the whole test set, every sample counted once, with rank 0's norm statistics. `beat` is called for each batch."""
    run.group.share_buffers(run.model)
    sums: dict[str, Tensor] = {}
    run.predictions.clear()
    with run.evaluated_parameters:
        for outputs, targets in _forward_test_set(run):
            beat()
            if run.task.classes:
                confidence, predicted = outputs.softmax(-1).max(-1)
                run.predictions.append(torch.stack([targets.float(), predicted.float(), confidence], dim=1))
            for name, value in run.task.metrics(outputs, targets).items():
                sums[name] = sums.get(name, value.new_zeros((), dtype=torch.float64)) + value.double()
    names = sorted(run.group.share_json(sorted(sums)))  # a rank without samples of its own has no names
    totals = torch.stack([sums.get(name, torch.zeros((), dtype=torch.float64, device=run.group.device)) for name in names])
    return dict(zip(names, (run.group.sum(totals) / len(run.test_set)).tolist(), strict=True))


def _forward_test_set(run: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs, targets) per batch of this rank's part of the test set, in order."""
    mine = evaluation_slice(run.group.rank, run.group.world_size, len(run.test_set))
    run.model.eval()
    with torch.inference_mode(), run.autocast():
        for start in range(mine.start, mine.stop, run.config.data.eval_batch):
            seed_generators(run.config.run.seed, run.step, EVALUATION_PLACE + start)
            indices = torch.arange(start, min(start + run.config.data.eval_batch, mine.stop))
            inputs, targets = run.test_set.batch(indices, None)
            yield run.model(inputs).float(), targets
