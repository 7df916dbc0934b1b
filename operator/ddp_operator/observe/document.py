"""The progress document of a trainer, read as something that anybody may have written (contract: schema version 1, at most 64 KiB).

Our own schema: strict in every field that is used, blind for all others, so that a newer trainer of the same schema version is still read.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddp_operator.decide.facts import ProgressFacts
from ddp_operator.observe.fields import MAX_COUNT, text

MAX_BYTES: Final = 64 * 1024
NOTE_CHARACTERS: Final = 256

_Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
_Amount = Annotated[float, Field(ge=0, le=1e18)]
_Number = Annotated[float, Field(ge=-1e300, le=1e300)]
_Text = Annotated[str, Field(max_length=1024)]


class DocumentError(Exception):
    """What was served is no progress document; the text says why, fit for a status."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class _Checkpoint(_Part):
    step: _Count
    saved_at: _Amount
    bytes: _Count
    verified: bool


class _Restarts(_Part):
    crash: _Count = 0
    hang: _Count = 0
    preemption: _Count = 0
    peer_loss: _Count = 0


class _Storage(_Part):
    total_bytes: _Count
    free_bytes: _Count


class _Document(_Part):
    schema_version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] would take true
    run: _Text
    attempt: _Count
    phase: Literal["starting", "training", "evaluating", "saving", "finished", "failed"]
    note: _Text = ""
    step: _Count = 0
    total_steps: _Count = 0
    epoch: _Amount = 0.0
    epochs: _Amount = 0.0
    loss: _Number | None = None
    accuracy: _Number | None = None
    samples_per_second: _Amount | None = None
    eta_seconds: _Amount | None = None
    updated_at: _Amount
    world_size: _Count
    checkpoint: _Checkpoint | None = None
    restarts: _Restarts = _Restarts()
    lost_steps: _Count = 0
    goodput_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    storage: _Storage | None = None


def parse(body: bytes) -> ProgressFacts:
    """The facts of a document.

    Raises:
        DocumentError: it is too large, not JSON, or not of the schema, naming the first thing that is wrong.
    """
    if len(body) > MAX_BYTES:
        raise DocumentError(f"it is larger than {MAX_BYTES} bytes")
    try:
        document = _Document.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DocumentError(text(f"{place}: {first['msg']}" if place else first["msg"], 160)) from None
    checkpoint, storage = document.checkpoint, document.storage
    return ProgressFacts(
        run=text(document.run, NOTE_CHARACTERS),
        attempt=document.attempt,
        phase=document.phase,
        updated_at=document.updated_at,
        note=text(document.note, NOTE_CHARACTERS),
        step=document.step,
        total_steps=document.total_steps,
        epoch=document.epoch,
        epochs=document.epochs,
        loss=document.loss,
        accuracy=document.accuracy,
        samples_per_second=document.samples_per_second,
        eta_seconds=document.eta_seconds,
        world_size=document.world_size,
        checkpoint_step=checkpoint.step if checkpoint else None,
        checkpoint_saved_at=checkpoint.saved_at if checkpoint else 0.0,
        checkpoint_bytes=checkpoint.bytes if checkpoint else 0,
        checkpoint_verified=checkpoint.verified if checkpoint else False,
        restarts=document.restarts.model_dump(),
        lost_steps=document.lost_steps,
        goodput_ratio=document.goodput_ratio,
        volume_total_bytes=storage.total_bytes if storage else 0,
        volume_free_bytes=storage.free_bytes if storage else 0,
    )
