"""Keeps torch's compiler from being imported by a run that does not compile: half of the CPU time of a start.

Eager training asks `torch._dynamo` small things only: torch.optim breaks graphs around a step, torch decorates functions that must not be
traced, DDP asks for its mode, init_process_group clears a cache, and torchvision.ops looks up a name. Each makes Python import all of the
compiler, with SymPy, and a node that replaces a lost one pays for it while all others wait. After `postpone()` modules of these names
stand in, which answer just that, and torch and torchvision only; whatever else is asked of the compiler, or by anybody else, imports it
then and there.

Nothing of torch is changed. `importlib.util.LazyLoader` does the same for modules of which nothing at all is asked.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import MappingProxyType, ModuleType
from typing import Any

PACKAGE = "torch._dynamo"
ASKERS = ("torch", "torchvision")


def postpone() -> None:
    """From now on the compiler is imported when it is used. To be called before torch is imported; forks inherit it."""
    if PACKAGE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _graph_break(msg: str = "") -> None:
    """Outside of a trace there is no graph to break."""


def _disable(fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
    """What is not compiled need not be kept from it."""
    if fn is None or options != {"wrapping": False}:  # not torch's own decorator: somebody means to compile
        return _real(PACKAGE).disable(fn, recursive, **options)
    _undecorated.append(fn)
    return fn


def _is_compile_supported(device_type: str) -> bool:
    return bool(_real(f"{PACKAGE}.utils").is_compile_supported(device_type))


_ANSWERS: Mapping[str, Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        PACKAGE: {"graph_break": _graph_break, "disable": _disable},
        f"{PACKAGE}.utils": {
            "get_optimize_ddp_mode": lambda: "ddp_optimizer",  # the default, which only the compiler's own configuration can change
            "is_compile_supported": _is_compile_supported,
        },
        f"{PACKAGE}.trace_rules": {"clear_lru_cache": lambda: None},
    }
)
_undecorated: list[Any] = []
_lock = threading.Lock()


class _StandIn(ModuleType):
    """A module of the compiler's that has its answers and nothing else; for anything else it asks the real one."""

    def __getattr__(self, name: str) -> Any:
        is_postponed = sys.modules.get(self.__name__) is self
        if is_postponed and f"{self.__name__}.{name}" in _ANSWERS:
            return importlib.import_module(f"{self.__name__}.{name}")
        if is_postponed and name in _ANSWERS[self.__name__] and _asker().partition(".")[0] in ASKERS:
            return _ANSWERS[self.__name__][name]
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")  # `warnings` and others look through all modules
        return getattr(_real(self.__name__), name)


def _asker() -> str:
    """The module of whoever asks for an attribute."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))  # noqa: SLF001  # as `warnings` finds whom to name


def _real(name: str) -> ModuleType:
    """Import the compiler after all, and give its module `name`."""
    with _lock:  # never held while something is imported: Python's own locks are the only ones that it can keep from a deadlock
        for stand_in in [name for name in _ANSWERS if isinstance(sys.modules.get(name), _StandIn)]:
            del sys.modules[stand_in]
            vars(sys.modules["torch"]).pop("_dynamo", None)
        while _undecorated:
            vars(_undecorated.pop()).pop("__dynamo_disable", None)  # where torch keeps the answer: it asks again at the next call
        _Finder.is_inert = True
    importlib.import_module(PACKAGE)
    return importlib.import_module(name)


class _Finder(MetaPathFinder):
    """Finds stand-ins while the compiler has not been imported. It stays, inert: others may be going through the finders at that moment."""

    is_inert = False

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if self.is_inert:
            return None
        if fullname in _ANSWERS:
            return ModuleSpec(fullname, _StandInLoader(), is_package=fullname == PACKAGE)
        if fullname.startswith(f"{PACKAGE}.") and _is_there(fullname):
            return ModuleSpec(fullname, _RealLoader())
        return None


def _is_there(fullname: str) -> bool:
    folders = [f"{path}/_dynamo" for path in sys.modules["torch"].__path__]
    return PathFinder.find_spec(fullname, folders) is not None


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


class _RealLoader(Loader):
    """Gives a module that the compiler's own import has made: executed once more, it would be another one than the compiler uses."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _real(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec  # which the import that asked has replaced by the one that led here
