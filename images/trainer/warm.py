"""Run once while the image is built: leave on disk what every container would otherwise make anew at its start.

That is the byte code of all that an agent and a rank import, and the decoded sample images. It fails the build if a part of the trainer
cannot be imported, so it is the image's first test too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ddp_trainer.data.cache import open_or_build
from ddp_trainer.data.sources import resolve
from ddp_trainer.resilience.entrypoint import PRELOAD

AGENT_IMPORTS = ("ddp_trainer.cli", "ddp_trainer.launchers.identity", "ddp_trainer.resilience.agent", "ddp_trainer.telemetry.node")
CIFAR_PIXELS = 32


def main(cache: Path) -> None:
    """Import everything, then decode the packaged sample below `cache`."""
    for name in (*AGENT_IMPORTS, *PRELOAD):
        importlib.import_module(name)
    open_or_build(resolve("sample", cache), CIFAR_PIXELS, cache, lambda *_: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
