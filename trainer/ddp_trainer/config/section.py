"""What a section of the schema is, and the kinds of numbers that several sections have."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
_NO_TEXT = re.compile(r"[\x00\ud800-\udc7f\udd00-\udfff]")
"""What no name and no path can have: zero, and halves of characters, but for those that stand for a path's bytes that are not UTF-8."""


class Section(BaseModel):
    """Frozen, closed, and its field docstrings are the documentation that `ddp config schema` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, str) and (found := _NO_TEXT.search(value)):
            raise ValueError(f"{found[0]!r} can be in no name and no path; leave it out")
        return value
