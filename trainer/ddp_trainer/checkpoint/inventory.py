"""What can be done with a run's checkpoints from outside: list, verify, prune, export. Nothing here moves a bad one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from ddp_trainer.checkpoint.loading import TENSORS_SUFFIX
from ddp_trainer.checkpoint.lock import RunLock
from ddp_trainer.checkpoint.manifest import BadCheckpointError, Manifest, OtherFormatError, read_manifest, verify
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.errors import DataError

MODEL_NAME = f"model{TENSORS_SUFFIX}"
EMA_NAME = f"ema{TENSORS_SUFFIX}"
HOW_TO_NAME = "README.md"
COLUMNS = ("step", "age_seconds", "bytes", "verified")


@dataclass(frozen=True)
class Entry:
    """One checkpoint as it was found."""

    step: int
    manifest: Manifest | None
    """None if the checkpoint is bad."""
    is_verified: bool | None
    """Whether every file's hash is right; None: not looked at, the manifest alone is whole."""
    reason: str = ""
    """What is wrong with it."""

    def verdict(self) -> str:
        """`yes`, `not looked at`, or `no` with the reason."""
        return {True: "yes", None: "not looked at", False: f"no: {self.reason}"}[self.is_verified]

    def plain(self, now: float) -> tuple[str, ...]:
        """The `COLUMNS` for a program: numbers, and a dash for what a bad checkpoint does not tell."""
        if self.manifest is None:
            return str(self.step), "-", "-", self.verdict()
        return str(self.step), f"{max(0.0, now - self.manifest.saved_at):.0f}", str(self.manifest.total_bytes), self.verdict()


def entries(run_dir: Path, *, hashed: bool, step: int | None = None) -> list[Entry]:
    """The checkpoints of a run, or the one of a step, newest first; `hashed`: every file is read, else manifests only.

    Raises:
        DataError: there is no such run or step, or the volume cannot be read.
    """
    store = _store(run_dir)
    steps = list(reversed(store.steps())) if step is None else [_existing(store, step)]
    return [_entry(store, number, hashed=hashed) for number in steps]


def prune(run_dir: Path, keep: int) -> list[int]:
    """Remove all but the `keep` newest checkpoints, and never the newest that verifies; returns the removed steps.

    Raises:
        DataError: there is no such run, or it is running: then its own retention is at work.
    """
    store = _store(run_dir)
    lock = RunLock.acquire(run_dir, 0)
    try:
        return store.prune(keep)
    finally:
        lock.release()


def export(run_dir: Path, out: Path, step: int | None = None, *, ema: bool = False) -> str:
    """Write the model of a step (None: of the newest that verifies) to `out`/model.safetensors; returns how to load it, as Markdown.

    `ema` takes the averaged parameters, and the model's own buffers beside them. The same text is written beside the file.

    Raises:
        DataError: there is no such checkpoint, it does not verify, it has no averaged parameters, or `out` cannot be written.
    """
    from safetensors.torch import load_file, save_file

    store = _store(run_dir)
    manifest = _newest_verified(store) if step is None else _verified(store, step)
    folder, target = store.folder(manifest.step), out / MODEL_NAME
    if ema and EMA_NAME not in manifest.files:
        raise DataError(f"{folder} has no averaged parameters, since the run had optim.ema_decay off; leave --ema out")
    if target.exists():
        raise DataError(f"{target} exists; remove it, or give another folder")
    with _readable(folder):
        tensors = load_file(folder / MODEL_NAME) | (load_file(folder / EMA_NAME) if ema else {})
    text = _how_to(run_dir, manifest, target, ema=ema)
    try:
        out.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".partial")
        save_file(tensors, draft)
        draft.replace(target)
        (out / HOW_TO_NAME).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:  # the latter is what that package makes of a full disk
        raise DataError(f"{out} cannot be written: {error}; give another folder") from None
    return text


def _store(run_dir: Path) -> CheckpointStore:
    root = run_dir / "checkpoints"
    if not root.is_dir():
        raise DataError(f"{run_dir} holds no checkpoints; give the directory of a run, such as runs/NAME")
    return CheckpointStore(root)


def _existing(store: CheckpointStore, step: int) -> int:
    steps = store.steps()
    if step not in steps:
        raise DataError(f"{store.root} has no checkpoint of step {step}; it has: {', '.join(map(str, steps)) or 'none'}")
    return step


def _entry(store: CheckpointStore, step: int, *, hashed: bool) -> Entry:
    folder = store.folder(step)
    with _readable(folder):
        try:
            manifest = verify(folder) if hashed else read_manifest(folder)
        except (BadCheckpointError, OtherFormatError) as error:
            return Entry(step, None, is_verified=False, reason=str(error))
    return Entry(step, manifest, is_verified=True if hashed else None)


def _verified(store: CheckpointStore, step: int) -> Manifest:
    entry = _entry(store, _existing(store, step), hashed=True)
    if entry.manifest is None:
        raise DataError(f"{store.folder(step)} does not verify: {entry.reason}; take another step")
    return entry.manifest


def _newest_verified(store: CheckpointStore) -> Manifest:
    for step in reversed(store.steps()):
        if manifest := _entry(store, step, hashed=True).manifest:
            return manifest
    raise DataError(f"{store.root} has no checkpoint that verifies; see ddp checkpoints verify {store.root.parent}")


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}; check the volume, or list again if the run is going on") from None


def _how_to(run_dir: Path, manifest: Manifest, target: Path, *, ema: bool) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in manifest.metrics.items()) or "not evaluated"
    return (
        f"# The model of {run_dir.name} after step {manifest.step}\n\n"
        f"Parameters: {'averaged (EMA)' if ema else 'as trained'}. Last evaluation: {metrics}.\n"
        f"Task and model of the run: {manifest.identity.get('task')}, {manifest.identity.get('model')}.\n\n"
        "To load it, with a model of the same architecture:\n\n"
        "```python\n"
        "from safetensors.torch import load_file\n\n"
        f'model.load_state_dict(load_file("{target}"))\n'
        "model.eval()\n"
        "```\n"
    )
