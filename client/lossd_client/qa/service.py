"""Calls of the service's annotation QA, see `lossd_client.qa_wire`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from lossd_client._client import Client
from lossd_client._protocol import READY, Reply, Request, Tensor, read_document, tensors_request
from lossd_client._refs import TensorRef
from lossd_client.errors import MalformedBodyError, ServiceError
from lossd_client.qa_wire import (
    CONTEXTS_PATH,
    LINES,
    SCORE_PATH,
    SUB_SCORES,
    SUB_SCORES_TENSOR,
    SUSPICION_PATH,
    ImageScores,
    ScoreAnswer,
    ScoreRequest,
    SubScores,
    SuspicionAnswer,
    SuspicionRequest,
)
from lossd_client.wire import Array, decode_safetensors, split_numbered

_ROWS_PER_CALL = 1 << 16

Parts = Mapping[str, Tensor]
"""Tensors of one image by name, without a sample axis."""

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Answered:
    """What the service says of one image.

    Attributes:
        scores: everything but tensors.
        arrays: the tensors that were asked for, by name.
    """

    scores: ImageScores
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class JudgedText:
    """What the service says of one image, as the JSON that it came as, each without a line's end.

    Attributes:
        head: the fields of `ImageScores` but the regions.
        regions: the list of regions.
    """

    head: bytes
    regions: bytes


class QaService:
    """A service, as annotation QA sees it. Safe to share between threads.

    Args:
        client: the way to it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def numerics_version(self) -> str:
        """What changes whenever the bits of any answer may.

        Raises:
            LossdError: the service does not answer, or is not ready.
        """
        document = read_document(self._reply(lambda: READY))
        try:
            return str(document["numerics_version"])
        except (KeyError, TypeError) as error:
            raise ServiceError("the answer names no numerics_version; is this lossd?") from error

    def score(self, request: ScoreRequest, images: Sequence[Parts]) -> list[Answered]:
        """Scores of images.

        Args:
            request: what is asked.
            images: tensors of each, without a sample axis.

        Returns:
            One answer per image, in their order.

        Raises:
            RequestError: an image or a number is not allowed; a context is not known.
            LossdError: as `Client.evaluate`.
        """
        fields = request.model_dump(exclude_defaults=True)
        reply = self._reply(lambda: tensors_request("POST", SCORE_PATH, images, fields))
        answer, tensors = _read(reply, ScoreAnswer)
        own = split_numbered(tensors, count=len(images))
        if len(answer.images) != len(images):
            raise ServiceError(f"{len(answer.images)} of {len(images)} images were answered")
        return [Answered(*each) for each in zip(answer.images, own, strict=True)]

    def judged(self, request: ScoreRequest, images: Sequence[Parts]) -> list[JudgedText]:
        """What is said of images where no tensors are asked for, as it came.

        A model of it would take longer to make than the service takes to judge; whoever reads a
        text makes one of it.

        Args:
            request: what is asked.
            images: tensors of each, without a sample axis.

        Returns:
            One text per image, in their order.

        Raises:
            RequestError, LossdError: as `score`.
        """
        fields = request.model_dump(exclude_defaults=True)
        reply = self._reply(
            lambda: tensors_request("POST", SCORE_PATH, images, fields, accept=LINES)
        )
        if reply.headers.get("content-type") != LINES:
            raise ServiceError(f"the answer is no {LINES}; is the service older than its client?")
        _, *lines = bytes(reply.body).split(b"\n")
        if len(lines) != 2 * len(images):
            raise ServiceError(f"{len(lines) // 2} of {len(images)} images were answered in lines")
        return [JudgedText(*each) for each in zip(lines[::2], lines[1::2], strict=True)]

    def put_context(
        self,
        name: str,
        counts: Mapping[str, Array],
        sub_scores: Sequence[SubScores] | None = None,
    ) -> None:
        """Has the service know a context, and seals it where sub-scores are given.

        Args:
            name: what it is called.
            counts: the tensors of `qa_wire.COUNTS`, summed over all images.
            sub_scores: those of all images.

        Raises:
            LossdError: as `Client.evaluate`.
        """
        tensors = dict(counts)
        if sub_scores is not None:
            tensors[SUB_SCORES_TENSOR] = _rows(sub_scores)
        self._reply(lambda: tensors_request("PUT", f"{CONTEXTS_PATH}/{name}", [tensors], {}))

    def suspicion(self, context: str, sub_scores: Sequence[SubScores]) -> list[float]:
        """Suspicions of images.

        Args:
            context: a sealed one.
            sub_scores: of the images.

        Returns:
            One number per image, in their order.

        Raises:
            RequestError: the context is not known, or not sealed.
            LossdError: as `Client.evaluate`.
        """
        fields = SuspicionRequest(context=context).model_dump()
        found: list[float] = []
        for start in range(0, len(sub_scores), _ROWS_PER_CALL):
            table = {SUB_SCORES_TENSOR: _rows(sub_scores[start : start + _ROWS_PER_CALL])}
            request = tensors_request("POST", SUSPICION_PATH, [table], fields)
            answer, _ = _read(self._reply(partial(_same, request)), SuspicionAnswer)
            found += answer.suspicion
        if len(found) != len(sub_scores):
            raise ServiceError(f"{len(found)} of {len(sub_scores)} images were answered")
        return found

    def keep(self, values: Array) -> TensorRef:
        """Has the service keep a tensor; `UnknownRefError` is raised where it forgot it.

        Raises:
            LossdError: as `Client.put`.
        """
        return self._client.put(values, keep="nothing")

    def drop(self, kept: TensorRef) -> None:
        """Has the service forget a tensor.

        Raises:
            LossdError: as `Client.delete`.
        """
        self._client.delete(kept)

    def _reply(self, build: Callable[[], Request]) -> Reply:
        # The client has no public call for paths that it does not know.
        return self._client._exchange_kept(build)[1]  # noqa: SLF001 - of the same distribution


def _same(request: Request) -> Request:
    return request


def _rows(sub_scores: Sequence[SubScores]) -> Array:
    """`[N, 4]` float64; what an image does not have is NaN."""
    rows = [[getattr(each, name) for name in SUB_SCORES] for each in sub_scores]
    return np.array(rows, np.float64).reshape(-1, len(SUB_SCORES))


def _read(reply: Reply, kind: type[_Model]) -> tuple[_Model, dict[str, Array]]:
    """Document and tensors of an answer, which is JSON where it has no tensors."""
    try:
        if reply.headers.get("content-type", "").startswith("application/json"):
            return kind.model_validate_json(bytes(reply.body)), {}
        tensors, metadata = decode_safetensors(reply.body)
        return kind.model_validate_json(metadata["response"]), tensors
    except (MalformedBodyError, ValidationError, KeyError) as error:
        raise ServiceError(f"the answer is incomplete: {error}") from error
