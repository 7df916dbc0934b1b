"""Checkpoints on disk: a folder exists only if it is complete, and is trusted only if it verifies.

Commit order, each step durable before the next: data files (written, flushed, fsynced) -> manifest -> the temporary folder -> rename to
`step-N` -> the parent folder -> `latest` -> retention. A crash anywhere leaves the previous checkpoint newest, or the new one complete.
`latest` is a hint for people; the loader trusts manifests. One process writes, holding the run's lock (see `lock`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddp_trainer.checkpoint import manifest as manifests
from ddp_trainer.checkpoint.manifest import BadCheckpointError, FileEntry, Manifest
from ddp_trainer.errors import DataError

_log = logging.getLogger(__name__)

TENSORS_NAME = "state.safetensors"
QUARANTINE_NAME = "quarantine"
READ_ATTEMPTS = 4
READ_PAUSE_SECONDS = 1.0
"""A network volume's hiccup passes; a good checkpoint must not be set aside for it."""
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint: its manifest, its tensors (on the CPU, by name), and what had to be set aside to get to it."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    quarantined: tuple[tuple[int, str], ...]


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, root: Path, keep: int = 3) -> None:
        self.root = root
        self.keep = keep

    def prepare(self) -> None:
        """Make the folder and clear what a killed writer left half done.

        Raises:
            DataError: the place cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for leftover in self.root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            probe = self.root / f"{_TEMPORARY}probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DataError(
                f"the run directory {self.root} cannot be written: {error.strerror}; give another with --run-dir, or fix its owner and mode"
            ) from None

    def steps(self) -> list[int]:
        """Steps that have a complete folder, oldest first."""
        if not self.root.is_dir():
            return []
        found = (manifests.step_of(folder) for folder in self.root.iterdir() if folder.is_dir())
        return sorted(step for step in found if step is not None)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.root / manifests.folder_name(step)

    def commit(self, tensors: Mapping[str, Tensor], describe: Callable[[dict[str, FileEntry]], Manifest]) -> Manifest:
        """Make a checkpoint durable; returns its manifest once it is.

        Args:
            tensors: contiguous CPU tensors by name.
            describe: completes the manifest, given the data files' sizes and hashes.

        Raises:
            DataError: the disk is full or failing; the previous checkpoint is untouched.
        """
        try:
            return self._commit(tensors, describe)
        except (OSError, SafetensorError) as error:
            full = f"os error {errno.ENOSPC})" in str(error) or (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT})
            remedy = "free space or lower checkpoint.keep" if full else "check the volume"
            raise DataError(f"a checkpoint cannot be written below {self.root}: {error}; {remedy}") from None

    def _commit(self, tensors: Mapping[str, Tensor], describe: Callable[[dict[str, FileEntry]], Manifest]) -> Manifest:
        work = self.root / f"{_TEMPORARY}{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            data = work / TENSORS_NAME
            save_file(dict(tensors), data)
            _sync(data)
            manifest = describe({TENSORS_NAME: FileEntry(bytes=data.stat().st_size, sha256=manifests.sha256_of(data))})
            write_durably(work / manifests.MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
            _sync(work)
            final = self.folder(manifest.step)
            if (already := self._already(final)) is not None:
                shutil.rmtree(work)
                manifest = already
            else:
                work.rename(final)
            _sync(self.root)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        write_durably(self.root / "latest", f"{manifests.folder_name(manifest.step)}\n".encode())
        self._retain()
        return manifest

    def load_newest(self) -> Loaded | None:
        """The newest checkpoint that verifies; None if there never was one. What fails goes to `quarantine/`, with the reason beside it.

        Raises:
            DataError: there were checkpoints, and none of them verifies; or a bad one cannot be moved; or the volume cannot be read, after
                `READ_ATTEMPTS`: then nothing is moved.
        """
        bad: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            folder = self.folder(step)
            try:
                manifest, tensors = self._read(folder)
                return Loaded(manifest, tensors, tuple(bad))
            except (BadCheckpointError, SafetensorError) as error:
                bad.append((step, str(error)))
                self._quarantine(folder, str(error))
        if set_aside := self._in_quarantine():
            newest = f" (the newest: {bad[0][1]})" if bad else ""
            raise DataError(
                f"none of the {set_aside} checkpoints below {self.root} verifies{newest}; they lie in quarantine/; "
                f"give an empty --run-dir, or start afresh here with --set run.resume=never"
            )
        return None

    def _read(self, folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return _trusted(folder), load_file(folder / TENSORS_NAME)
            except OSError as error:
                if attempt == READ_ATTEMPTS:
                    raise DataError(f"{folder} cannot be read: {error}; nothing was moved; start again once the volume is well") from None
                _log.warning("%s cannot be read (%s); trying again", folder, error)
                time.sleep(READ_PAUSE_SECONDS)
        raise AssertionError("READ_ATTEMPTS is at least 1")

    def verified(self) -> Iterator[tuple[int, Manifest | None, str]]:
        """Every step, newest first, with its manifest, or None and the reason why not. Nothing is moved."""
        for step in reversed(self.steps()):
            try:
                yield step, _trusted(self.folder(step)), ""
            except BadCheckpointError as error:
                yield step, None, str(error)

    def _already(self, folder: Path) -> Manifest | None:
        """A commit of this step from before a restart: it holds the same state, so it stays, and there is no moment without it."""
        if not folder.exists():
            return None
        try:
            return _trusted(folder)
        except BadCheckpointError as error:
            self._quarantine(folder, str(error))
            return None

    def _quarantine(self, folder: Path, reason: str) -> None:
        home = self.root / QUARANTINE_NAME
        target, n = home / folder.name, 1
        while target.exists():
            target, n = home / f"{folder.name}.{n}", n + 1
        try:
            home.mkdir(exist_ok=True)
            folder.rename(target)
            (target / "reason.txt").write_text(reason + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"the bad checkpoint {folder} ({reason}) cannot be moved to {QUARANTINE_NAME}: {error.strerror}; "
                f"make the volume writable, or move it yourself"
            ) from None

    def _in_quarantine(self) -> int:
        home = self.root / QUARANTINE_NAME
        return sum(1 for folder in home.iterdir() if folder.is_dir()) if home.is_dir() else 0

    def _retain(self) -> None:
        # what cannot be removed must not end the run: it is tried again after the next commit
        for step in self.steps()[: -self.keep]:
            folder = self.folder(step)
            with contextlib.suppress(OSError):
                folder.rename(self.root / f"{_TEMPORARY}{folder.name}")  # first, so that no folder with a step's name is ever incomplete
        for retired in self.root.glob(f"{_TEMPORARY}{manifests.PREFIX}*"):
            shutil.rmtree(retired, ignore_errors=True)


def _trusted(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file verifies, the tensors' among them.

    Raises:
        BadCheckpointError: with the reason.
    """
    manifest = manifests.verify(folder)
    if TENSORS_NAME not in manifest.files:
        raise BadCheckpointError(f"{TENSORS_NAME} is not in the manifest")
    return manifest


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file so that a crash leaves the old content or the new, never a mixture."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()  # fsync of an unflushed file makes nothing durable
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems refuse to sync a folder, and then need not
            raise
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
