"""One `ddp local` per run directory: a lock that a second one finds before it has touched anything of the first.

Node 0's agent has a lock of its own (`checkpoint.lock`), but that one is asked for only when agents exist, whose logs, last words and
shared memory have the same names as those of the run that is going on. This one is the kernel's as well, and goes with the supervisor,
however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from io import TextIOWrapper
from pathlib import Path

from ddp_trainer.errors import DataError

LOCK_FILE = "supervisor.lock"


def claim(run_dir: Path) -> TextIOWrapper:
    """Take the directory, which must exist, until the returned file is closed; does not wait.

    A forked child has the lock as well, so fork first what is to outlive nothing.

    Raises:
        DataError: another supervisor has it, or the volume cannot lock.
    """
    try:
        file = (run_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise DataError(f"the run directory {run_dir} cannot be written: {error.strerror}; give another with --run-dir") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(32).strip() or "unknown"
        file.close()
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            raise DataError(
                f"{run_dir} is in use by another run (process {holder}); wait for it, stop it, or give another --run-dir"
            ) from None
        raise DataError(f"{run_dir / LOCK_FILE} cannot be locked: {error.strerror}; the volume must support flock") from None
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return file
