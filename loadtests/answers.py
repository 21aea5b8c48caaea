"""What must come back, and whether it did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from loadtests.bodies import Question, Sample
from loadtests.truth import Gradient, gradients, values
from lossd_client.errors import MalformedBodyError
from lossd_client.wire import (
    PROBLEM,
    REQUEST_ID_HEADER,
    SAFETENSORS,
    Array,
    decode_safetensors,
    numbered,
)

_OK = 200
VALUE_TOLERANCE = 1e-4
"""Largest error of a value, relative to it where it is above 1."""
GRADIENT_TOLERANCE = 2e-3
"""Largest error of a slope, relative to the sample's largest: the answers are float16."""


class UnexpectedAnswerError(Exception):
    """An answer is not what the scenario knows beforehand.

    Attributes:
        kind: what is wrong, in words that many failures share.
        detail: this one.
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        self.detail = detail
        super().__init__(kind)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Looked up in lower case."""
    body: bytes | bytearray


class Answer(Protocol):
    """What a scenario expects."""

    def check(self, reply: Reply | None, request_id: str) -> None:
        """Raises UnexpectedAnswerError unless this is the answer to that request."""


@dataclass(frozen=True)
class Right:
    """Status 200 and these numbers."""

    values: Mapping[str, Array]
    """By loss, `[B]`."""
    gradients: Sequence[Gradient] = ()
    """One for each input object."""

    def check(self, reply: Reply | None, request_id: str) -> None:
        """Every value, and the gradient at some pixels."""
        reply = _present(reply)
        _check_status(reply, _OK)
        _check_request_id(reply, request_id)
        tensors = _tensors(reply)
        wanted = {f"loss/{name}": value for name, value in self.values.items()}
        wanted["total"] = np.sum(list(self.values.values()), axis=0)
        for name, value in wanted.items():
            _check_close(name, _tensor(tensors, name), value, VALUE_TOLERANCE)
        for index, gradient in enumerate(self.gradients):
            _check_gradient(tensors, gradient, index, len(self.gradients))


@dataclass(frozen=True)
class Refused:
    """An error with this status and code."""

    status: int
    code: str | None
    """None where the HTTP server refuses before the service sees a request: no document, no id."""

    def check(self, reply: Reply | None, request_id: str) -> None:
        """Status, and code and id of the problem document."""
        reply = _present(reply)
        _check_status(reply, self.status)
        if self.code is None:
            return
        _check_request_id(reply, request_id)
        if reply.headers.get("content-type") != PROBLEM or _code(reply) != self.code:
            detail = f"{_code(reply)!r} as {reply.headers.get('content-type')}"
            raise UnexpectedAnswerError(f"refused, but not as {self.code}", detail)


@dataclass(frozen=True)
class NobodyWaits:
    """No answer: the caller has hung up. Its neighbours tell whether it did harm."""

    def check(self, reply: Reply | None, request_id: str) -> None:  # noqa: ARG002 - see Answer
        """There is none to be wrong."""
        if reply is not None:
            raise UnexpectedAnswerError("an answer where nobody waits", str(reply.status))


@dataclass(frozen=True)
class Delivery:
    """How a body gets on its way."""

    announced_bytes: int | None = None
    """`Content-Length`, where that is a lie."""
    sent_share: float = 1.0
    """How much of the body is sent."""


WHOLE = Delivery()


@dataclass(frozen=True)
class Case:
    """One body, ready to send, and what must come back."""

    body: bytes
    answer: Answer
    delivery: Delivery = field(default=WHOLE)


def right_answer(question: Question, asked: list[Sample]) -> Right:
    """What a right answer to the question holds."""
    return Right(values(question, asked), gradients(question, asked))


def _present(reply: Reply | None) -> Reply:
    if reply is None:
        raise UnexpectedAnswerError("no answer", "the connection ended without one")
    return reply


def _check_status(reply: Reply, status: int) -> None:
    if reply.status != status:
        kind = f"{reply.status} {_code(reply) or ''}".strip() + f" instead of {status}"
        raise UnexpectedAnswerError(kind, bytes(reply.body[:300]).decode("utf-8", "replace"))


def _check_request_id(reply: Reply, request_id: str) -> None:
    found = reply.headers.get(REQUEST_ID_HEADER.lower())
    if found != request_id:
        raise UnexpectedAnswerError("another request's id", f"{found!r}, sent {request_id!r}")


def _code(reply: Reply) -> str | None:
    try:
        document = json.loads(reply.body)
    except ValueError:  # not a problem document, so it has no code
        return None
    return document.get("code") if isinstance(document, dict) else None


def _tensors(reply: Reply) -> dict[str, Array]:
    """Tensors of an answer under the names of safetensors; of a JSON one those that are lists."""
    try:
        if reply.headers.get("content-type") == SAFETENSORS:
            return decode_safetensors(reply.body)[0]
        document: dict[str, Any] = json.loads(reply.body)
        tensors = {f"loss/{name}": np.array(row) for name, row in document["losses"].items()}
        return tensors | {"total": np.array(document["total"])}
    except (MalformedBodyError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswerError("an answer that cannot be read", repr(error)) from error


def _tensor(tensors: Mapping[str, Array], name: str) -> Array:
    if name not in tensors:
        raise UnexpectedAnswerError(f"an answer without {name}", f"it has {sorted(tensors)}")
    return tensors[name]


def _check_close(name: str, found: Array, wanted: Array, tolerance: float) -> None:
    bound = tolerance * np.maximum(1, np.abs(wanted))
    # NaN and null are in no range, so that "not all within" counts them as wrong
    if found.shape != wanted.shape or not np.all(np.abs(found.astype(float) - wanted) <= bound):
        raise UnexpectedAnswerError(f"wrong {name}", f"{found.tolist()}, not {wanted.tolist()}")


def _check_gradient(
    tensors: Mapping[str, Array], gradient: Gradient, index: int, objects: int
) -> None:
    name = numbered(index, "gradient/logits", objects)
    scale = _tensor(tensors, numbered(index, "gradient_scale/logits", objects))
    stored = _tensor(tensors, name)
    channels = gradient.slopes.shape[0]
    found = stored.reshape(channels, -1)[:, gradient.pixels].astype(np.float64) * scale
    bound = GRADIENT_TOLERANCE * np.abs(gradient.slopes).max()
    error = np.abs(found - gradient.slopes)
    if not np.all(error <= bound):
        raise UnexpectedAnswerError(f"wrong {name}", f"off by {error.max():g}, allowed {bound:g}")
