"""Real gloo ranks for the tests: `python gang.py REQUEST` imports torch once and forks them; nothing is shared but the process group."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 150
"""A bound against hanging only."""


def ranks(target: str, world_size: int, on_machine: int | None = None, **arguments: Any) -> list[Any]:
    """Run `module:function(group, **arguments)` on every rank; what each gives (JSON), in rank order.

    `on_machine`: how many of them believe to share a machine; default: all, which then add up gradients in memory.
    The module is looked for where the tests are imported from.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = {"target": target, "world_size": world_size, "arguments": arguments, "folder": folder, "path": sys.path}
        request["on_machine"] = on_machine or world_size
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(request)], check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(world_size)]


def _rank(rank: int, request: dict[str, Any]) -> int:
    import torch

    from ddp_trainer.distributed import Group, Place

    size, meeting = request["world_size"], f"file://{request['folder']}/meeting"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    group = Group(Place(rank, size, rank, request["on_machine"], "", 0, ""), torch.device("cpu"), "gloo")
    module, _, name = request["target"].partition(":")
    given = getattr(importlib.import_module(module), name)(group, **request["arguments"])
    (Path(request["folder"]) / str(rank)).write_text(json.dumps(given))
    group.leave()
    return 0


def _main() -> int:
    request = json.loads(sys.argv[1])
    sys.path[:] = request["path"]
    from ddp_trainer.resilience.compiler_import import postpone

    postpone()  # as in a run's ranks: else each of them imports the compiler at its first DDP, 4 s of CPU
    importlib.import_module(request["target"].partition(":")[0])  # before the forks: torch's import is what costs
    children = []
    for rank in range(request["world_size"]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _rank(rank, request)
            except BaseException:  # the process's edge: told to the test
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(_main())
