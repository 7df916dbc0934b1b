"""Reading checkpoints: newest first, only what verifies; what does not is set aside with the reason, never deleted and never loaded."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from ddp_trainer.checkpoint.manifest import BadCheckpointError, Manifest, step_of, verify
from ddp_trainer.errors import DataError

if TYPE_CHECKING:  # listing checkpoints needs no torch, whose import takes seconds
    from torch import Tensor

_log = logging.getLogger(__name__)

TENSORS_SUFFIX = ".safetensors"
STATE_NAME = "state.json"
QUARANTINE_NAME = "quarantine"
REASON_NAME = "reason.txt"
READ_ATTEMPTS = 4
READ_PAUSE_SECONDS = 1.0
"""A network volume's hiccup passes; a good checkpoint must not be set aside for it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: its manifest, its tensors (on the CPU, by full name), and what had to be set aside to get to it."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    quarantined: tuple[tuple[int, str], ...]
    extra: dict[str, Any] = field(default_factory=dict)
    """The content of `state.json`."""


def load_newest_of(
    folders: Iterable[Path], set_aside: Callable[[Path, str], None], hashed: Callable[[], None]
) -> tuple[Loaded | None, tuple[tuple[int, str], ...]]:
    """Load the first folder that verifies, having those before it `set_aside`; None, and what was set aside, if there is none.

    `hashed` is called as by `verify`.

    Raises:
        DataError: a bad one cannot be moved; or one is of another format; or the volume cannot be read, after `READ_ATTEMPTS`: then
            nothing is moved.
    """
    bad: list[tuple[int, str]] = []
    for folder in folders:
        try:
            manifest, tensors, extra = patiently(folder, partial(_read, hashed=hashed))
        except (BadCheckpointError, SafetensorError, ValueError) as error:
            bad.append((step_of(folder) or 0, str(error)))
            set_aside(folder, str(error))
        else:
            return Loaded(manifest, tensors, tuple(bad), extra), tuple(bad)
    return None, tuple(bad)


def quarantine(folder: Path, reason: str) -> None:
    """Move a bad checkpoint to `quarantine/` beside it, with the reason in `reason.txt`; an earlier one of its step stays.

    Raises:
        DataError: it cannot be moved.
    """
    home = folder.parent / QUARANTINE_NAME
    target, n = home / folder.name, 1
    while target.exists():
        target, n = home / f"{folder.name}.{n}", n + 1
    try:
        home.mkdir(exist_ok=True)
        folder.rename(target)
        (target / REASON_NAME).write_text(reason + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"the bad checkpoint {folder} ({reason}) cannot be moved to {QUARANTINE_NAME}: {error.strerror}; "
            f"make the volume writable, or move it yourself"
        ) from None


def count_quarantined(root: Path) -> int:
    """How many were set aside below a store's root. Raises OSError where the volume cannot be read now."""
    try:
        with os.scandir(root / QUARANTINE_NAME) as entries:
            return sum(entry.is_dir() for entry in entries)
    except FileNotFoundError:
        return 0


def evaluated_step(folder: Path) -> int:
    """The step of the last evaluation that a checkpoint remembers; -1 if it remembers none. Raises OSError where it cannot be read now."""
    try:
        return int(json.loads((folder / STATE_NAME).read_bytes())["history"][-1][0])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return -1


def steps_in(root: Path) -> list[int]:
    """Steps that have a complete folder below a store's root, oldest first; none where there is no such root.

    Raises:
        OSError: the volume cannot be read now.
    """
    try:
        with os.scandir(root) as entries:
            found = [step_of(Path(entry.name)) for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(step for step in found if step is not None)


def patiently(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read(folder)` gives, tried `READ_ATTEMPTS` times.

    Raises:
        DataError: the volume could not be read in any of them.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return read(folder)
        except OSError as error:
            if attempt == READ_ATTEMPTS:
                raise DataError(f"{folder} cannot be read: {error}; nothing was moved; start again once the volume is well") from None
            _log.warning("%s cannot be read (%s); trying again", folder, error)
            time.sleep(READ_PAUSE_SECONDS)
    raise AssertionError("READ_ATTEMPTS is at least 1")


def _read(folder: Path, hashed: Callable[[], None]) -> tuple[Manifest, dict[str, Tensor], dict[str, Any]]:
    """Everything in a checkpoint whose every file verifies.

    Raises:
        BadCheckpointError: with the reason.
        SafetensorError, ValueError: the files are what was written, which was no state.
    """
    from safetensors.torch import load_file

    from ddp_trainer.checkpoint.finite import not_finite

    manifest = verify(folder, hashed)
    files = [folder / name for name in manifest.files if name.endswith(TENSORS_SUFFIX)]
    if not files:
        raise BadCheckpointError("there are no tensors in the manifest")
    tensors = {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}
    if name := not_finite(tensors):  # this program writes none, but others may: every start from it would fail the same way
        raise BadCheckpointError(f"{name} is not finite")
    extra = json.loads((folder / STATE_NAME).read_bytes()) if STATE_NAME in manifest.files else {}
    if not isinstance(extra, dict):
        raise BadCheckpointError(f"{STATE_NAME} is not a mapping")
    return manifest, tensors, extra
