"""Requests whose answers are known to the bit: what the same service says when nothing is wrong."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard

from fuzz.bodies import body as fuzz_body
from loadtests.answers import Answer, Reply
from loadtests.bodies import AS_FORM, AS_JSON, AS_SAFETENSORS, Encoding, Question, samples
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.transport import PATH
from lossd_client.wire import (
    JSON,
    MULTIPART,
    REQUEST_ID_HEADER,
    SAFETENSORS,
    decode_safetensors,
)

TIMEOUT_S: Final = 60.0
"""Nothing here takes that long: what does, hangs."""
OK: Final = 200
# What an answer says of its own way, and no other answer need say again.
_OF_THE_WAY: Final = ("timing_ms", "batch", "request_id")

# Losses that numpy's formulas do not cover; their bits are compared, and the service's own tests
# compare their values.
_MORE: Final[tuple[tuple[str, Encoding, Question], ...]] = (
    (
        "sorted_and_distances",
        AS_SAFETENSORS,
        Question(3, ((48, 80), (33, 61)), ("lovasz_softmax", "boundary", "hausdorff_dt"), "each"),
    ),
    (
        "windows",
        AS_SAFETENSORS,
        Question(4, ((64, 64),), ("structural_similarity", "soft_cldice", "dice_ce"), "total"),
    ),
    ("rich_sums", AS_JSON, Question(4, ((40, 56),), ("combo", "poly1_cross_entropy"), "total")),
    ("top_pixels", AS_FORM, Question(5, ((50, 70),), ("topk_cross_entropy", "tversky"))),
)


@dataclass(frozen=True)
class Asked:
    """A request."""

    name: str
    headers: Mapping[str, str]
    body: bytes
    truth: Answer | None = None
    """Numbers in numpy's float64, where there are formulas."""


@dataclass(frozen=True)
class Known:
    """A request, and what it must be answered: always the same."""

    asked: Asked
    mark: str
    """What the quiet service said, see `mark`."""

    @property
    def good(self) -> bool:
        """Whether it is answered, not refused."""
        return self.mark.startswith(f"{OK} ")


def mark(reply: Reply) -> str:
    """Status and code of a refusal; status and digest of all bits of an answer."""
    if reply.status != OK:
        return f"{reply.status} {json.loads(reply.body)['code']}"
    digest = hashlib.sha256()
    if reply.headers["content-type"] == SAFETENSORS:
        tensors, metadata = decode_safetensors(reply.body)
        document = json.loads(metadata["response"])
        for name, array in sorted(tensors.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    else:
        document = json.loads(reply.body)
    lasting = {name: value for name, value in document.items() if name not in _OF_THE_WAY}
    digest.update(json.dumps(lasting, sort_keys=True).encode())
    return f"{reply.status} {digest.hexdigest()}"


class Line:
    """A connection that is kept between requests, as a caller's would be."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._key = key

    def ask(self, one: Asked, request_id: str) -> Reply:
        """The reply to one evaluation.

        Raises:
            OSError: the connection failed.
            http.client.HTTPException: it ended without a whole reply.
        """
        headers = {
            "Authorization": f"Bearer {self._key}",
            REQUEST_ID_HEADER: request_id,
        }
        try:
            self._connection.request("POST", PATH, one.body, headers | dict(one.headers))
            response = self._connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, lower, response.read())
        except BaseException:
            self._connection.close()  # the next request opens it anew
            raise

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def learn(line: Line, *, fuzz_bodies: int, largest_bytes: int, seed: int) -> tuple[Known, ...]:
    """What the quiet service answers to everything that is asked later.

    Args:
        line: to the service.
        fuzz_bodies: how many bodies of the fuzz there are, good and hostile ones.
        largest_bytes: larger bodies are left out; less of everything is quicker.
        seed: of the fuzz.

    Raises:
        RuntimeError: it does not answer the same twice, or one that should be good is refused.
    """
    known = []
    requests = [one for one in _requests(fuzz_bodies, seed) if len(one.body) <= largest_bytes]
    for number, one in enumerate(requests):
        request_id = f"learn-{number}"
        reply = line.ask(one, request_id)
        if one.truth is not None:
            one.truth.check(reply, request_id)
        first, second = mark(reply), mark(line.ask(one, f"{request_id}-again"))
        if first != second or (reply.status != OK and one.name != _FUZZ):
            msg = f"{one.name}, number {number}, is answered {first} and then {second}"
            raise RuntimeError(msg)
        known.append(Known(one, first))
    return tuple(known)


_FUZZ: Final = "fuzz"
_EVALUATED: Final = (JSON, SAFETENSORS, MULTIPART)
"""The fuzz has bodies for other decoders, too."""


def _requests(fuzz_bodies: int, seed: int) -> Iterator[Asked]:
    for scenario in SCENARIOS:
        if scenario.kind == "asked":
            yield from _of_scenario(scenario)
    for name, encoding, question in _MORE:
        for variant in range(2):
            written = encoding.write(question, samples(question, variant))
            yield Asked(name, {"Content-Type": encoding.content_type}, written)
    for number in range(fuzz_bodies):
        one = fuzz_body(seed, number)
        # A deadline is kept by the clock, so its answer need not be the same twice.
        if one.kind in _EVALUATED and b"timeout_ms" not in one.data:
            yield Asked(_FUZZ, {"Content-Type": one.content_type}, one.data)


def _of_scenario(scenario: Scenario) -> Iterator[Asked]:
    headers = {"Content-Type": scenario.content_type}
    for case in scenario.cases:
        yield Asked(scenario.name, headers, case.body, case.answer)
    case = scenario.cases[0]
    coded = {"gzip": gzip.compress(case.body), "zstd": zstandard.compress(case.body)}
    for coding, body in coded.items():
        yield Asked(coding, headers | {"Content-Encoding": coding}, body, case.answer)
