"""Run once while the image is built: the byte code of all our modules, and the image's first test.

The test is to import what an agent and a rank import, as they do it: a part that cannot be imported fails the build.
"""

from __future__ import annotations

import compileall
import importlib
import sys
from pathlib import Path

import ddp_trainer
from ddp_trainer.resilience.entrypoint import PRELOAD

AGENT_IMPORTS = ("ddp_trainer.cli", "ddp_trainer.launchers.identity", "ddp_trainer.tasks.cifar10", "ddp_trainer.telemetry.node")


def main() -> int:
    """0 if all is well."""
    for name in (*AGENT_IMPORTS, *PRELOAD):
        importlib.import_module(name)
    return int(not compileall.compile_dir(Path(ddp_trainer.__file__).parent, quiet=1))


if __name__ == "__main__":
    sys.exit(main())
