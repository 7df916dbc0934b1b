"""What came of a run: its state, the samples it used, how long it stood still, and what it had to do again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from runs import Run, command
from safetensors.torch import load_file
from torch import Tensor

from ddp_trainer.telemetry.events import METRICS_FILE
from ddp_trainer.telemetry.jsonl import read_lines


def state_of(run: Run, step: int) -> dict[str, Tensor]:
    """Parameters, buffers and the optimizer's tensors of the checkpoint of `step`, by name; empty if it is not there."""
    folder = run.run_dir / "checkpoints" / f"step-{step:09d}"
    return {f"{file.stem}.{name}": tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def different(state: dict[str, Tensor], reference: dict[str, Tensor]) -> list[str]:
    """Names whose bits are not the same, or that only one of the two has."""
    return sorted(n for n in state.keys() | reference.keys() if n not in state or n not in reference or not state[n].equal(reference[n]))


def pid_of(run: Run, name: str) -> int:
    """The living process of the run with this name (`ddp-rank-2`, `ddp-agent-0`, `ddp-writer`), waited for."""
    return int(run.until(lambda: next((pid for pid in run.processes() if command(pid) == name), 0), name))


def recovery_seconds(run: Run, since: float) -> float | None:
    """From `since` to the end of the first new step; None if there was none."""
    first = next((event for event in run.of_kind("first_step") if event["time"] > since), None)
    return None if first is None else float(first["time"] - since)


def lost_steps(run: Run) -> int:
    """Steps done again, over all resumes: counted from the lines that each step wrote, not from the run's own account."""
    lost, reached = 0, 0
    for line in read_lines(run.run_dir / METRICS_FILE):  # all of them: `read_metrics` drops what a fault undid
        if line["kind"] == "resume":
            lost += max(0, reached - int(line["step"]))
        if line["kind"] in {"resume", "train"}:
            reached = int(line["step"])
    return lost


def newest_on_disk(run: Run) -> int:
    """The newest step with a complete folder; 0 if there is none."""
    return max((int(folder.name.removeprefix("step-")) for folder in (run.run_dir / "checkpoints").glob("step-*")), default=0)


def wrong_samples(run: Run, samples: Path, batch: int, steps: int) -> list[str]:
    """Sentences on every sample position of the stream that went into the final state not exactly once; empty when all is well.

    A generation's work counts from the step where it began up to the step where the next one began; what it did beyond is void.
    """
    begun = {int(event["attempt"]): int(event["step"]) for event in run.of_kind("resume")}
    trained = {int(event["attempt"]) for event in run.of_kind("first_step")}  # some are over before they come so far
    starts = {attempt: begun.get(attempt, 0) for attempt in begun.keys() | trained}
    forms = [(float(event["time"]), int(event["attempt"])) for event in run.of_kind("form")]
    used: Counter[int] = Counter()
    for log in samples.glob("*.jsonl"):
        lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        if not lines:
            continue
        attempt = max(number for formed, number in forms if formed <= lines[0]["time"])
        if attempt not in starts:
            continue
        later = [start for number, start in starts.items() if number > attempt]
        end = min([*later, steps])  # a later generation that began further back makes this one's work void as well
        for line in lines:
            if line["count"] != line["last"] - line["first"] + 1:
                return [f"a micro-batch of {line['count']} samples spans {line['first']} to {line['last']}"]
            if starts[attempt] <= line["first"] // batch < end:
                used.update(range(line["first"], line["last"] + 1))
    missing = [position for position in range(steps * batch) if not used[position]]
    twice = [position for position, times in used.items() if times > 1]
    return [
        f"{len(found)} samples {what}, first in step {min(found) // batch}"
        for found, what in ((missing, "left out"), (twice, "twice"))
        if found
    ]
