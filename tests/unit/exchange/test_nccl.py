"""The exchange over NCCL, which needs a GPU: alone, as a group of one rank. Several ranks over NCCL need several GPUs, and are untested."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_trainer.exchange.gradient_sum import GradientSum

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the sum of gradients over NCCL is not checked")


@pytest.fixture
def device(tmp_path):
    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1, device_id=device)
    yield device
    dist.destroy_process_group()


def test_a_gradient_that_went_through_nccl_is_the_gradient(device):
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    batch = torch.randn(32, 64, device=device)
    plain(batch).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in plain.parameters()]
    plain.zero_grad(set_to_none=True)
    wrapped = DistributedDataParallel(plain, device_ids=[0], gradient_as_bucket_view=True, forward_sync_buffers=False, init_sync=False)
    GradientSum().serve(wrapped)
    for _ in range(2):  # the second time in buckets that were laid out anew
        wrapped.zero_grad(set_to_none=True)
        wrapped(batch).square().mean().backward()
        for parameter, gradient in zip(plain.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
