"""The tests' end of `custody_parent.py`: benches with real writers, and waiting for what they say."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ddp_trainer.checkpoint.store import CheckpointStore
from ddp_trainer.telemetry.events import read_events

PATIENCE_SECONDS = 120.0
"""A bound against hanging only."""
LOOK_SECONDS = 0.02
_PROGRAM = Path(__file__).with_name("custody_parent.py")


class Parent:
    """The program, for as many benches as it has."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._numbers = itertools.count()

    def bench(self, root: Path) -> Bench:
        """The next fresh one."""
        return Bench(self, next(self._numbers), root)

    def ask(self, *words: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "value" in answer, answer
        return answer["value"]

    def end(self) -> None:
        """With its zygote and all writers, which die with their parents."""
        self.process.kill()
        self.process.communicate()


class Bench:
    """One node's memory, agent and writer."""

    def __init__(self, parent: Parent, number: int, root: Path) -> None:
        self._parent, self._number = parent, number
        self.root = root
        self.run_dir = root / "run"
        self.store = CheckpointStore(self.run_dir / "checkpoints")

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: self._parent.ask(self._number, method, *arguments)

    def begin(self, settings: dict[str, Any] | None = None, attempt: int = 1) -> int:
        """An agent with its writer; the writer's pid."""
        self.agent(str(self.root), settings or {}, attempt)
        return self.start()

    def until(self, told: Any) -> dict[str, Any]:
        """The first report for which `told(report)` holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            report = self.report()
            if told(report):
                return report
            time.sleep(LOOK_SECONDS)
        raise AssertionError(f"not within {PATIENCE_SECONDS} s; last report: {report}; log: {(self.root / 'writer.log').read_text()}")

    def until_written(self, number: int) -> dict[str, Any]:
        return self.until(lambda report: report.get("number", 0) >= number)

    def until_failed(self, number: int, times: int = 1) -> dict[str, Any]:
        """What the writer says of the failure."""
        report = self.until(lambda report: (report.get("failed") or {}).get("number") == number and report["failed"]["times"] >= times)
        return report["failed"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run_dir / "events.jsonl") if event["kind"] == kind]
