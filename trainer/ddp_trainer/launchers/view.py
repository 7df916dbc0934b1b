"""What `ddp local` shows while a run goes on: node 0's progress and the run's events, on the terminal of whoever started it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_trainer.config import RunConfig
from ddp_trainer.errors import DdpError
from ddp_trainer.telemetry.console import RunConsole, Tone
from ddp_trainer.telemetry.document import Progress
from ddp_trainer.telemetry.events import EVENTS_FILE
from ddp_trainer.telemetry.fetch import ENDPOINTS_FILE, fetch
from ddp_trainer.telemetry.readable import counted

REFRESH_SECONDS = 0.25
FETCH_SECONDS = 0.5


@dataclass
class View:
    """Fed by the supervisor's loop; every call returns within `FETCH_SECONDS`."""

    progress: Progress | None = None
    """The newest document of node 0."""
    _console: RunConsole | None = None
    _events: Path | None = None
    _read_bytes: int = 0
    _urls: list[str] = field(default_factory=list)
    _run_dir: Path | None = None
    _announced: bool = False
    _looked_at: float = 0.0

    def start(self, config: RunConfig, urls: list[str]) -> None:
        """Open the console; `urls` are the agents' in node order."""
        self._urls, self._run_dir, self._events = urls, config.run_dir, config.run_dir / EVENTS_FILE
        self._read_bytes = self._events.stat().st_size if self._events.exists() else 0
        self._console = RunConsole(config.run.name, config.world_size)

    def say(self, line: str, tone: Tone = "plain") -> None:
        """One line for people."""
        if self._console:
            self._console.say(line, tone)

    def refresh(self) -> None:
        """Show what is new, at most every `REFRESH_SECONDS`."""
        now = time.monotonic()
        if self._console is None or now - self._looked_at < REFRESH_SECONDS:
            return
        self._looked_at = now
        self._tell_events()
        try:
            self.progress = fetch(self._urls[0], timeout=FETCH_SECONDS)
        except DdpError:
            return  # node 0's agent is starting, or gone: the supervisor says so
        self._console.update(self.progress)
        if not self._announced and self._run_dir:
            self._announce(self._run_dir / ENDPOINTS_FILE)

    def finish(self, code: int, words: dict[str, Any]) -> None:
        """The last lines: the outcome, and why if it is not success."""
        if self._console is None:
            return
        self._looked_at = 0.0
        self._tell_events()
        self._console.close()
        if self._announced and self._run_dir:
            with contextlib.suppress(OSError):  # as below
                (self._run_dir / ENDPOINTS_FILE).unlink(missing_ok=True)
        if words:
            where = "" if words.get("rank") is None else f"rank {words['rank']}: "
            self._console.say(f"ended with {code} ({words.get('cause')}): {where}{words.get('message', '')}", "bad")
        elif code:
            self._console.say(f"ended with {code}", "bad")

    def _announce(self, path: Path) -> None:
        self._announced = True
        try:
            path.write_text(json.dumps({"nodes": self._urls}), encoding="utf-8")
        except OSError as error:  # a full disk must not end a run that can still train
            self.say(f"{path} cannot be written ({error.strerror}); give `ddp top` the addresses: {' '.join(self._urls)}", "bad")

    def _tell_events(self) -> None:
        if self._events is None:
            return
        try:
            with self._events.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read()
        except OSError:  # not there yet, or not to be read at this moment
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            try:
                said = _sentence(json.loads(line))
            except ValueError:
                continue
            if said:
                self.say(*said)


def _sentence(event: dict[str, Any]) -> tuple[str, Tone] | None:
    match event.get("kind"):
        case "fault":
            who = f"node {event.get('node')}" if event.get("rank") is None else f"rank {event.get('rank')}"
            return f"{who}: {event.get('message')} (step {event.get('step')})", "bad"
        case "lost":
            return f"node {event.get('node')}: {event.get('message')}", "bad"
        case "restart":
            return "all nodes meet again", "plain"
        case "resume":
            lost = event.get("lost_steps") or 0
            where = f"resumed at step {event['step']}" if event.get("step") else "started again from the beginning"
            return where + (f", {counted(lost, 'step')} to do again" if lost else ""), "good"
        case "checkpoint":
            seconds = event.get("persist_seconds") or 0.0
            return f"checkpoint at step {event.get('step')} ({(event.get('bytes') or 0) / 1e6:.0f} MB, {seconds:.2f} s)", "plain"
        case "evaluate":
            accuracy = (event.get("metrics") or {}).get("accuracy")
            return (f"test accuracy {accuracy:.1%} at step {event.get('step')}", "good") if accuracy is not None else None
        case "quarantine":
            return f"the checkpoint of step {event.get('step')} does not verify ({event.get('message')}); using an older one", "bad"
        case "note":
            return str(event.get("message")), "plain"
    return None
