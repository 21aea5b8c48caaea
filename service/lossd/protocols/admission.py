"""From a request's document and arrays to a job: the door to the queue.

What passes here can be computed; what cannot is answered before it enters the queue, with the
field, the value and the range that is allowed. Only whether logits are finite is found later, in
the pass that reads them anyway. The rules about pixels are in `pixel_inputs`, those about tables
in `row_inputs`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from lossd.core.job import Job, RowJob
from lossd.losses import find_loss
from lossd.losses.declare import RowLoss
from lossd.protocols.arrays import SHOWN_CHARACTERS, RequestLimits, refuse
from lossd.protocols.json_body import Inputs
from lossd.protocols.pixel_inputs import build_pixel_job
from lossd.protocols.row_inputs import build_row_job
from lossd.repeated import text_of
from lossd_client.errors import FieldError, InvalidInputError
from lossd_client.wire import EvaluateRequest

__all__ = ["RequestLimits", "build_job", "read_document", "read_request"]

_MAX_ERRORS = 32

M = TypeVar("M", bound=BaseModel)


def read_request(document: Mapping[str, Any]) -> EvaluateRequest:
    """The document of a request, validated.

    Raises:
        InvalidInputError: a field is missing, unknown or out of range.
    """
    return read_document(EvaluateRequest, document)


def read_document(model: type[M], document: Mapping[str, Any]) -> M:
    """A document of any kind of request, validated.

    Raises:
        InvalidInputError: a field is missing, unknown or out of range.
    """
    try:
        return _validated(model, document)
    except ValidationError as error:
        errors = [
            FieldError(tuple(_clipped(step) for step in entry["loc"]), _message(entry))
            for entry in error.errors(include_url=False, include_context=False)[:_MAX_ERRORS]
        ]
        first = errors[0]
        detail = f"{'.'.join(map(str, first.loc)) or 'request'}: {first.message}"
        raise InvalidInputError(detail, errors=errors) from error


def _validated(model: type[M], document: Mapping[str, Any]) -> M:
    text = text_of(document)
    return model.model_validate(document) if text is None else cast("M", _of_text(model, text))


@functools.lru_cache(maxsize=1024)
def _of_text(model: type[BaseModel], text: bytes) -> BaseModel:
    return model.model_validate(orjson.loads(text))


def build_job(request: EvaluateRequest, inputs: Inputs, limits: RequestLimits) -> Job | RowJob:
    """The job of a request.

    Raises:
        InvalidInputError: shapes, dtypes or fields do not fit together.
        InvalidParameterError: a parameter of a loss is out of range.
        LabelOutOfRangeError: a label that counts is not a class.
        UnknownLossError: there is no loss of a name.
    """
    # What does not exist is said before how its inputs are wrong.
    losses = [find_loss(choice.name) for choice in request.losses]
    rows = [loss for loss in losses if isinstance(loss, RowLoss)]
    if not rows:
        return build_pixel_job(request, losses, inputs, limits)
    if len(rows) < len(losses):
        pixel = next(loss.name for loss in losses if not isinstance(loss, RowLoss))
        message = f"{pixel} is a loss of pixels, {rows[0].name} of kind {rows[0].kind}; "
        refuse(("losses",), message + "one request has inputs of one of them")
    return build_row_job(request, rows, inputs, limits)


def _clipped(step: str | int) -> str | int:
    return step[:SHOWN_CHARACTERS] if isinstance(step, str) else step


def _message(entry: Mapping[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "missing" or isinstance(entry["input"], (dict, list)):
        return message
    given = repr(entry["input"])
    if len(given) > SHOWN_CHARACTERS:
        given = given[:SHOWN_CHARACTERS] + "…"
    return f"{message}, got {given}"
