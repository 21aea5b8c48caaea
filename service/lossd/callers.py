"""Whose a request is, and how much of the service is theirs."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

RequestsPerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]
SamplesPerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]
MibPerMinute = Annotated[int, Field(ge=1, le=100_000_000)]
ConcurrentRequests = Annotated[int, Field(ge=1, le=1_000_000)]
TensorMib = Annotated[int, Field(ge=0, le=100_000_000)]


class Allowance(BaseModel):
    """What one caller may use; None is the service's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Share of the engine relative to that of others, where several want it."""
    requests_per_minute: RequestsPerMinute | None = None
    """Requests that are let in within a minute."""
    samples_per_minute: SamplesPerMinute | None = None
    """Samples that are computed within a minute."""
    mib_per_minute: MibPerMinute | None = None
    """Bytes of requests' bodies within a minute, in MiB."""
    concurrent_requests: ConcurrentRequests | None = None
    """Requests in progress at a time."""
    tensor_mib: TensorMib | None = None
    """Bytes of tensors that are kept by reference, in MiB."""


class Caller(BaseModel):
    """A key's owner, or whoever shows none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As metrics and log lines call them."""
    allowance: Allowance = Allowance()


ANONYMOUS: Final = Caller(name="anonymous")
"""Everybody who shows no key, together."""
