"""Open Inference Protocol v2: what an infer request means to lossd, however it came.

Parameters of a request are its fields, `losses` as names between commas or as JSON text; for the
model of one loss all others are parameters of that loss. What is computed follows from the outputs
that are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from lossd.core.job import Job, RowJob
from lossd.losses.kinds import SHARED_INPUTS
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.arrays import SHOWN_CHARACTERS
from lossd.protocols.documents import read_losses
from lossd.protocols.files import Budget
from lossd.protocols.oip_models import STATISTICS, Model
from lossd.protocols.oip_wire import InferRequest, tensor_of
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import Array, EvaluateRequest, numbered, split_numbered

_RESERVED: Final = ("sequence_id", "sequence_start", "sequence_end", "headers")
_FIELDS: Final = frozenset(EvaluateRequest.model_fields)
_MICROSECONDS_PER_MS: Final = 1000
_HALF_PRECISION: Final = ("float16", "bfloat16")


@dataclass(frozen=True)
class Inference:
    """An infer request that can be computed."""

    asked: EvaluateRequest
    job: Job | RowJob
    outputs: tuple[str, ...]
    """Names of the answer's tensors in their order; empty: all that there are."""


def build_inference(
    request: InferRequest, model: Model, limits: RequestLimits, budget: Budget
) -> Inference:
    """The job of an infer request.

    Raises:
        MalformedBodyError: names or sizes are not those of the model.
        LossdError: as for an evaluation.
    """
    _check_names(request, model)
    arrays = {one.name: tensor_of(one, model.name, request.prefix) for one in request.inputs}
    _check_batch(request, model, limits)
    asked = read_request(_document(request, model, budget))
    job = build_job(asked, split_numbered(arrays), limits)
    names = tuple(one.name for one in request.outputs)
    there = frozenset(_answered(asked, job)) if names else frozenset()
    for name in names:
        if name not in there:
            raise MalformedBodyError(
                f"unexpected inference output '{_clipped(name)}' for model '{model.name}'"
            )
    return Inference(asked, job, names)


def chosen(inference: Inference, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of an outcome that are to be sent, in the order in which they were asked for.

    Raises:
        InvalidInputError: a loss does not give with these parameters what it can give with others.
    """
    if not inference.outputs:
        return dict(tensors)
    for name in inference.outputs:
        if name not in tensors:
            msg = f"output '{_clipped(name)}' is not there with these parameters"
            raise InvalidInputError(msg)
    return {name: tensors[name] for name in inference.outputs}


def answer_parameters(warnings: Sequence[str], job: Job | RowJob) -> dict[str, str]:
    """What an answer says besides its tensors, as JSON texts; nothing where all is as usual."""
    said: dict[str, Any] = {}
    if warnings:
        said["warnings"] = list(warnings)
    if job.preset is not None:
        said["preset"] = job.preset
    return {name: orjson.dumps(value).decode() for name, value in said.items()}


def _check_names(request: InferRequest, model: Model) -> None:
    names = [one.name for one in request.inputs]
    if not names:
        count = len(model.inputs)
        raise MalformedBodyError(
            f"{request.prefix}Raw request must only have 1 input (found 1) to be deduced but got "
            f"{count} inputs in '{model.name}' model configuration"
        )
    for name in names:
        if _base(name) not in model.accepted:
            raise MalformedBodyError(
                f"unexpected inference input '{_clipped(name)}' for model '{model.name}'"
            )
    if len(set(names)) < len(names):
        raise MalformedBodyError(f"an input is given twice for model '{model.name}'")


def _check_batch(request: InferRequest, model: Model, limits: RequestLimits) -> None:
    """Refuses what Triton refuses before it looks further; numbered inputs differ by right."""
    sizes = [
        (one.name, one.shape[0])
        for one in request.inputs
        if one.shape and _base(one.name) == one.name and one.name not in SHARED_INPUTS
    ]
    for _, size in sizes:
        if size > limits.samples:
            raise MalformedBodyError(
                f"{request.prefix}inference request batch-size must be <= {limits.samples} for "
                f"'{model.name}'"
            )
    for name, size in reversed(sizes):
        if size != sizes[-1][1]:
            raise MalformedBodyError(
                f"{request.prefix}input '{name}' batch size does not match other inputs for "
                f"'{model.name}'"
            )


def _base(name: str) -> str:
    """Name of an input without the number of its object."""
    number, slash, rest = name.partition("/")
    return rest if slash and number.isdecimal() else name


def _document(request: InferRequest, model: Model, budget: Budget) -> dict[str, Any]:
    """The document of the same evaluation."""
    fields = _implied([_base(one.name) for one in request.outputs])
    own: dict[str, Any] = {}
    for name, value in _read_parameters(request.parameters, budget).items():
        if model.loss is not None and name == "losses":
            raise MalformedBodyError(
                f"model '{model.name}' evaluates one loss; model 'evaluate' takes losses"
            )
        if name in _FIELDS or model.loss is None:
            fields[name] = value
        else:
            own[name] = value
    if model.loss is not None:
        fields["losses"] = [{"name": model.loss, "params": own}]
    return fields


def _implied(outputs: Sequence[str]) -> dict[str, Any]:
    """Fields of a request that the outputs it chooses need."""
    fields: dict[str, Any] = {}
    for name in outputs:
        kind, _, rest = name.partition("/")
        if kind in ("gradient", "gradient_scale"):
            fields["gradient"] = "each" if "/" in rest else "total"
        elif kind == "map":
            fields["maps"] = True
        elif kind in ("per_class", "statistics"):
            fields[kind] = True
    return fields


def _read_parameters(given: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Parameters as fields: JSON texts as what they say, the deadline in milliseconds.

    Raises:
        MalformedBodyError: a parameter is reserved, or is no JSON although it begins so.
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in _RESERVED or name.startswith("triton_"):
            raise MalformedBodyError(f"parameter '{_clipped(name)}' has no meaning here")
        if name == "priority":
            _check_priority(value)
        elif name == "timeout":
            fields["timeout_ms"] = _milliseconds(value)
        elif name == "losses":
            text = value if isinstance(value, str) else ""
            fields["losses"] = read_losses(text, "parameter losses", budget)
        else:
            fields[name] = _read_value(name, value, budget)
    if "timeout" in given and "timeout_ms" in given:
        raise MalformedBodyError("give timeout, in microseconds, or timeout_ms, not both")
    return fields


def _read_value(name: str, value: Any, budget: Budget) -> Any:
    """What a parameter stands for: tables, lists and numbers may come as JSON text."""
    if not isinstance(value, str):
        return value
    budget.take_json(value, f"parameter {_clipped(name)}")
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        if value.lstrip().startswith(("[", "{")):
            raise MalformedBodyError(f"parameter '{_clipped(name)}' is not JSON") from None
        return value
    return read


def _check_priority(value: Any) -> None:
    """Refuses what is no priority; like a Triton without levels, the queue here knows none."""
    if type(value) is not int or value < 0:
        raise MalformedBodyError(f"priority is a whole number of at least 0, got {value!r:.40}")


def _milliseconds(microseconds: Any) -> float | None:
    if type(microseconds) is not int or microseconds < 0:
        msg = f"timeout is a number of microseconds of at least 0, got {microseconds!r:.40}"
        raise MalformedBodyError(msg)
    # 0 is how clients of the protocol say "none of my own".
    return microseconds / _MICROSECONDS_PER_MS or None


def _answered(asked: EvaluateRequest, job: Job | RowJob) -> Iterator[str]:
    """Names of the tensors that the answer can have."""
    rows = [call.label for call in job.calls]
    yield from (f"loss/{row}" for row in rows)
    yield "total"
    count = len(job.parts)
    for name in (*_gradients(job), *_maps(asked, job)):
        yield from (numbered(index, name, count) for index in range(count))
    if asked.per_class:
        yield from (f"per_class/{row}" for row in rows)
    if asked.statistics:
        yield from (f"statistics/{name}" for name in STATISTICS)


def _gradients(job: Job | RowJob) -> Iterator[str]:
    if job.gradient == "none":
        return
    inputs = (job.differentiable,) if isinstance(job, Job) else job.differentiable
    half = job.gradient_dtype in _HALF_PRECISION
    for name in inputs:
        paths = [name]
        if job.gradient == "each":
            paths = [f"{name}/{call.label}" for call in job.calls]
        for path in paths:
            yield f"gradient/{path}"
            if half:
                yield f"gradient_scale/{path}"


def _maps(asked: EvaluateRequest, job: Job | RowJob) -> Iterator[str]:
    if asked.maps:
        yield from (f"map/{one.label}" for one in job.calls if "maps" in one.loss.returns)


def _clipped(text: str) -> str:
    return text[:SHOWN_CHARACTERS]
