"""From the name in the configuration to a task: a built-in one, or the user's own as `package.module:name`.

The name after the colon is a class or function that is called with the RunConfig. The current directory is importable: it is searched
after the installed packages, so that a file of the user's can never stand in for one of ours or of the standard library. Whatever
keeps a task from loading is a ConfigError; what goes wrong inside the user's own constructor keeps its traceback.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import ConfigError
from ddp_trainer.tasks.protocol import TASK_MEMBERS, Task
from ddp_trainer.tasks.resnet import assert_resnet

BUILT_IN = {"cifar10": "ddp_trainer.tasks.cifar10:Cifar10", "imagefolder": "ddp_trainer.tasks.imagefolder:ImageFolder"}


def load_task(config: RunConfig) -> Task:
    """The task that `config.task.name` names, built from the whole configuration.

    Raises:
        ConfigError: the module does not import, has no such name, cannot be called with a RunConfig, or lacks a member of the protocol.
    """
    name = config.task.name
    if name not in BUILT_IN and ":" not in name:
        raise ConfigError(
            f"task.name is {name!r}, which is not a built-in task ({', '.join(BUILT_IN)}); "
            f"write your own as package.module:name, see docs/your-own-model.md"
        )
    if name in BUILT_IN and config.task.options:
        raise ConfigError(
            f"task.options is {config.task.options!r} but the task {name!r} takes none; remove it, or name a task of your own"
        )
    if name in BUILT_IN:
        assert_resnet(config.model.name)  # here, not where it is built: before that the data are fetched, which may take an hour
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    factory = _attribute(_module(module_name, name), attribute, name)
    try:
        inspect.signature(factory).bind(config)
    except TypeError as error:
        raise ConfigError(f"task.name {name!r} cannot be called with the RunConfig as its one argument: {error}") from None
    task = factory(config)
    for member in TASK_MEMBERS:
        # statically: a task's `classes` may be a property that reads the data, which must not happen yet
        found = inspect.getattr_static(task, member, None)
        if found is None:
            raise ConfigError(
                f"task.name {name!r} has no {member!r}, which a task needs ({', '.join(TASK_MEMBERS)}); see docs/your-own-model.md"
            )
        if member != "classes" and not isinstance(found, staticmethod | classmethod) and not callable(found):
            raise ConfigError(f"task.name {name!r}: {member!r} is not a method; see docs/your-own-model.md")
    return cast("Task", task)


def _module(module_name: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"task.name is {name!r} but there is no module {error.name!r}, neither installed nor below {here}; "
                f"start from the folder that holds it"
            ) from None
        raise ConfigError(_import_failed(module_name, name, error)) from None
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(_import_failed(module_name, name, error)) from None


def _import_failed(module_name: str, name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename} line {frames[-1].lineno}" if frames else module_name
    if isinstance(error, SyntaxError):
        where = f"{error.filename} line {error.lineno}"
    return f"task.name is {name!r} but {module_name} does not import: {type(error).__name__}: {error} ({where}); correct it and start again"


def _attribute(module: Any, attribute: str, name: str) -> Any:
    found = getattr(module, attribute, None)
    if found is None:
        public = sorted(n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and callable(v))
        raise ConfigError(
            f"task.name is {name!r} but {module.__name__} has no {attribute!r}; it has: {', '.join(public) or 'nothing callable'}"
        )
    if not callable(found):
        raise ConfigError(f"task.name is {name!r} but that is a {type(found).__name__}, not a class or function taking the RunConfig")
    return found
