"""The official client's asyncio half, without the rest of it.

`import kubernetes.aio` runs `kubernetes/__init__.py`, which imports the synchronous half: its models, requests, OAuth, web sockets. That
takes 9 MB and a second of each start, for code that nobody calls. So the package's own file is not run: whoever imports a module of the
package by its full name gets it. Kopf takes the synchronous models for not installed, which it allows for.

To be imported before anything of `kubernetes` or `kopf`; if something else was first, all is as usual.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from typing import Final

PACKAGES: Final = ("kubernetes", "kubernetes.aio")
SYNCHRONOUS: Final = "kubernetes.client"


def bare(name: str) -> None:
    """Put a package in place, of which nothing has been run."""
    spec = find_spec(name)
    if spec is None:
        return
    sys.modules[name] = module = module_from_spec(spec)
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)


if PACKAGES[0] not in sys.modules:
    for package in PACKAGES:
        bare(package)
    sys.modules[SYNCHRONOUS] = None  # type: ignore[assignment]  # how Python says that it must not be imported
