"""Whose a request is, and how much of the service is theirs."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field


class Allowance(BaseModel):
    """What one caller may use; None is without limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Share of the engine relative to that of others, where several want it."""


class Caller(BaseModel):
    """A key's owner, or whoever shows none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As metrics and log lines call them."""
    allowance: Allowance = Allowance()


ANONYMOUS: Final = Caller(name="anonymous")
"""Everybody who shows no key, together."""
