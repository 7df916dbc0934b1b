"""What node 0 answers at `/progress` before it has an agent: that it makes its run directory ready, and gets on with it.

That may take an hour. Who asks would else take a node 0 that gives no document for one that hangs, and begin the download anew. It is not
written to `progress.json`: the start may still be refused, and then what lies in the run directory is another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddp_trainer.telemetry.node import last_known
from ddp_trainer.telemetry.progress import Ledger, compose


class Preface:
    """The document meanwhile. What an earlier agent knew of this run (step, loss) stands in it, as far as it lies in `run_dir`."""

    def __init__(self, run_dir: Path, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._before = last_known(run_dir, ledger.run)
        self._ledger = ledger
        self._clock = clock
        self.say("making the run directory ready")

    def say(self, note: str) -> None:
        """What is done now, in a line; a sign of life, too."""
        self._ledger = replace(self._ledger, phase="starting", note=note)
        self.gets_on()

    def gets_on(self) -> None:
        """A sign of life, which may be any thread's: `updated_at` moves. Raises nothing."""
        now = self._clock()
        # the same words as before are no news to `compose`
        self._document = compose((), self._ledger, self._before, now).model_copy(update={"updated_at": now}).to_bytes()

    def document(self) -> bytes:
        """As the status server serves it."""
        return self._document
