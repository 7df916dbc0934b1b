"""The progress document: what `/progress` serves and `progress.json` holds, for people, dashboards and the operator.

One closed, strict schema, and `parse` for readers, who must treat a document as hostile: size cap, no unknown keys, no numbers out of
range, no control characters that a terminal would obey.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddp_trainer.errors import DataError

SCHEMA_VERSION = 1
MAX_BYTES = 64 * 1024
"""A document is about 2 KiB; a reader stops here."""
MAX_RANKS = 128
"""Ranks of one node: 16 on the largest GPU machines; with this many a document still fits its cap."""
MAX_GPUS = 32
MAX_TEXT = 256

ProgressPhase = Literal["starting", "training", "evaluating", "saving", "finished", "failed"]
PHASES: tuple[ProgressPhase, ...] = get_args(ProgressPhase)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
MAX_AMOUNT = 1e18
Amount = Annotated[float, Field(ge=0, le=MAX_AMOUNT)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]


class Document(BaseModel):
    """Frozen, closed and strict."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Checkpoint(Document):
    """The newest durable state."""

    step: Count
    saved_at: Amount
    bytes: Count
    stall_seconds: Amount
    persist_seconds: Amount
    verified: bool


class Restarts(Document):
    """How often training was started again, by cause."""

    crash: Count = 0
    hang: Count = 0
    preemption: Count = 0
    peer_loss: Count = 0

    @property
    def total(self) -> int:
        """All causes."""
        return self.crash + self.hang + self.preemption + self.peer_loss


class Storage(Document):
    """The volume under the run directory."""

    total_bytes: Count
    free_bytes: Count


class Gpu(Document):
    """One GPU of the node; None where the driver does not say."""

    index: Count
    name: Text
    utilization_ratio: Amount | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    temperature_celsius: Number | None = None


class Rank(Document):
    """One rank of the node; `updated_at` is its last beat."""

    rank: Count
    phase: ProgressPhase
    step: Count
    samples_per_second: Amount | None = None
    cpu_percent: Amount | None = None
    rss_bytes: Count | None = None
    pid: Count
    gpu: Count | None = None
    """Index in the node's `gpus`, where the rank said which device it uses."""
    updated_at: Amount


class Progress(Document):
    """The state of a run as one node sees it; times are seconds since the epoch, ratios 0-1, None is "not known yet"."""

    schema_version: Literal[1] = 1
    run: Text
    node: Count = 0
    attempt: Count
    phase: ProgressPhase
    note: Text = ""
    note_done: Count = 0
    note_total: Count = 0
    step: Count = 0
    total_steps: Count = 0
    epoch: Amount = 0.0
    epochs: Amount = 0.0
    loss: Number | None = None
    accuracy: Number | None = None
    test_loss: Number | None = None
    test_accuracy: Number | None = None
    lr: Number | None = None
    samples_per_second: Amount | None = None
    eta_seconds: Amount | None = None
    updated_at: Amount
    """When something about the run was last heard: it stands still when the ranks hang, whoever serves the document."""
    world_size: Count
    checkpoint: Checkpoint | None = None
    restarts: Restarts = Restarts()
    lost_steps: Count = 0
    goodput_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    storage: Storage | None = None
    gpus: Annotated[list[Gpu], Field(max_length=MAX_GPUS)] = []
    ranks: Annotated[list[Rank], Field(max_length=MAX_RANKS)] = []

    def to_bytes(self) -> bytes:
        """The document as JSON."""
        return self.model_dump_json().encode()


def parse(document: bytes) -> Progress:
    """Read a document from anybody.

    Raises:
        DataError: if it is too large, not JSON, or not of the schema, naming the first thing that is wrong.
    """
    if len(document) > MAX_BYTES:
        raise DataError(f"the progress document is larger than {MAX_BYTES} bytes; is this the address of a ddp run?")
    try:
        return Progress.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = clean(".".join(str(part) for part in first["loc"]))[:80]
        version = _version(document)
        hint = (
            f"it has schema version {version} and this program reads {SCHEMA_VERSION}: use the version of the run"
            if version not in {None, SCHEMA_VERSION}
            else "is this the address of a ddp run?"
        )
        raise DataError(f"the progress document is not understood: {place + ': ' if place else ''}{clean(first['msg'])}; {hint}") from None


def _version(document: bytes) -> int | None:
    try:
        version = json.loads(document).get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def clean(text: Any) -> str:
    """Any value as a text that the schema takes: one line, no control characters, at most `MAX_TEXT` characters."""
    return _CONTROL.sub(" ", str(text).encode(errors="replace").decode())[:MAX_TEXT]
