"""The words of the page: its opening sentence, its cards of headline numbers, and the configuration as rows. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import BaseModel

from ddp_trainer.config import RunConfig
from ddp_trainer.report.inputs import Record
from ddp_trainer.report.numbers import UNKNOWN, count, duration, percent
from ddp_trainer.report.story import Run
from ddp_trainer.telemetry.goodput import Goodput
from ddp_trainer.telemetry.incidents import REJOIN
from ddp_trainer.telemetry.readable import counted

VALUE_CHARACTERS = 300
"""A configuration value longer than this is cut; config.json has it whole."""


@dataclass(frozen=True)
class Card:
    """One headline number."""

    label: str
    value: str
    note: str = ""
    tone: str = ""
    """good, bad or nothing."""


@dataclass(frozen=True)
class Share:
    """A part of the run time; `ratio` is its share of the whole, `color` a CSS variable of the page."""

    label: str
    color: str
    seconds: float
    ratio: float


@dataclass(frozen=True)
class Setting:
    """One leaf of the configuration; `default` is None where the schema does not know the key."""

    key: str
    value: str
    default: str | None
    help: str

    @property
    def is_changed(self) -> bool:
        """Whether it differs from the default."""
        return self.value != self.default


def cause_words(cause: str) -> str:
    """`peer_loss` -> `peer loss`."""
    return cause.replace("_", " ")


def shares(goodput: Goodput) -> list[Share]:
    """The parts of the run time, best first; those that took none are left out."""
    parts = (
        ("training that lasted", "var(--accent)", goodput.lasting_seconds),
        ("lost work", "var(--warn)", goodput.lost_seconds),
        ("recovery", "var(--bad)", goodput.recovering_seconds),
        ("copies of the state", "var(--violet)", goodput.stall_seconds),
        ("start", "var(--idle)", goodput.starting_seconds),
    )
    return [Share(label, color, seconds, seconds / goodput.wall_seconds) for label, color, seconds in parts if seconds > 0]


def sentence(run: Run, config: Record | None) -> str:
    """What happened, in one or two sentences."""
    trained = _section(config, "model").get("name") or "A model"
    task = _section(config, "task").get("name")
    what = f"{trained} on {task}" if task else str(trained)
    where = f", {_world(run)}" if run.world_size else ""
    verb = {
        "finished": "finished after",
        "stopped": "was stopped after",
        "failed": "failed after",
        "unfinished": "has no recorded end; seen for",
    }
    ending = f"{verb[run.outcome.word]} {duration(run.wall_seconds)}"
    if run.final_accuracy is not None:
        ending += f" with {percent(run.final_accuracy)} test accuracy"
    return f"{what}{where}: {ending}.{_faults_sentence(run)}"


def _faults_sentence(run: Run) -> str:
    struck = [i for i in run.incidents if i.cause != REJOIN]
    healed = [i.recovery_seconds for i in struck if i.recovery_seconds is not None]
    if not struck:
        return ""
    faults = counted(len(struck), "fault")
    if not healed:
        return f" It met {faults} and did not recover."
    each = f"in {duration(max(healed))}" if len(healed) == 1 else f"in at most {duration(max(healed))} each"
    rest = "" if len(healed) == len(struck) else f" after {len(healed)} of them"
    cost = (
        f", at a cost of {counted(run.lost_steps, 'step')} of work"
        if run.lost_steps
        else ", without losing a step"
        if run.lost_steps == 0
        else ""
    )
    went_on = "was training again" if any(i.resumed_step for i in struck) else "started again from the beginning"
    return f" It met {faults} and {went_on}{rest} {each}{cost}."


def cards(run: Run) -> list[Card]:
    """The headline numbers, most important first."""
    restarts, saved = sum(run.restarts.values()), run.goodput.checkpoints
    stalls = [checkpoint.stall_seconds for checkpoint in run.checkpoints if checkpoint.stall_seconds is not None]
    healed = [i.recovery_seconds for i in run.incidents if i.recovery_seconds is not None]
    made = (run.last_step or 0) + (run.lost_steps or 0)
    lost_share = f"{percent(run.lost_steps / made)} of all steps made" if run.lost_steps else ""
    return [
        _learned(run),
        Card(
            "Run time", duration(run.wall_seconds), f"{count(run.last_step)}{f' of {run.total_steps:,}' if run.total_steps else ''} steps"
        ),
        Card("Throughput", count(run.samples_per_second), "samples/s" + (f" by {_world(run)}" if run.world_size else "")),
        Card("Goodput", percent(run.goodput.ratio), "time spent on steps that lasted"),
        Card("Restarts", str(restarts), ", ".join(f"{n} {cause_words(c)}" for c, n in run.restarts.items()), "bad" if restarts else ""),
        Card("Lost steps", count(run.lost_steps), lost_share, "bad" if run.lost_steps else ""),
        Card("Recovery", duration(max(healed, default=None)), "the longest, to the first new step" if healed else "not needed"),
        Card("Checkpoints", str(saved), f"{duration(median(stalls))} stall each" if stalls else ""),
    ]


def _learned(run: Run) -> Card:
    best, losses = run.best_accuracy, [point.loss for point in run.evals if point.loss is not None]
    note = "no evaluation" if run.is_classification else "this task has none"
    if not run.is_classification and losses:
        return Card("Test loss", f"{losses[-1]:.4g}", f"best {min(losses):.4g}", "good")
    return Card("Test accuracy", percent(run.final_accuracy), f"best {percent(best)}" if best is not None else note, "good" if best else "")


def _world(run: Run) -> str:
    """`4 ranks on 4 nodes`."""
    ranks = f"{run.world_size} rank{'s' if run.world_size != 1 else ''}"
    return f"{ranks} on {run.nodes} node{'s' if run.nodes != 1 else ''}" if run.nodes else ranks


def config_sections(config: Record | None) -> list[tuple[str, list[Setting]]]:
    """Section -> its settings, with those that differ from the defaults marked."""
    defaults = RunConfig().model_dump(mode="json")
    found = []
    for name, values in (config or {}).items():
        section = values if isinstance(values, dict) else {name: values}
        known = defaults.get(name, {})
        rows = [
            Setting(key, _shown(value), _shown(known[key]) if key in known else None, _help(name, key)) for key, value in section.items()
        ]
        found.append((name, rows))
    return found


def _help(section: str, key: str) -> str:
    field = RunConfig.model_fields.get(section)
    if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
        return ""
    known = field.annotation.model_fields.get(key)
    return known.description or "" if known else ""


def _shown(value: Any) -> str:
    if value is None:
        return UNKNOWN
    shown = value if isinstance(value, str) else json.dumps(value)
    return shown if len(shown) <= VALUE_CHARACTERS else shown[: VALUE_CHARACTERS - 1] + "…"


def _section(config: Record | None, name: str) -> Record:
    value = (config or {}).get(name)
    return value if isinstance(value, dict) else {}
