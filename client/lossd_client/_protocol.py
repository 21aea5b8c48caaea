"""A call without its I/O: the request to send, and what its reply means.

Both clients are shells around this module; it knows neither sockets nor an HTTP library.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ValidationError

from lossd_client._loss import Loss, LossLike, loss_choice
from lossd_client._refs import Keep, TensorRef, Upload, Use
from lossd_client._result import Result
from lossd_client._tensors import JsonTensor, TensorLike, json_tensor, to_array
from lossd_client._version import __version__
from lossd_client.errors import LossdError, MalformedBodyError, ServiceError, error_from_problem
from lossd_client.wire import (
    EVALUATE_PATH,
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

Tensor = TensorLike | TensorRef | JsonTensor
"""What stands for a tensor: its values, one that the service keeps, or one of the forms it has in
JSON, e.g. `{"rle": …}`."""

InputObject = Mapping[str, Tensor | None]
"""Tensors of one input object by name; None stands for "not given"."""

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_SECONDS = re.compile(r"\d+(\.\d+)?")
_OK = range(200, 300)
_TENSORS = "/v1/tensors"
_KEPT_NAME = "tensor"
_HALF_PRECISION = ("float16", "bfloat16")


@dataclass(frozen=True)
class Request:
    """One HTTP request, ready to be sent any number of times.

    Attributes:
        method: `GET`, `POST`, `PUT` or `DELETE`.
        path: path on the service, from `/`.
        headers: headers of this request alone, `Content-Length` included.
        parts: the body; joined they are it, but nothing needs to join them.
        input_count: how many input objects the caller listed; None where the tensors were given
            by keyword.
        uses: the kept tensors that it names.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    parts: tuple[bytes | memoryview, ...] = ()
    input_count: int | None = None
    uses: tuple[Use, ...] = ()

    def under(self, headers: Mapping[str, str]) -> Self:
        """The same request with further headers, of which its own win."""
        return replace(self, headers=Headers({**headers, **self.headers}))


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
    body: bytes | bytearray | memoryview


CATALOGUE = Request("GET", "/v1/losses", {"Accept": JSON})
LIMITS = Request("GET", "/v1/limits", {"Accept": JSON})
READY = Request("GET", "/health/ready")


class Headers(dict[str, str]):
    """Headers that may hold a key, which no `repr` shows."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


def client_headers(api_key: str | None) -> Headers:
    """Headers of every request of a client.

    Raises:
        ValueError: the key holds something a header cannot carry.
    """
    headers = Headers({"User-Agent": f"lossd-client/{__version__}", "Accept-Encoding": "identity"})
    if api_key is None:
        return headers
    if not _VISIBLE_ASCII.fullmatch(api_key):
        raise ValueError("api_key must be visible ASCII characters without spaces")
    headers["Authorization"] = f"Bearer {api_key}"
    return headers


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
    request = tensors_request("POST", EVALUATE_PATH, objects, _fields(losses, options))
    headers = dict(request.headers)
    if request_id is not None:
        if not _VISIBLE_ASCII.fullmatch(request_id):
            raise ValueError("request_id must be visible ASCII characters without spaces")
        headers[REQUEST_ID_HEADER] = request_id
    count = None if inputs is None else len(objects)
    return replace(request, headers=headers, input_count=count)


def tensors_request(
    method: str,
    path: str,
    objects: Sequence[Mapping[str, Tensor]],
    fields: Mapping[str, Json],
    *,
    accept: str = SAFETENSORS,
) -> Request:
    """Request whose body is a safetensors file.

    Args:
        method: as in `Request`.
        path: as in `Request`.
        objects: tensors by name of each input object; numbered in the file if there are several.
        fields: what the request says beside its tensors.
        accept: media type of the answer.

    Raises:
        TypeError: a tensor's dtype cannot travel.
        ValueError: a tensor is malformed, or a field is no finite number.
    """
    arrays, written, uses = _sorted_by_form(objects)
    if any(written):
        fields = {**fields, "inputs": written[0] if len(written) == 1 else written}
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    parts = tuple(encode_safetensors(arrays, {"request": text}))
    headers = {"Content-Type": SAFETENSORS, "Accept": accept, **_length(parts)}
    return Request(method, path, headers, parts, uses=tuple(uses))


def kept_array(tensor: TensorLike, keep: Keep) -> Array:
    """The values to upload, once what was asked for makes sense.

    Raises:
        TypeError: they cannot travel, or it is no array.
        ValueError: `keep` has no meaning.
    """
    if keep not in ("array", "nothing"):
        raise ValueError(f"keep must be 'array' or 'nothing', not {keep!r}")
    if isinstance(tensor, Mapping | TensorRef):
        raise TypeError(f"put takes the values of a tensor, not a {type(tensor).__name__}")
    return to_array(tensor, _KEPT_NAME)


def put_request(array: Array) -> Request:
    """Request to keep a tensor."""
    parts = tuple(encode_safetensors({_KEPT_NAME: array}, {}))
    headers = {"Content-Type": SAFETENSORS, "Accept": JSON, **_length(parts)}
    return Request("PUT", _TENSORS, headers, parts)


def get_request(ref: TensorRef | str) -> Request:
    """Request for the values of a kept tensor."""
    return Request("GET", _tensor_path(ref), {"Accept": SAFETENSORS})


def delete_request(ref: TensorRef | str) -> Request:
    """Request to forget a kept tensor."""
    return Request("DELETE", _tensor_path(ref))


def read_put(reply: Reply) -> "KeptTensor":
    """What a successful reply to `put_request` says about the tensor.

    Raises:
        ServiceError: the reply says no such thing.
    """
    _require_type(reply, JSON)
    try:
        return _KeptTensors.model_validate_json(bytes(reply.body)).tensors[_KEPT_NAME]
    except (ValidationError, KeyError) as error:
        raise ServiceError(f"the answer is incomplete: {error}") from error


def tensor_ref(kept: "KeptTensor", upload: Upload) -> TensorRef:
    """What the caller gets for a tensor that is kept now."""
    upload.done(kept.ref)
    return TensorRef(kept.dtype, tuple(kept.shape), kept.nbytes, upload)


def read_tensor(reply: Reply) -> Array:
    """Values that a successful reply to `get_request` carries.

    Raises:
        ServiceError: the reply is not one tensor.
    """
    _require_type(reply, SAFETENSORS)
    try:
        (array,) = decode_safetensors(reply.body)[0].values()
    except (MalformedBodyError, ValueError) as error:
        raise ServiceError(f"the answer is not one tensor: {error}") from error
    return array


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
) -> list[dict[str, Tensor]]:
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


def _given(each: InputObject) -> dict[str, Tensor]:
    return {name: value for name, value in each.items() if value is not None}


def _sorted_by_form(
    objects: Sequence[Mapping[str, Tensor]],
) -> tuple[dict[str, Array], list[dict[str, Json]], list[Use]]:
    """Tensors that travel as bytes, those that travel as JSON, and the kept ones among these."""
    arrays: dict[str, Array] = {}
    written: list[dict[str, Json]] = [{} for _ in objects]
    uses: list[Use] = []
    for index, each in enumerate(objects):
        for name, value in each.items():
            label = numbered(index, name, len(objects))
            if isinstance(value, TensorRef):
                uses.append(Use.of(value))
                written[index][name] = {"ref": uses[-1].ref}
            elif isinstance(value, Mapping):
                written[index][name] = json_tensor(value, label)
            else:
                arrays[label] = to_array(value, label)
    return arrays, written, uses


def _fields(losses: Losses, options: Mapping[str, object]) -> dict[str, Json]:
    choices = [loss_choice(loss) for loss in _listed(losses)]
    given = {name: value for name, value in options.items() if value is not None}
    request = EvaluateRequest.model_validate({"losses": choices, **given})
    fields = request.model_dump(exclude_defaults=True, exclude_none=True)
    if "aggregate" in given:  # a preset may have another default
        fields["aggregate"] = request.aggregate
    return fields


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


def _length(parts: Sequence[bytes | memoryview]) -> dict[str, str]:
    return {"Content-Length": str(sum(len(part) for part in parts))}


def _tensor_path(ref: TensorRef | str) -> str:
    text = ref if isinstance(ref, str) else ref.ref
    if not text:
        raise ValueError("ref must not be empty")
    return f"{_TENSORS}/{quote(text, safe='')}"


class KeptTensor(BaseModel):
    """What the service says about a tensor that it keeps."""

    ref: str
    dtype: str
    shape: list[int]
    nbytes: int


class _KeptTensors(BaseModel):
    tensors: dict[str, KeptTensor]


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
