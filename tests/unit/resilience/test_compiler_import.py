"""torch's compiler is imported by nobody who does not compile, and is whole for whoever does. Each in a process: imports are for good.

Forks of a process with torch, as ranks are; only the training that knows nothing of all this starts from nothing. Those that use the
compiler have from their parent what it needs of others, SymPy above all: more than half of its import, and nothing that is asked here.
"""

import subprocess
import sys

import pytest
from processes import Parent

from ddp_trainer.resilience.entrypoint import PRELOAD

SHARED = ("sympy", "torch.distributed.fsdp")

TRAIN = """
import os, sys
import torch, torch.distributed, torch.nn.parallel
from torchvision import models

os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
torch.manual_seed(1)
torch.set_num_threads(1)  # another number of threads gives other bits
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(models.resnet18(num_classes=4))
images = torch.randn(2, 3, 32, 32)
for Optimizer in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = Optimizer(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
print(sum(p.double().sum().item() for p in model.parameters()), "torch._dynamo.convert_frame" in sys.modules, "sympy" in sys.modules)
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
    "a graph break of its own": """
import torch._dynamo as dynamo
from torch._dynamo import graph_break
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
def broken(x):
    y = x + 1
    graph_break()
    return y * 2
torch.compile(broken, backend=backend)(torch.ones(2))
assert graph_break is dynamo.graph_break is dynamo.decorators.graph_break
assert len(graphs) == 2
""",
    "a question whether modules exist": """
from importlib.util import find_spec
assert find_spec("torch._dynamo.nowhere") is None
assert find_spec("torch._dynamo.config") is not None
assert "torch._dynamo.convert_frame" not in sys.modules
import torch._dynamo.config as config
assert config is torch._dynamo.convert_frame.config
""",
    "torchvision's question": """
from torchvision.ops.roi_align import is_compile_supported
before = is_compile_supported
assert before("cpu") == sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")
""",
}
FAILS_ONCE = """
sys.modules["sympy"] = None
try:
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
except ImportError:
    del sys.modules["sympy"]
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
"""
AFTERWARDS = """
import torch._dynamo, torch._dynamo.decorators
assert "torch._dynamo.convert_frame" in sys.modules
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
POSTPONED_LATE = """
from ddp_trainer.resilience.compiler_import import postpone
there, finders = torch._dynamo, list(sys.meta_path)
postpone()
import torch._dynamo
print(torch._dynamo is sys.modules["torch._dynamo"] is there, sys.meta_path == finders)
"""


@pytest.fixture(scope="module")
def plain():
    """What a training says that nobody has told to postpone anything, and what becomes of its compiler when it is told so afterwards."""
    ended = subprocess.run([sys.executable, "-c", TRAIN + POSTPONED_LATE], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.fixture(scope="module")
def almost_there():
    """A parent whose forks have all that the compiler's import brings, but the compiler."""
    made = Parent([*PRELOAD, *SHARED, "zygote_targets"])
    yield made
    made.end()


@pytest.fixture
def says(tmp_path):
    """What a program says in a fork."""

    def output_of(parent, script):
        out, log = tmp_path / "out", tmp_path / "log"
        code = parent.run("executes", script=script, out=str(out), log=log)
        assert code == 0, log.read_text()
        return out.read_text().split()

    return output_of


def test_training_gives_the_same_bits_without_the_compiler(plain, warm_parent, says):
    parameters, *is_imported = plain[:3]
    assert is_imported == ["True", "True"]
    assert says(warm_parent, TRAIN) == [parameters, "False", "False"]


@pytest.mark.parametrize("use", USES)
def test_the_compiler_is_whole_for_whoever_uses_it(almost_there, plain, says, use):
    assert says(almost_there, TRAIN + USES[use] + AFTERWARDS) == [plain[0], "False", "True", "whole"]


def test_the_compiler_can_be_used_after_an_import_that_failed(warm_parent, plain, says):
    assert says(warm_parent, TRAIN + FAILS_ONCE + AFTERWARDS) == [plain[0], "False", "False", "whole"]


def test_a_compiler_that_is_there_stays(plain):
    assert plain[3:] == ["True", "True"]
