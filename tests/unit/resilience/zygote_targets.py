"""What the children of the zygote tests do. Nothing heavy is imported here: each test starts its own processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ddp_trainer.resilience.zygote import Zygote

IMPORTED_BY = os.getpid()
"""Which process imported this module: a forked child has it from its zygote."""


def returns(value: Any) -> Any:
    return value


def raises(message: str) -> None:
    raise ValueError(message)


def leaves(value: Any) -> None:
    sys.exit(value)


def dies(signum: int) -> None:
    os.kill(os.getpid(), signum)
    signal.pause()


def leaves_a_process(path: str) -> None:
    """Die with a process of one's own that does not know it, as a rank with data loaders that is killed."""
    with subprocess.Popen(["/bin/sleep", "600"]) as below:
        Path(path).write_text(str(below.pid), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def stays() -> None:
    signal.pause()


def speaks(out: str, err: str) -> None:
    print(out)
    print(err, file=sys.stderr)
    os.write(1, b"from below\n")


def executes(script: str, out: str) -> None:
    """Run a program's text; what it prints goes to `out`."""
    with Path(out).open("w", encoding="utf-8") as lines, contextlib.redirect_stdout(lines):
        exec(script, {"__name__": "__main__"})


def tells(path: str) -> None:
    """Write what this process is."""
    about = {
        "environment": dict(os.environ),
        "inherited_by_programs": subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout.splitlines(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "modules": sorted(sys.modules),
        "imported_by": IMPORTED_BY,
        "threads": threading.active_count(),
        "sigterm_is_default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    }
    Path(path).write_text(json.dumps(about))


def agent(path: str) -> None:
    """Be what an agent is: somebody's child, with a zygote and a rank of its own."""
    zygote = Zygote.fork([])
    rank = zygote.spawn("zygote_targets:stays", {}, {})
    Path(path).write_text(json.dumps({"agent": os.getpid(), "zygote": zygote.pid, "rank": rank}))
    signal.pause()
