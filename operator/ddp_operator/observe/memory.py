"""A stored status, read as far as it can be: it is the operator's only memory, and another version of the operator may have written it.

Unknown keys are ignored at every depth. A field that cannot be read costs no more than itself: of a list (the ledger) the items that
validate are kept, of an object its fields. What would be dangerous to forget is named instead: an action that was begun, the budgets that
are spent, and a stop of ours. Who takes them for unset would restart a job beyond its budget, or leave it suspended for ever.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from ddp_operator.api.trainingrun import TrainingRunStatus
from ddp_operator.observe.fields import cleaned, text

_VITAL: Final = ("intent", "restarts", "stopped_by_us")
_FIELDS: Final = TrainingRunStatus.model_fields
_NAMES: Final = {name: name for name in _FIELDS} | {str(field.alias): name for name, field in _FIELDS.items()}
"""Every key that a field may have, to its name."""
_LONGEST: Final = {name: next((m.max_length for m in field.metadata if hasattr(m, "max_length")), None) for name, field in _FIELDS.items()}


def status(value: Any) -> tuple[TrainingRunStatus, list[str], str]:
    """What can be read of `value`, the keys that cannot (or only in part), and why nothing may be written over it: "" if it may."""
    if value is None:
        return TrainingRunStatus(), [], ""
    if not isinstance(value, dict):
        return TrainingRunStatus(), ["(no object)"], _sentence(["status"])
    value = {key: inner for key, inner in cleaned(value).items() if inner is not None}
    lost = [text(key, 64) for key in value if key not in _NAMES]
    try:
        return TrainingRunStatus.model_validate(value), lost, ""
    except ValidationError:
        pass
    kept: dict[str, Any] = {}
    vital: list[str] = []
    for key, inner in value.items():
        name = _NAMES.get(key)
        if name is None:
            continue
        if _is_valid({key: inner}):
            kept[name] = inner
            continue
        lost.append(key)
        if name in _VITAL:
            vital.append(key)
        elif (part := _part(name, inner)) is not None:
            kept[name] = part
    return TrainingRunStatus.model_validate(kept), lost, _sentence(vital) if vital else ""


def _part(name: str, value: Any) -> Any:
    """What validates of a field's items; None: nothing does."""
    part: Any = None
    if isinstance(value, list):
        part = [item for item in value if _is_valid({name: [item]})]
        longest = _LONGEST[name]
        part = part[-longest:] if longest else part  # the newest stand last
    elif isinstance(value, dict):
        part = {key: inner for key, inner in value.items() if _is_valid({name: {key: inner}})}
    return part if part and _is_valid({name: part}) else None


def _is_valid(value: dict[str, Any]) -> bool:
    try:
        TrainingRunStatus.model_validate(value)
    except ValidationError:
        return False
    return True


def _sentence(keys: list[str]) -> str:
    places = ", ".join(key if key == "status" else f"status.{key}" for key in keys)
    return (
        f"{places} cannot be read, and what was begun or spent is kept there, so the run is left alone; install the operator's version "
        "that wrote it, or delete the TrainingRun and make it again"
    )
