"""A program, not a test: the parent of a zygote. Its argument is the preload as JSON; each line of its input is [method, arguments...].

It answers each with one line: {"value": ...} or {"error": ..., "kind": ...}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ddp_trainer.resilience.compiler_import import postpone
from ddp_trainer.resilience.zygote import Zygote

postpone()  # as an agent does
zygote = Zygote.fork(json.loads(sys.argv[1]))
methods = {
    "pid": lambda: zygote.pid,
    "ready": zygote.wait_ready,
    "spawn": lambda target, arguments, environment, log, is_deaf: zygote.spawn(
        target, arguments, environment, Path(log) if log else None, is_deaf=is_deaf
    ),
    "kill": zygote.kill,
    "orphans": zygote.kill_orphans,
    "deaths": lambda seconds: [(death.pid, death.code) for death in zygote.deaths(seconds)],
    "close": zygote.close,
}
for line in sys.stdin:
    method, *arguments = json.loads(line)
    try:
        answer = {"value": methods[method](*arguments)}
    except Exception as error:  # told to the test, which decides
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)
