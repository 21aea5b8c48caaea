"""A call without its I/O: the request to send, and what its reply means.

Both clients are shells around this module; it knows neither sockets nor an HTTP library.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from lossd_client._loss import Loss, LossLike, loss_choice
from lossd_client._result import Result
from lossd_client._tensors import TensorLike, to_array
from lossd_client._version import __version__
from lossd_client.errors import LossdError, MalformedBodyError, ServiceError, error_from_problem
from lossd_client.wire import (
    JSON,
    REQUEST_ID_HEADER,
    SAFETENSORS,
    AnswerDocument,
    Array,
    EvaluateRequest,
    Json,
    LossChoice,
    decode_safetensors,
    dtype_name,
    encode_safetensors,
    numbered,
    parse_json,
    split_numbered,
)

Losses = LossLike | Sequence[LossLike]
"""One loss or several."""

InputObject = Mapping[str, TensorLike | None]
"""Tensors of one input object by name; None stands for "not given"."""

# Larger pieces would be copied by the transport at every partial send, smaller ones cost calls.
_PIECE_BYTES = 1 << 18

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_SECONDS = re.compile(r"\d+(\.\d+)?")
_OK = range(200, 300)
_HALF_PRECISION = ("float16", "bfloat16")


@dataclass(frozen=True)
class Request:
    """One HTTP request, ready to be sent any number of times.

    Attributes:
        method: `GET` or `POST`.
        path: path on the service, from `/`.
        headers: headers of this request alone, `Content-Length` included.
        parts: the body; joined they are it, but nothing needs to join them.
        input_count: how many input objects the caller listed; None where the tensors were given
            by keyword.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[bytes | memoryview, ...] = ()
    input_count: int | None = None

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces of bounded size."""
        for part in self.parts:
            for begin in range(0, len(part), _PIECE_BYTES):
                yield bytes(part[begin : begin + _PIECE_BYTES])


@dataclass(frozen=True)
class Reply:
    """One HTTP reply, read to its end.

    Attributes:
        status: the HTTP status.
        headers: headers; looked up in lower case.
        body: the body; arrays of a result are views of it, writable because it is.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray


CATALOGUE = Request("GET", "/v1/losses", {"Accept": JSON})
LIMITS = Request("GET", "/v1/limits", {"Accept": JSON})
READY = Request("GET", "/health/ready")


def client_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request of a client.

    Raises:
        ValueError: the key holds something a header cannot carry.
    """
    headers = {"User-Agent": f"lossd-client/{__version__}", "Accept-Encoding": "identity"}
    if api_key is None:
        return headers
    if not _VISIBLE_ASCII.fullmatch(api_key):
        raise ValueError("api_key must be visible ASCII characters without spaces")
    return headers | {"Authorization": f"Bearer {api_key}"}


def evaluate_request(
    losses: Losses,
    *,
    tensors: InputObject,
    inputs: Sequence[InputObject] | None,
    options: Mapping[str, object],
    request_id: str | None,
) -> Request:
    """Request of one evaluation.

    Args:
        losses: what to compute.
        tensors: tensors given by keyword.
        inputs: several input objects, instead of `tensors`.
        options: the other fields of `EvaluateRequest`.
        request_id: the caller's id for it.

    Raises:
        TypeError: a tensor's dtype cannot travel.
        ValueError: an option, a loss, a name or the request id is not valid, or there are no
            tensors.
    """
    objects = _input_objects(tensors, inputs)
    document = _document(losses, options)
    arrays = {
        numbered(index, name, len(objects)): to_array(value, numbered(index, name, len(objects)))
        for index, each in enumerate(objects)
        for name, value in each.items()
    }
    parts = tuple(encode_safetensors(arrays, {"request": document}))
    headers = {
        "Content-Type": SAFETENSORS,
        "Accept": SAFETENSORS,
        "Content-Length": str(sum(len(part) for part in parts)),
    }
    if request_id is not None:
        if not _VISIBLE_ASCII.fullmatch(request_id):
            raise ValueError("request_id must be visible ASCII characters without spaces")
        headers[REQUEST_ID_HEADER] = request_id
    count = None if inputs is None else len(objects)
    return Request("POST", "/v1/evaluate", headers, parts, count)


def read_result(reply: Reply, *, input_count: int | None) -> Result:
    """Result that a successful reply to an evaluation carries.

    Args:
        reply: reply of status 2xx.
        input_count: as in the request.

    Raises:
        ServiceError: the reply is not an answer of lossd.
    """
    _require_type(reply, SAFETENSORS)
    try:
        tensors, metadata = decode_safetensors(reply.body)
        answer = AnswerDocument.model_validate_json(metadata["response"])
        objects = _answer_objects(tensors, input_count)
        return _result(tensors, objects, answer, listed=input_count)
    except (MalformedBodyError, ValidationError, KeyError) as error:
        raise ServiceError(f"the answer is incomplete: {error}") from error


def read_document(reply: Reply) -> Json:
    """JSON value that a successful reply carries.

    Raises:
        ServiceError: the reply is not JSON.
    """
    _require_type(reply, JSON)
    try:
        return parse_json(bytes(reply.body), "the answer")
    except MalformedBodyError as error:
        raise ServiceError(error.detail) from error


def read_catalogue(reply: Reply) -> list[dict[str, Any]]:
    """Entries of the catalogue that a successful reply carries.

    Raises:
        ServiceError: the reply is not a catalogue.
    """
    entries = read_document(reply)
    if not isinstance(entries, list):
        raise ServiceError("the answer is no list of losses; is this lossd?")
    return entries


def reply_error(reply: Reply, *, now: datetime | None = None) -> LossdError | None:
    """Error that a reply reports; None where it succeeded.

    Args:
        reply: any reply.
        now: time against which a `Retry-After` date is read; the clock's if None.
    """
    if reply.status in _OK:
        return None
    after_s = _retry_after_s(reply.headers.get("retry-after", ""), now or datetime.now(UTC))
    return error_from_problem(reply.status, _problem(reply), retry_after_s=after_s)


def _input_objects(
    tensors: InputObject, inputs: Sequence[InputObject] | None
) -> list[dict[str, TensorLike]]:
    given = {name: value for name, value in tensors.items() if value is not None}
    if inputs is not None and given:
        raise ValueError(f"give either inputs or {', '.join(given)}, not both")
    objects = [given] if inputs is None else [_given(each) for each in inputs]
    if not objects or not all(objects):
        raise ValueError("there is nothing to evaluate: an input object needs tensors")
    wrong = [name for each in objects for name in each if not name.isidentifier()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no name of an input")
    return objects


def _given(each: InputObject) -> dict[str, TensorLike]:
    return {name: value for name, value in each.items() if value is not None}


def _document(losses: Losses, options: Mapping[str, object]) -> str:
    choices = [loss_choice(loss) for loss in _listed(losses)]
    request = EvaluateRequest.model_validate({"losses": choices, **options})
    fields = request.model_dump(exclude_defaults=True, exclude_none=True)
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def _listed(losses: Losses) -> Sequence[LossLike]:
    if isinstance(losses, str | Loss | LossChoice | Mapping):
        return [losses]
    return losses


def _require_type(reply: Reply, media_type: str) -> None:
    found = _media_type(reply)
    if found != media_type:
        raise ServiceError(f"expected {media_type}, got {found or 'no type'}; is this lossd?")


def _media_type(reply: Reply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower()


class _FieldProblem(BaseModel):
    loc: list[str | int] = []
    message: str = ""


class _Problem(BaseModel):
    """The keys of a problem document that `error_from_problem` reads."""

    code: str | None = None
    title: str | None = None
    detail: Json = None
    errors: list[_FieldProblem] | None = None
    request_id: str | None = None


def _problem(reply: Reply) -> dict[str, Any]:
    try:
        return _Problem.model_validate_json(bytes(reply.body)).model_dump()
    except ValidationError:
        # Something between client and service answered; the status alone is the news then.
        return {}


def _retry_after_s(text: str, now: datetime) -> float | None:
    if not text or _SECONDS.fullmatch(text):
        return float(text) if text else None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        # Neither form of RFC 9110: as good as no header.
        return None
    return max(0.0, (moment.astimezone(UTC) - now).total_seconds())


def _answer_objects(
    tensors: Mapping[str, Array], input_count: int | None
) -> list[Mapping[str, Array]]:
    """Tensors of each input object; one object holds them all where the names are unnumbered."""
    if input_count is None or input_count == 1:
        return [tensors]
    own = {name: tensors[name] for name in tensors if name.partition("/")[0].isdecimal()}
    if not own:
        return [{}] * input_count
    objects = split_numbered(own)
    if len(objects) != input_count:
        raise MalformedBodyError(f"{len(objects)} of {input_count} input objects were answered")
    return list(objects)


def _result(
    tensors: Mapping[str, Array],
    objects: Sequence[Mapping[str, Array]],
    answer: AnswerDocument,
    *,
    listed: int | None,
) -> Result:
    gradients = [_gradients(each) for each in objects]
    maps = [_below(each, "map") for each in objects]
    return Result(
        losses=_rows(tensors, "loss"),
        total=tensors["total"].astype(np.float64),
        mean=answer.mean,
        gradient=gradients[0] if listed is None else _transposed(gradients),
        maps=maps[0] if listed is None else _transposed(maps),
        per_class={name: array.copy() for name, array in _below(tensors, "per_class").items()},
        statistics={name: array.copy() for name, array in _below(tensors, "statistics").items()},
        warnings=tuple(answer.warnings),
        preset=answer.preset,
        timing_ms=answer.timing_ms,
        batch=answer.batch,
        device=answer.device,
        numerics_version=answer.numerics_version,
        request_id=answer.request_id,
    )


def _below(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    start = prefix + "/"
    return {name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}


def _rows(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    # astype copies: a row kept for long must not keep the whole body, gradients included.
    return {name: array.astype(np.float64) for name, array in _below(tensors, prefix).items()}


def _gradients(tensors: Mapping[str, Array]) -> dict[str, Any]:
    scales = _below(tensors, "gradient_scale")
    tree: dict[str, Any] = {}
    for path, stored in _below(tensors, "gradient").items():
        name, slash, label = path.partition("/")
        gradient = _unscaled(stored, scales.get(path))
        if slash:
            tree.setdefault(name, {})[label] = gradient
        else:
            tree[name] = gradient
    return tree


def _unscaled(stored: Array, scale: Array | None) -> Array:
    gradient = stored.astype(np.float32) if dtype_name(stored) in _HALF_PRECISION else stored
    if scale is None:
        return gradient
    if math.prod(scale.shape) != 1 and scale.shape != stored.shape[:1]:
        raise MalformedBodyError(f"scale of shape {scale.shape} for a gradient {stored.shape}")
    factors = scale.astype(gradient.dtype).reshape(-1, *(1,) * (stored.ndim - 1))
    return np.asarray(gradient * factors).reshape(stored.shape)


def _transposed(objects: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [each[name] for each in objects] for name in objects[0]}
