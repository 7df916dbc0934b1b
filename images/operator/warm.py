"""Run once while the image is built: the byte code of all our modules, and the image's first test, which is to import them."""

from __future__ import annotations

import compileall
import importlib
import pkgutil
import sys
from pathlib import Path

import ddp_operator


def main() -> int:
    """0 if all is well."""
    for module in pkgutil.walk_packages(ddp_operator.__path__, "ddp_operator."):
        importlib.import_module(module.name)
    return int(not compileall.compile_dir(Path(ddp_operator.__file__).parent, quiet=1))


if __name__ == "__main__":
    sys.exit(main())
