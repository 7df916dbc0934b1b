"""A second home for checkpoints, at any fsspec URL: S3, Google Cloud Storage, a folder on another volume.

Copies go data first and manifest last, so that half a copy has no manifest and is no checkpoint. Copying happens on a thread of its own:
a second home that is slow or gone delays no commit, and what fails is logged and ends nothing. Nothing is ever removed there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ddp_trainer.checkpoint.durable import TEMPORARY
from ddp_trainer.checkpoint.manifest import MANIFEST_NAME, BadCheckpointError, Manifest, OtherFormatError, read_manifest, step_of
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.errors import ConfigError, DataError, PeerLostError

_log = logging.getLogger(__name__)

_OBJECT_STORES = frozenset({"s3", "gs", "gcs", "abfs", "az", "oss"})
"""They have no folders; making one makes the bucket, so that a misspelt name would become a bucket of its own."""
_VOLUME_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What only a local disk says."""
_BLOCK_BYTES = 8 * 1024 * 1024
"""Copied at a time; object stores want parts of at least 5 MiB."""


class _HalfCopyError(Exception):
    """A copy that broke off: no checkpoint."""


class Mirror:
    """One run's folder at an fsspec URL. Credentials and endpoints are found the way the URL's own package finds them.

    Belongs to the process that first used it: it does not survive a fork.
    """

    def __init__(self, url: str, every: int = 1) -> None:
        self._url = url.rstrip("/")
        self._every = every
        self._offered = 0
        self._waiting: Path | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None

    def offer(self, folder: Path, *, is_last: bool = False) -> bool:
        """Copy a committed checkpoint there, if it is the first since the start, an n-th after it, or the last; says whether it will be.

        Returns at once, raises nothing. One copy is in flight at a time; of the checkpoints taken meanwhile, the newest is copied next.
        """
        self._offered += 1
        if (self._offered - 1) % self._every and not is_last:
            return False
        with self._lock:
            self._waiting = folder
            if self._thread is None:
                self._thread = threading.Thread(target=self._copy_all, name="mirror", daemon=True)
                self._thread.start()
        return True

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until nothing is being copied; False if that takes longer."""
        thread = self._thread
        if thread:
            thread.join(timeout_seconds)
        return thread is None or not thread.is_alive()

    def newest(self) -> int | None:
        """The step of the newest checkpoint that was copied there whole, which is not looked into; None if there is none.

        Raises:
            ConfigError, PeerLostError: as `fetch_newest`.
        """
        with self._answers() as (files, root):
            for step, name in _copies(files, root):
                if files.exists(f"{root}/{name}/{MANIFEST_NAME}"):
                    return step
        return None

    def fetch_newest(self, store: CheckpointStore, admit: Callable[[Manifest], None] = lambda _: None) -> int | None:
        """Download the newest checkpoint that verifies into a store; returns its step, or None where none was ever copied whole.

        `admit` is shown each one's manifest before its data are fetched, and may raise a DataError: another run's is not to be taken.

        To begin anew in spite of a copy would undo what it keeps, so where there are copies one is taken, or the run does not start.

        Raises:
            ConfigError: there is no such kind of place, or its package is not installed.
            PeerLostError: the place does not answer, or does not give what it lists; it may later.
            DataError: it gives what it lists, and nothing of it verifies; or the volume cannot take it.
        """
        with self._answers() as (files, root):
            found = _copies(files, root)
        withheld, bad = "", ""  # why, of the newest such copy
        for step, name in found:
            try:
                self._fetch(files, f"{root}/{name}", store, admit)
            except (OtherFormatError, BadCheckpointError, _HalfCopyError) as error:
                _log.warning("%s/%s cannot be used (%s)", self._url, name, error)
                bad = bad or ("" if isinstance(error, _HalfCopyError) else f"{name}: {error}")
            except DataError:  # of this volume, or of another run: an older copy would not fit either
                raise
            except Exception as error:  # as above; an older one may be given
                _log.warning("%s/%s cannot be used (%s)", self._url, name, _words(error))
                withheld = withheld or f"{name}: {_words(error)}"
            else:
                return step
        self._assert_empty(withheld, bad)
        return None

    @contextlib.contextmanager
    def _answers(self) -> Iterator[tuple[Any, str]]:
        """The place, at a start that needs to know what is there: what it raises meanwhile becomes a sentence."""
        try:
            yield self._open()
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.mirror_url {self._url} cannot be used: {_words(error)}; see fsspec's list of places") from None
        except Exception as error:  # whatever a storage service's package raises
            raise PeerLostError(
                f"the volume has no good checkpoint and its second home {self._url} cannot be read ({_words(error)}); "
                f"see why it does not answer, or leave checkpoint.mirror_url out to begin anew"
            ) from None

    def _assert_empty(self, withheld: str, bad: str) -> None:
        """Nothing could be fetched: right where there was nothing; else the reason why a copy was not given, or does not verify."""
        if withheld:
            raise PeerLostError(
                f"the volume has no good checkpoint and its second home {self._url} lists some but does not give one ({withheld}); "
                f"see why it does not, or leave checkpoint.mirror_url out to begin anew"
            )
        if bad:
            raise DataError(
                f"the volume has no good checkpoint and none of those in its second home {self._url} verifies ({bad}); "
                f"leave checkpoint.mirror_url out to begin anew, or give it another URL"
            )

    def _copy_all(self) -> None:
        while True:
            with self._lock:
                folder, self._waiting = self._waiting, None
                if folder is None:
                    self._thread = None  # under the lock, so that an offer either is seen here or starts another thread
                    return
            try:
                self._copy(folder)
            except Exception as error:  # as above
                _log.warning("%s was not copied to %s (%s); training goes on", folder.name, self._url, _words(error))

    def _copy(self, folder: Path) -> None:
        with contextlib.ExitStack() as stack:
            manifest, contents = _opened(folder, stack)
            files, root = self._open()
            target = f"{root}/{folder.name}"
            if not _OBJECT_STORES.intersection([files.protocol] if isinstance(files.protocol, str) else files.protocol):
                files.makedirs(target, exist_ok=True)
            if files.exists(f"{target}/{MANIFEST_NAME}"):
                if files.cat_file(f"{target}/{MANIFEST_NAME}") == manifest.read():
                    return  # from before a restart
                manifest.seek(0)
                files.rm_file(f"{target}/{MANIFEST_NAME}")  # it must not vouch for a mixture of two
            for name, content in contents.items():
                _upload(files, content, f"{target}/{name}")
            _upload(files, manifest, f"{target}/{MANIFEST_NAME}")

    def _fetch(self, files: Any, source: str, store: CheckpointStore, admit: Callable[[Manifest], None]) -> None:
        work = store.root / f"{TEMPORARY}mirror-{os.getpid()}"
        folder = work / Path(source).name
        shutil.rmtree(work, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            try:
                files.get_file(f"{source}/{MANIFEST_NAME}", str(folder / MANIFEST_NAME))
            except FileNotFoundError:
                raise _HalfCopyError("it has no manifest, so its copy never ended") from None
            manifest = read_manifest(folder)  # which refuses names that lead out of the folder
            admit(manifest)
            for name in manifest.files:
                try:
                    files.get_file(f"{source}/{name}", str(folder / name))
                except FileNotFoundError:
                    raise BadCheckpointError(f"{name} is missing") from None
            store.adopt(folder)
        except OSError as error:
            if error.errno not in _VOLUME_ERRORS:
                raise
            raise DataError(
                f"{source} cannot be fetched into {store.root}: {error.strerror}; free space there, or make it writable"
            ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _open(self) -> tuple[Any, str]:
        """The file system and the path in it; made once, since clients of object stores are slow to make."""
        if self._opened is None:
            import fsspec

            # not fsspec's own cached instance: it may come from before a fork, whose threads are not here, and its listings may be old
            files, root = fsspec.core.url_to_fs(self._url, skip_instance_cache=True, use_listings_cache=False)
            self._opened = files, root.rstrip("/")
        return self._opened


def _copies(files: Any, root: str) -> list[tuple[int, str]]:
    """(step, name) of what was copied there, whole or not, newest first."""
    try:
        names = [name.rstrip("/").rpartition("/")[2] for name in files.ls(root, detail=False)]
    except FileNotFoundError:
        return []  # nothing was ever copied
    return sorted(((step, name) for name in names if (step := step_of(Path(name))) is not None), reverse=True)


def _opened(folder: Path, stack: contextlib.ExitStack) -> tuple[IO[bytes], dict[str, IO[bytes]]]:
    """The manifest and the data files of one checkpoint, by name.

    All before any is read: retention may remove the folder while it is copied, which takes away the names, not the contents.
    """
    while True:
        manifest: IO[bytes] = stack.enter_context((folder / MANIFEST_NAME).open("rb"))
        contents: dict[str, IO[bytes]] = {name: stack.enter_context((folder / name).open("rb")) for name in read_manifest(folder).files}
        if (folder / MANIFEST_NAME).read_bytes() == manifest.read():
            manifest.seek(0)
            return manifest, contents
        # another has taken the folder's place meanwhile: these are files of two


def _upload(files: Any, content: IO[bytes], target: str) -> None:
    with files.open(target, "wb") as remote:
        shutil.copyfileobj(content, remote, _BLOCK_BYTES)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
