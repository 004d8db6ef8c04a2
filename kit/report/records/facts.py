"""What every record is made of: frozen facts with a moment, and names that are read as text.

Knows no kind of record, no page and no plot.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_text(value: object) -> object:
    """Read a class name that is a number as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ClassText = Annotated[str, BeforeValidator(_as_text)]
Count = Annotated[int, Field(ge=0)]
Scalar = bool | int | float | str | None
#: 31 December 9999 in Unix time: later moments have no calendar date.
_LAST_S = 253_402_300_799


class Facts(BaseModel):
    """A frozen group of facts; fields that are not shown are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Record(Facts):
    """What every record has."""

    id: str
    written_at_s: float = Field(ge=0, le=_LAST_S)

    @property
    def written_at(self) -> datetime:
        """When it was written, in UTC."""
        return datetime.fromtimestamp(self.written_at_s, tz=UTC)
