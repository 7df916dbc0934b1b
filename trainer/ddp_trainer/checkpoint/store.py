"""Checkpoints on disk: a folder exists only if it is complete, and is trusted only if it verifies.

Commit order, each step durable before the next: data files (written, flushed, fsynced) -> manifest -> the temporary folder -> rename to
`step-N` -> the parent folder -> `latest` -> read back -> retention. A crash anywhere leaves the previous checkpoint newest, or the new one
complete; one of the same step that knows less is exchanged for the new one (see `replacing`). `latest` is a hint for people; the loader
trusts manifests. One process writes, while its agent holds the run's lock (see `lock`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ddp_trainer.checkpoint import manifest as manifests
from ddp_trainer.checkpoint.durable import TEMPORARY, Pace, write_durably, write_hashed
from ddp_trainer.checkpoint.loading import (
    QUARANTINE_NAME,
    Loaded,
    count_quarantined,
    evaluated_step,
    load_newest_of,
    patiently,
    quarantine,
    steps_in,
)
from ddp_trainer.checkpoint.manifest import BadCheckpointError, FileEntry, Manifest
from ddp_trainer.checkpoint.replacing import give_back, replace_folder
from ddp_trainer.checkpoint.retention import Retention
from ddp_trainer.errors import DataError
from ddp_trainer.syncing import sync_file, sync_folder

__all__ = ["LATEST_NAME", "QUARANTINE_NAME", "CheckpointStore", "Loaded"]

_log = logging.getLogger(__name__)

LATEST_NAME = "latest"
SPARE_BYTES = 4 * 1024 * 1024
"""Free space that must remain beside a checkpoint: for its manifest, the ledger, events and logs."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _nothing() -> None:
    """Nobody else can own the folder; nobody wants to know."""


def _untold(step: int, reason: str) -> None:
    """Nobody wants to know of bad checkpoints."""


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        root: the folder.
        keep: newest checkpoints that retention leaves.
        keep_every: checkpoints at multiples of this step stay, too.
        keep_best: the one with the best value of this metric stays, too.
        bytes_per_second: bound of the speed of writing.
        fence: called before anything is published or removed: it raises when this writer is no longer the run's.
        tell: called with the step and the reason when a bad checkpoint has been set aside.
    """

    def __init__(
        self,
        root: Path,
        keep: int = 3,
        keep_every: int | None = None,
        keep_best: str | None = None,
        bytes_per_second: float | None = None,
        fence: Callable[[], None] = _nothing,
        tell: Callable[[int, str], None] = _untold,
    ) -> None:
        self.root = root
        self.hashed_at = 0.0
        """When a block was hashed last (monotonic seconds), but for a commit's: a sign of life, since a large checkpoint takes minutes."""
        self._retention = Retention(keep, keep_every, keep_best)
        self._bytes_per_second = bytes_per_second
        self._fence = fence
        self._tell = tell
        self._known_good: set[int] = set()

    def prepare(self) -> None:
        """Make the folder and clear what a killed writer left half done. Only while nobody writes.

        Raises:
            DataError: the place cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            give_back(self.root)  # before the rest is cleared: it may be the only good one
            for leftover in self.root.glob(f"{TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            probe = self.root / f"{TEMPORARY}probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DataError(
                f"the run directory {self.root} cannot be written: {error.strerror}; give another with --run-dir, or fix its owner and mode"
            ) from None

    def steps(self) -> list[int]:
        """Steps that have a complete folder, oldest first.

        Raises:
            DataError: the volume cannot be read, after several attempts.
        """
        return patiently(self.root, steps_in)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.root / manifests.folder_name(step)

    # --- writing -----------------------------------------------------------------------------------------------------------------

    def commit(
        self,
        files: Mapping[str, Sequence[memoryview | bytes]],
        describe: Callable[[dict[str, FileEntry]], Manifest],
        attempt: int,
        durable: Callable[[], None] = _nothing,
    ) -> Manifest:
        """Make a checkpoint durable, then read it back; returns its manifest.

        Args:
            files: the content of each data file, as buffers in order.
            describe: completes the manifest, given the data files' sizes and hashes.
            attempt: of the writer's agent; it names the temporary folder.
            durable: called when the checkpoint is durable, before it is read back.

        Raises:
            DataError: the disk is full or failing, or does not give back what was written; the previous checkpoint is untouched.
        """
        with self._sentences():
            self.root.mkdir(parents=True, exist_ok=True)
            self._make_room(sum(memoryview(buffer).nbytes for buffers in files.values() for buffer in buffers))
            manifest = self._commit(files, describe, attempt)
        durable()
        try:
            manifests.verify(self.folder(manifest.step))
        except (BadCheckpointError, OSError) as error:
            raise DataError(f"{self.folder(manifest.step)} does not read back as it was written: {error}; check the volume") from None
        self._known_good.add(manifest.step)
        self._fence()
        with self._sentences():
            self._retain(self._retention)
        return manifest

    def adopt(self, folder: Path) -> Manifest:
        """Take in a complete checkpoint that lies in a temporary folder of this volume; a good one of its step that is here stays.

        Raises:
            BadCheckpointError: it does not verify.
            DataError: it cannot be moved here.
        """
        with self._sentences():
            manifest = manifests.verify(folder, self._hashed)
            for name in (*manifest.files, manifests.MANIFEST_NAME):
                sync_file(folder / name)
            self._publish(folder, manifest, replaces=False)
        self._known_good.add(manifest.step)
        return manifest

    def prune(self, keep: int) -> list[int]:
        """Remove all but the `keep` newest and the newest that verifies; returns the removed steps. Only while nobody writes."""
        self._know_a_good_one()
        return self._retain(Retention(keep))

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "free space or lower checkpoint.keep" if error.errno in _FULL else "check the volume"
            raise DataError(f"a checkpoint cannot be written below {self.root}: {error}; {remedy}") from None

    def _commit(
        self, files: Mapping[str, Sequence[memoryview | bytes]], describe: Callable[[dict[str, FileEntry]], Manifest], attempt: int
    ) -> Manifest:
        work = self.root / f"{TEMPORARY}{attempt}-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            pace = Pace(self._bytes_per_second)
            with ThreadPoolExecutor(manifests.HASHING_THREADS) as threads:
                written = threads.map(lambda item: write_hashed(work / item[0], item[1], pace), files.items())
                entries = {name: FileEntry(bytes=size, sha256=digest) for name, (size, digest) in zip(files, written, strict=True)}
            manifest = describe(entries)
            write_durably(work / manifests.MANIFEST_NAME, manifests.sealed(manifest.model_dump_json(indent=1).encode()))
            return self._publish(work, manifest, replaces=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # after a rename there is nothing left of it, after an exchange the old one

    def _publish(self, work: Path, manifest: Manifest, *, replaces: bool) -> Manifest:
        """Give a complete folder its name, durably; returns the manifest that is there then."""
        sync_folder(work)
        final = self.folder(manifest.step)
        already = self._already(final) if final.exists() else None
        if already is None:
            self._fence()
            work.rename(final)
        elif replaces and _says_more(work, manifest, final, already):
            _assert_reads_back(work, manifest)  # before the good one goes; it may be the only one
            self._fence()
            replace_folder(final, work)
            already = None
        sync_folder(self.root)
        self._fence()
        write_durably(self.root / LATEST_NAME, f"{final.name}\n".encode())
        return already or manifest

    def _already(self, folder: Path) -> Manifest | None:
        """A commit of this step from before a restart, or from before the evaluation that follows it, if it verifies."""
        try:
            return manifests.verify(folder, self._hashed)
        except BadCheckpointError as error:
            self._fence()
            self._set_aside(folder, str(error))
            return None

    def _hashed(self) -> None:
        self.hashed_at = time.monotonic()  # not a count: several threads hash

    def _set_aside(self, folder: Path, reason: str) -> None:
        quarantine(folder, reason)
        self._tell(manifests.step_of(folder) or 0, reason)

    def _make_room(self, size: int) -> None:
        """A full disk is freed by retention before it is written to; whether that is enough, the writing will tell."""
        if self._free_bytes() >= size + SPARE_BYTES:
            return
        self._fence()
        self._know_a_good_one()
        for step in self._retention.spare(self._metrics(), self._known_good):
            _log.warning("the volume of %s is full; the checkpoint of step %d makes room", self.root, step)
            self._remove(step)
            if self._free_bytes() >= size + SPARE_BYTES:
                return
        raise OSError(errno.ENOSPC, f"{size / 1e6:.1f} MB are needed and {self._free_bytes() / 1e6:.1f} MB are free")

    def _free_bytes(self) -> int:
        volume = os.statvfs(self.root)
        return volume.f_bavail * volume.f_frsize

    def _know_a_good_one(self) -> None:
        """Before older ones go: the newest ones of a run that has just been started again may be bad without anybody knowing yet."""
        for step in reversed(self.steps()):
            with contextlib.suppress(BadCheckpointError, DataError, OSError):
                manifests.verify(self.folder(step))
                self._known_good.add(step)
                return

    def _retain(self, retention: Retention) -> list[int]:
        # what cannot be removed must not end the run: it is tried again after the next commit
        removable = retention.removable(self._metrics(), self._known_good)
        for step in removable:
            self._remove(step)
        for retired in self.root.glob(f"{TEMPORARY}{manifests.PREFIX}*"):
            shutil.rmtree(retired, ignore_errors=True)
        return [step for step in removable if not self.folder(step).exists()]

    def _remove(self, step: int) -> None:
        folder = self.folder(step)
        retired = self.root / f"{TEMPORARY}{folder.name}"
        with contextlib.suppress(OSError):
            folder.rename(retired)  # first, so that no folder with a step's name is ever incomplete
        shutil.rmtree(retired, ignore_errors=True)
        self._known_good.discard(step)

    def _metrics(self) -> dict[int, Mapping[str, float]]:
        found: dict[int, Mapping[str, float]] = {}
        for step in self.steps():
            found[step] = {}
            with contextlib.suppress(BadCheckpointError, DataError, OSError):
                found[step] = manifests.read_manifest(self.folder(step)).metrics
        return found

    # --- reading -----------------------------------------------------------------------------------------------------------------

    def load_newest(self, newer_than: int = -1) -> Loaded | None:
        """The newest checkpoint that verifies; None if there is none above step `newer_than`.

        What fails goes to `quarantine/`, with the reason beside it.

        Raises:
            DataError: there were checkpoints, and none of them verifies; or a bad one cannot be moved; or one is of another format; or the
                volume cannot be read, after several attempts: then nothing is moved.
        """
        folders = (self.folder(step) for step in reversed(self.steps()) if step > newer_than)
        loaded, bad = load_newest_of(folders, self._set_aside, self._hashed)
        if loaded:
            self._known_good.add(loaded.manifest.step)
            return loaded
        if newer_than < 0 and (set_aside := patiently(self.root, count_quarantined)):
            newest = f" (the newest: {bad[0][1]})" if bad else ""
            raise DataError(
                f"none of the {set_aside} checkpoints below {self.root} verifies{newest}; they lie in {QUARANTINE_NAME}/; "
                f"give an empty --run-dir, or start afresh here with --set run.resume=never"
            )
        return None

    def has_good(self) -> bool:
        """Whether there is a checkpoint that verifies, or one of which that cannot be known now. Nothing is moved."""
        for step in reversed(self.steps()):
            try:
                manifests.verify(self.folder(step), self._hashed)
            except BadCheckpointError:
                continue
            except (manifests.OtherFormatError, OSError):
                return True  # not bad, and whoever loads it says what is the matter
            return True
        return False

    def verified(self) -> Iterator[tuple[int, Manifest | None, str]]:
        """Every step, newest first, with its manifest, or None and the reason why not. Nothing is moved."""
        for step in reversed(self.steps()):
            try:
                yield step, manifests.verify(self.folder(step)), ""
            except (BadCheckpointError, manifests.OtherFormatError) as error:
                yield step, None, str(error)


def _assert_reads_back(work: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        if manifests.sha256_of(work / name) != entry.sha256:
            raise DataError(f"{work / name} does not read back as it was written; check the volume")


def _says_more(new: Path, manifest: Manifest, old: Path, already: Manifest) -> bool:
    """Whether a new checkpoint of a step has something that the old one lacks, and not the other way round.

    A state that is kept before its evaluation may be written before the one with the evaluation's metrics, or after it: by a start that
    goes on from another node's memory.
    """
    is_same = (manifest.files, manifest.metrics) == (already.files, already.metrics)
    return not is_same and evaluated_step(new) >= evaluated_step(old)
