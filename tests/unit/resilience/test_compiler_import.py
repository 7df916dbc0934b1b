"""torch's compiler is imported by nobody who does not compile, and is whole for whoever does. Each in a process: imports are for good."""

import subprocess
import sys

import pytest

TRAIN = """
import os, sys
from ddp_trainer.resilience.compiler_import import postpone
{first}
import torch, torch.distributed, torch.nn.parallel
from torchvision import models

os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
torch.manual_seed(1)
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(models.resnet18(num_classes=4))
images = torch.randn(2, 3, 32, 32)
for Optimizer in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = Optimizer(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
print(sum(p.double().sum().item() for p in model.parameters()), "sympy" in sys.modules)
"""

USES = {
    "torch.compile": """
calls = []
def backend(graph, inputs):
    calls.append(graph)
    return graph.forward
model.module.compile(backend=backend)
optimizer.zero_grad(); model(images).square().sum().backward(); optimizer.step()
assert calls
""",
    "a module of the compiler's": """
import torch._dynamo.config as config
assert config.__spec__.origin == config.__file__
assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
""",
    "a module that the compiler does not import itself": """
import torch._dynamo.tensor_version_op
assert torch._dynamo.tensor_version_op is sys.modules["torch._dynamo.tensor_version_op"]
""",
    "torchvision's question": """
from torchvision.ops.roi_align import is_compile_supported
before = is_compile_supported
assert before("cpu") == sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
""",
}
AFTERWARDS = """
import torch._dynamo, torch._dynamo.decorators
assert "sympy" in sys.modules
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.graph_break is torch._dynamo.decorators.graph_break
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import counters
assert counters is torch._dynamo.utils.counters is sys.modules["torch._dynamo.utils"].counters
@torch.compiler.disable
def apart(x):
    assert not torch.compiler.is_compiling()
    return x + 1
assert torch.compile(lambda x: apart(x) * 2, backend="eager")(torch.ones(1)).item() == 4
assert not hasattr(torch.optim.Optimizer.add_param_group.__wrapped__, "__dynamo_disable")
optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
assert torch.optim.Optimizer.add_param_group.__wrapped__.__dynamo_disable._torchdynamo_disable
optimizer.step()
print("whole")
"""


def output_of(script):
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_training_gives_the_same_bits_without_the_compiler():
    plain, is_imported = output_of(TRAIN.format(first=""))
    assert is_imported == "True"
    assert output_of(TRAIN.format(first="postpone()")) == [plain, "False"]


@pytest.mark.parametrize("use", USES)
def test_the_compiler_is_whole_for_whoever_uses_it(use):
    assert output_of(TRAIN.format(first="postpone()") + USES[use] + AFTERWARDS)[1:] == ["False", "whole"]


def test_a_compiler_that_is_there_stays():
    script = TRAIN.format(first="import torch._dynamo; there = torch._dynamo; postpone()")
    assert output_of(script + "assert torch._dynamo is sys.modules['torch._dynamo'] is there")[1:] == ["True"]
