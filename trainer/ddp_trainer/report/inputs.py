"""What lies in a run directory, read without believing it: the one part of the report that touches files.

Each input may be missing, torn or of another shape, since the run may have died at any moment; then it is None (or shorter) and
`problems` says so in a sentence that the page shows. Only a directory with nothing of a run in it is refused. Reads only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_trainer.errors import DataError
from ddp_trainer.telemetry.evaluation import EVALUATION_FILE
from ddp_trainer.telemetry.events import read_events, read_metrics

Record = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The raw documents of one run; contract 3.3 of the design names the files."""

    name: str
    """The directory's name: the run's, unless config.json says otherwise."""
    config: Record | None
    config_hash: str | None
    events: list[Record]
    metrics: list[Record]
    progress: Record | None
    evaluation: Record | None
    manifest: Record | None
    """Of the newest checkpoint: it carries the versions of the libraries."""
    problems: tuple[str, ...]


def read_inputs(run_dir: Path) -> Inputs:
    """Read what is there.

    Raises:
        DataError: `run_dir` is not a directory, cannot be read, or holds nothing of a run.
    """
    try:
        if not run_dir.is_dir():
            raise DataError(f"there is no run directory {run_dir}; give one that a run has written, such as runs/demo")
        inputs = _inputs(run_dir)
    except OSError as error:
        raise DataError(f"the run directory {run_dir} cannot be read: {error.strerror}; give one that can be") from None
    if not (inputs.config or inputs.events or inputs.metrics or inputs.progress or inputs.evaluation):
        raise DataError(
            f"{run_dir} holds no readable config.json, events.jsonl, metrics.jsonl or progress.json, so there is nothing to report; "
            "give the directory of a run, such as runs/demo"
        )
    return inputs


def _inputs(run_dir: Path) -> Inputs:
    problems: list[str] = []
    manifest, metrics = _newest_manifest(run_dir), _lines(run_dir / "metrics.jsonl", read_metrics, problems)
    evaluations = [line for line in metrics if line.get("kind") == "eval"]
    has_no_classes = bool(evaluations) and not any("accuracy" in line for line in evaluations)
    config = _document(run_dir / "config.json", problems)
    return Inputs(
        name=run_dir.resolve().name,
        config=config,
        config_hash=_hash(config, manifest),
        events=_lines(run_dir / "events.jsonl", read_events, problems),
        metrics=metrics,
        progress=_document(run_dir / "progress.json", problems),
        evaluation=_document(run_dir / EVALUATION_FILE, [] if has_no_classes else problems),
        manifest=manifest,
        problems=tuple(problems),
    )


def _document(path: Path, problems: list[str]) -> Record | None:
    """The JSON object in `path`; None, with a problem noted, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} was not written.")
        return None
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
        return None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested to death
        problems.append(f"{path.name} is not valid JSON: {' '.join(str(error).split())}.")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds a {type(value).__name__}, not an object.")
        return None
    return value


def _lines(path: Path, read: Callable[[Path], list[Record]], problems: list[str]) -> list[Record]:
    if not path.is_file():
        problems.append(f"{path.name} was not written.")
        return []
    try:
        return [record for record in read(path) if isinstance(record, dict)]
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problems.append(f"{path.name} cannot be understood: {' '.join(str(error).split())}.")
    return []


def _newest_manifest(run_dir: Path) -> Record | None:
    """The manifest of the highest step that has a readable one."""
    for path in sorted(run_dir.glob("checkpoints/step-*/manifest.json"), reverse=True):
        manifest = _document(path, [])
        if manifest is not None:
            return manifest
    return None


def _hash(*documents: Record | None) -> str | None:
    """The digest of the configuration, from the first document that has it."""
    found = (value for document in documents if isinstance(value := (document or {}).get("config_hash"), str))
    return next(found, None)
