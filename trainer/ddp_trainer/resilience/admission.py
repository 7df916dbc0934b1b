"""Whether a start may go on with what lies in its run directory. Asked before its configuration and diary are written, and again by rank 0.

Only rank 0 knows the data, so that what differs in nothing else is refused later.
"""

from __future__ import annotations

import contextlib

from ddp_trainer.checkpoint.manifest import BadCheckpointError, Manifest, OtherFormatError, read_manifest
from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.config import RunConfig, differences
from ddp_trainer.errors import DataError


def assert_admitted(config: RunConfig, store: CheckpointStore, *, goes_on: bool) -> None:
    """Look at the newest checkpoint of which anything can be read; `goes_on`: the ranks of this very run wrote what is there.

    Raises:
        DataError: it is another run's, or one that must not be gone on with.
    """
    steps = store.steps()
    if config.run.resume == "never" and steps and not goes_on:
        raise DataError(
            f"{store.root} holds checkpoints and run.resume is never; give an empty --run-dir, or resume with --set run.resume=auto"
        )
    for step in reversed(steps):
        with contextlib.suppress(BadCheckpointError, OtherFormatError, OSError):  # who loads them says what is the matter
            assert_own(config, read_manifest(store.folder(step)), str(config.run_dir))
            return


def assert_own(config: RunConfig, manifest: Manifest, where: str, fingerprint: str | None = None) -> None:
    """Compare a checkpoint with what this start would train, and on which data, where that is known; `where`: the home it was found in.

    Raises:
        DataError: they differ, in the keys that it names, and `run.resume` is not `force`.
    """
    if config.run.resume == "force":
        return
    changed = differences(config.identity(), manifest.identity)
    if fingerprint is not None and manifest.data_fingerprint != fingerprint:
        changed.append(f"data content: {manifest.data_fingerprint[:12]} -> {fingerprint[:12]}")
    if changed:
        raise DataError(
            f"{where} holds a run of another configuration ({'; '.join(changed)}); give another "
            f"{'--run-dir' if where == str(config.run_dir) else 'checkpoint.mirror_url'}, "
            f"or take the checkpoint over with --set run.resume=force"
        )
