"""Everything that can go wrong between a caller and the service, named once.

    LossdError
    ├── UnreachableError               the service could not be reached; nothing was answered
    ├── RequestError                   4xx: the request has to change
    │   ├── MalformedRequestError      400 malformed_request
    │   ├── MalformedBodyError         400 malformed_body
    │   ├── UnauthorizedError          401 unauthorized
    │   ├── UnknownLossError           404 unknown_loss
    │   ├── UnknownRefError            404 unknown_ref           upload the tensor again
    │   ├── UnknownContextError        404 context_not_found     send the context again
    │   ├── NotFoundError              404 not_found
    │   ├── MethodNotAllowedError      405 method_not_allowed
    │   ├── HeadTimeoutError           408 head_timeout
    │   ├── BodyTimeoutError           408 body_timeout
    │   ├── TooLargeError              413 too_large
    │   ├── UnsupportedMediaTypeError  415 unsupported_media_type
    │   ├── UnsupportedCodingError     415 unsupported_coding
    │   ├── InvalidInputError          422 invalid_input
    │   ├── InvalidParameterError      422 invalid_parameter
    │   ├── LabelOutOfRangeError       422 label_out_of_range
    │   ├── NonFiniteLogitsError       422 non_finite_logits
    │   └── HeadTooLargeError          431 head_too_large
    ├── QueueFullError                 429 queue_full            try again after `retry_after_s`
    ├── QuotaExceededError             429 quota_exceeded        likewise
    └── ServiceError                   5xx: the request was fine
        ├── InternalError              500 internal
        ├── NotSupportedError          501 not_supported
        ├── NotReadyError              503 not_ready             try again after `retry_after_s`
        ├── TooManyConnectionsError    503 too_many_connections  likewise
        ├── DrainingError              503 draining              try again, elsewhere if possible
        └── DeadlineExceededError      504 deadline_exceeded

The service raises these classes and one handler writes them as `application/problem+json`
(RFC 9457); the client reads that document and raises the same class again. Status and code of a
class are stated here and nowhere else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

PROBLEM_TYPE_PREFIX = "urn:lossd:problem:"
UNNAMED_STATUS_FLOOR = 500


@dataclass(frozen=True)
class FieldError:
    """One field that is wrong: where it stands in the request and what is the matter with it."""

    loc: tuple[str | int, ...]
    message: str


class LossdError(Exception):
    """The service or the way to it failed."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """Sentence that describes the class; the same for every occurrence."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @property
    def retry_after(self) -> str | None:
        """Value of a `Retry-After` header: whole seconds, rounded up, so that waiting is enough."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))

    def problem(self) -> dict[str, Any]:
        """Document of RFC 9457 for this error."""
        return {
            "type": PROBLEM_TYPE_PREFIX + self.code,
            "title": self.title(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "errors": [{"loc": list(e.loc), "message": e.message} for e in self.errors],
            "request_id": self.request_id,
        }


class UnreachableError(LossdError):
    """The service could not be reached."""

    status = 0
    code = "unreachable"


class RequestError(LossdError):
    """The request cannot be answered as it stands."""

    status = 400
    code = "request"


class MalformedRequestError(RequestError):
    """What was sent is not an HTTP request."""

    status = 400
    code = "malformed_request"


class MalformedBodyError(RequestError):
    """The body is not what its content type says."""

    status = 400
    code = "malformed_body"


class UnauthorizedError(RequestError):
    """The request shows no key that is valid here."""

    status = 401
    code = "unauthorized"


class UnknownLossError(RequestError):
    """There is no loss of that name."""

    status = 404
    code = "unknown_loss"


class UnknownRefError(RequestError):
    """No tensor of this caller's is kept under that ref."""

    status = 404
    code = "unknown_ref"


class UnknownContextError(RequestError):
    """No context of this caller's is kept under that name."""

    status = 404
    code = "context_not_found"


class NotFoundError(RequestError):
    """There is nothing at that address."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(RequestError):
    """That address does not take this method."""

    status = 405
    code = "method_not_allowed"


class HeadTimeoutError(RequestError):
    """The head of the request did not arrive in time."""

    status = 408
    code = "head_timeout"


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "body_timeout"


class TooLargeError(RequestError):
    """The request is larger than the service accepts."""

    status = 413
    code = "too_large"


class UnsupportedMediaTypeError(RequestError):
    """The service does not read bodies of that content type."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedCodingError(RequestError):
    """The body is compressed in a way that the service does not read."""

    status = 415
    code = "unsupported_coding"


class InvalidInputError(RequestError):
    """The fields or tensors of the request do not fit together."""

    status = 422
    code = "invalid_input"


class InvalidParameterError(RequestError):
    """A parameter of a loss is missing, unknown or out of range."""

    status = 422
    code = "invalid_parameter"


class LabelOutOfRangeError(RequestError):
    """A label that counts is not one of the classes."""

    status = 422
    code = "label_out_of_range"


class NonFiniteLogitsError(RequestError):
    """Logits that count are NaN, infinite or too large to subtract."""

    status = 422
    code = "non_finite_logits"


class HeadTooLargeError(RequestError):
    """The head of the request is larger than the service accepts."""

    status = 431
    code = "head_too_large"


class QueueFullError(LossdError):
    """The service has as much work as it accepts."""

    status = 429
    code = "queue_full"


class QuotaExceededError(LossdError):
    """The caller has used what it may for now."""

    status = 429
    code = "quota_exceeded"


class ServiceError(LossdError):
    """The service failed; the request was fine."""

    status = 500
    code = "service"


class InternalError(ServiceError):
    """The service made a mistake."""

    status = 500
    code = "internal"


class NotSupportedError(ServiceError):
    """The service does not offer that, or its settings do not allow it."""

    status = 501
    code = "not_supported"


class NotReadyError(ServiceError):
    """The service is starting or its engine has stopped."""

    status = 503
    code = "not_ready"


class TooManyConnectionsError(ServiceError):
    """The service has as many connections as it accepts."""

    status = 503
    code = "too_many_connections"


class DrainingError(ServiceError):
    """The service is shutting down and finishes what it accepted."""

    status = 503
    code = "draining"


class DeadlineExceededError(ServiceError):
    """The deadline of the request passed before its answer was there."""

    status = 504
    code = "deadline_exceeded"


def _leaves(cls: type[LossdError]) -> list[type[LossdError]]:
    below = cls.__subclasses__()
    return [leaf for sub in below for leaf in _leaves(sub)] if below else [cls]


ERRORS: dict[str, type[LossdError]] = {leaf.code: leaf for leaf in _leaves(LossdError)}
"""Every error an answer can carry, by its code."""


def error_from_problem(
    status: int, problem: Mapping[str, Any], *, retry_after_s: float | None = None
) -> LossdError:
    """Error that a problem document describes.

    Args:
        status: HTTP status of the answer that carried the document.
        problem: the decoded document; unknown codes are allowed (a newer service).
        retry_after_s: seconds of the `Retry-After` header, if there was one.

    Returns:
        An instance of the class with that code, or of `ServiceError` / `RequestError` by status.

    Example:
        >>> error_from_problem(404, {"code": "unknown_loss", "detail": "no loss 'dicee'"})
        UnknownLossError("no loss 'dicee'")
    """
    fallback = ServiceError if status >= UNNAMED_STATUS_FLOOR else RequestError
    cls = ERRORS.get(str(problem.get("code")), fallback)
    return cls(
        str(problem.get("detail") or problem.get("title") or f"HTTP {status}"),
        errors=[
            FieldError(tuple(entry.get("loc", ())), str(entry.get("message", "")))
            for entry in problem.get("errors") or ()
        ],
        request_id=problem.get("request_id"),
        retry_after_s=retry_after_s,
    )
