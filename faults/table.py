"""Everything that a stranger can do wrong, as data: how it is sent, and what may be answered."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from faults.known import OK, TIMEOUT_S, Known
from faults.sabotage import FAILURES, SLOW
from loadtests.answers import Case, Reply, UnexpectedAnswerError
from loadtests.bodies import Question, Sample, samples, write_safetensors
from loadtests.scenarios import SCENARIOS
from loadtests.transport import PATH, send_as_told
from lossd.callers import Allowance
from lossd.keys import add_key, revoke_key
from lossd_client.wire import (
    JSON,
    REQUEST_ID_HEADER,
    SAFETENSORS,
    Array,
    encode_safetensors,
    encode_tensor,
)

GONE: Final = "hung up"
_STRANGER, _FLOODER, _HOARDER = "stranger", "flooder", "hoarder"
LIMITED: Final = {
    _FLOODER: Allowance(concurrent_requests=8),
    _HOARDER: Allowance(tensor_mib=1),
}
"""Owners of keys that may use less than others."""
_KEYS_COUNT_AFTER_S: Final = 1.3  # the service looks at the file once a second
_FLOOD: Final = 24
_ASKED: Final = Question(3, ((48, 40),), ("dice", "cross_entropy"), "total")
_HUNGRY: Final = Question(8, ((160, 160),), ("dice", "focal", "lovasz_softmax", "boundary"), "each")


@dataclass(frozen=True)
class Site:
    """Where the faults go, and with which keys."""

    port: int
    keys_file: Path
    keys: Mapping[str, str]
    """By owner."""
    body_limit_bytes: int
    known_refusals: tuple[Known, ...]

    @property
    def url(self) -> str:
        """Of the service."""
        return f"http://127.0.0.1:{self.port}"


Send = Callable[[Site, Random], str]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    send: Send
    """Does it; what was answered, in words that many have in common."""
    answers: frozenset[str]
    """What may be."""
    share: int = 4
    """How often, relative to the others."""


def table() -> tuple[Fault, ...]:
    """Every fault."""
    return *quick(), *_SLOW


def quick() -> tuple[Fault, ...]:
    """Those that take no seconds and hold nobody up."""
    return (
        *(
            Fault(one.name, _abuse(one.content_type, case), frozenset({"as it should be"}))
            for one in SCENARIOS
            if one.kind != "asked"
            for case in one.cases
        ),
        *(
            Fault(label, _labelled(label), frozenset({answered}))
            for label, (_, answered) in FAILURES.items()
        ),
        *_QUICK,
    )


def post(site: Site, body: bytes, *, key: str | None = None, **headers: str) -> Reply:
    """The reply to a body on a connection of its own.

    Raises:
        OSError: the connection failed.
        http.client.HTTPException: it ended without a whole reply.
    """
    with _connected(site) as connection:
        connection.request("POST", PATH, body, _headers(site, key) | headers)
        return _reply(connection.getresponse())


def _headers(site: Site, key: str | None = None) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {site.keys[_STRANGER] if key is None else key}",
        "Content-Type": SAFETENSORS,
        REQUEST_ID_HEADER: f"fault-{uuid.uuid4().hex}",
    }


@contextmanager
def _connected(site: Site) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=TIMEOUT_S)) as one:
        yield one


def _reply(response: http.client.HTTPResponse) -> Reply:
    lower = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, lower, response.read())


def said(reply: Reply) -> str:
    """Status, and code of a problem, of what was answered."""
    if reply.headers.get("content-type") != "application/problem+json":
        return f"{reply.status}"
    return f"{reply.status} {json.loads(reply.body)['code']}"


# -- what is sent ---------------------------------------------------------------------------------


def _abuse(content_type: str, case: Case) -> Send:
    def send(site: Site, _: Random) -> str:
        headers = _headers(site) | {"Content-Type": content_type}
        reply = send_as_told(site.url, case, headers)
        try:
            case.answer.check(reply, headers[REQUEST_ID_HEADER])
        except UnexpectedAnswerError as error:
            return f"{error.kind}: {error.detail[:100]}"
        return "as it should be"

    return send


def _body(
    question: Question = _ASKED,
    change: Callable[[Sample], dict[str, Array]] | None = None,
    **fields: Any,
) -> bytes:
    (sample,) = samples(question, 0)
    if change is None and not fields:
        return write_safetensors(question, [sample])
    inputs = {"logits": sample.logits, "target": sample.target}
    inputs |= change(sample) if change is not None else {}
    document = {**question.document, **fields}
    return b"".join(encode_safetensors(inputs, {"request": json.dumps(document)}))


def labelled_body(label: str, **fields: Any) -> bytes:
    """A good request, one of whose losses is called that."""
    return _body(losses=["dice", {"name": "cross_entropy", "label": label}], **fields)


def _labelled(label: str) -> Send:
    return lambda site, _: said(post(site, labelled_body(label)))


def _refused_body(site: Site, random: Random) -> str:
    """One of the hostile bodies, which must be refused as it was in peace."""
    one = random.choice(site.known_refusals)
    with _connected(site) as connection:
        connection.request("POST", PATH, one.asked.body, _headers(site) | dict(one.asked.headers))
        answered = said(_reply(connection.getresponse()))
    return "as in peace" if answered == one.mark else f"{answered} instead of {one.mark}"


def _infinite(sample: Sample) -> dict[str, Array]:
    logits = sample.logits.copy()
    logits[0, 2, 7, 9] = np.inf
    return {"logits": logits}


def _wrong_size(sample: Sample) -> dict[str, Array]:
    return {"target": sample.target[:, :-1]}


def _too_long_in_chunks(site: Site, _: Random) -> str:
    pieces = iter([bytes(1 << 18)] * (site.body_limit_bytes // (1 << 18) + 2))
    with _connected(site) as connection:
        with suppress(OSError):  # it hangs up before the end, and has said why
            connection.request("POST", PATH, pieces, _headers(site), encode_chunked=True)
        return said(_reply(connection.getresponse()))


def _slow(site: Site, _: Random) -> str:
    """Announces a body, sends a part of it and then nothing more."""
    body = _body()
    with _connected(site) as connection:
        connection.putrequest("POST", PATH)
        for name, value in _headers(site).items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[: len(body) // 2])
        return said(_reply(connection.getresponse()))


def _hang_up_after(body: bytes, least_s: float, most_s: float) -> Send:
    """Sends all of it and goes before the answer can be there, or about when it comes."""

    def send(site: Site, random: Random) -> str:
        with _connected(site) as connection:
            connection.request("POST", PATH, body, _headers(site))
            time.sleep(random.uniform(least_s, most_s))
        return GONE

    return send


def _no_http(site: Site, _: Random) -> str:
    with socket.create_connection(("127.0.0.1", site.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        return connection.recv(64).split(b"\r\n")[0].decode("latin-1")[:12]


def _revoked(site: Site, _: Random) -> str:
    """A key that is good, is revoked, and is good no more."""
    name = f"guest-{uuid.uuid4().hex[:12]}"
    key = add_key(site.keys_file, name)
    time.sleep(_KEYS_COUNT_AFTER_S)
    before = said(post(site, _body(), key=key))
    revoke_key(site.keys_file, name)
    time.sleep(_KEYS_COUNT_AFTER_S)
    return f"{before}, then {said(post(site, _body(), key=key))}"


def _flood(site: Site, _: Random) -> str:
    """Many requests of one key at once: some are let in, the others are told when to come back."""
    answers: list[str] = []

    def one() -> None:
        reply = post(site, _body(), key=site.keys[_FLOODER])
        told = reply.status == OK or int(reply.headers["retry-after"]) >= 1
        answers.append(said(reply) if told and "ratelimit" in reply.headers else "told nothing")

    threads = [threading.Thread(target=one) for _ in range(_FLOOD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{len(answers)} answers, {' or '.join(sorted(set(answers)))}"


def _unfolding_to(nbytes: int) -> bytes:
    return gzip.compress(bytes(nbytes), 9)


def _slow_head(site: Site, _: Random) -> str:
    with socket.create_connection(("127.0.0.1", site.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-".encode())
        return connection.recv(64).split(b"\r\n")[0].decode("latin-1")[:12]


def _by_ref(site: Site, key: str, ref: object) -> str:
    (sample,) = samples(_ASKED, 0)
    target = encode_tensor(sample.target)
    document = {"losses": ["dice"], "inputs": {"logits": {"ref": ref}, "target": target}}
    headers = {"Content-Type": JSON}
    return said(post(site, json.dumps(document).encode(), key=site.keys[key], **headers))


def _keep(site: Site, array: Array) -> object:
    with _connected(site) as connection:
        headers = _headers(site, site.keys[_HOARDER])
        body = b"".join(encode_safetensors({"a": array}, {}))
        connection.request("PUT", "/v1/tensors", body, headers)
        return json.loads(_reply(connection.getresponse()).body)["ref"]


_hoarding = threading.Lock()


def _evicted(site: Site, random: Random) -> str:
    """A key that keeps more than it may: the first goes, the last stays, and for that key only."""
    (first,), (last,) = samples(_ASKED, 0), samples(_ASKED, 1)
    with _hoarding:  # or two of them would put out each other's
        # Each of the two in between is half of what may be kept.
        large = [np.full(1 << 17, random.random(), np.float32) for _ in range(2)]
        refs = [_keep(site, one) for one in (first.logits, *large, last.logits)]
        return (
            f"{_by_ref(site, _HOARDER, refs[0])}, {_by_ref(site, _HOARDER, refs[-1])}, "
            f"of another key {_by_ref(site, _STRANGER, refs[-1])}"
        )


_QUICK: Final[tuple[Fault, ...]] = (
    Fault("fuzz", _refused_body, frozenset({"as in peace"}), share=40),
    Fault(
        "infinite_logits",
        lambda site, _: said(post(site, _body(change=_infinite))),
        frozenset({"422 non_finite_logits"}),
        share=8,
    ),
    Fault(
        "wrong_size",
        lambda site, _: said(post(site, _body(change=_wrong_size))),
        frozenset({"422 invalid_input"}),
    ),
    Fault("too_long_in_chunks", _too_long_in_chunks, frozenset({"413 too_large"}), share=1),
    Fault(
        "unknown_content_coding",
        lambda site, _: said(post(site, _body(), **{"Content-Encoding": "br"})),
        frozenset({"415 unsupported_coding"}),
    ),
    Fault(
        "gzip_bomb",
        lambda site, _: said(
            post(site, _unfolding_to(4 * site.body_limit_bytes), **{"Content-Encoding": "gzip"})
        ),
        frozenset({"413 too_large"}),
    ),
    Fault(
        "broken_gzip",
        lambda site, _: said(post(site, _unfolding_to(1000)[:-9], **{"Content-Encoding": "gzip"})),
        frozenset({"400 malformed_body"}),
    ),
    Fault(
        "endless_head",
        lambda site, _: said(post(site, _body(), **{"X-Filler": "x" * (1 << 18)})),
        frozenset({"431 head_too_large"}),
        share=1,
    ),
    Fault(
        "unknown_ref",
        lambda site, _: _by_ref(site, _STRANGER, "0" * 32),
        frozenset({"404 unknown_ref"}),
    ),
    Fault(
        "ref_that_is_no_text",
        lambda site, _: _by_ref(site, _STRANGER, [1]),
        frozenset({"400 malformed_body", "422 invalid_input"}),
    ),
    Fault(
        "evicted_ref",
        _evicted,
        frozenset({"404 unknown_ref, 200, of another key 404 unknown_ref"}),
        share=2,
    ),
    Fault("no_http", _no_http, frozenset({"HTTP/1.1 400"}), share=1),
    Fault(
        "wrong_key",
        lambda site, _: said(post(site, _body(), key="lossd_00000000_wrong")),
        frozenset({"401 unauthorized"}),
    ),
    Fault("hung_up_while_queued", _hang_up_after(_body(), 0.0, 0.02), frozenset({GONE}), share=8),
    Fault(
        "deadline_of_nothing",
        lambda site, _: said(post(site, _body(timeout_ms=1e-3))),
        frozenset({"504 deadline_exceeded"}),
    ),
)

_SLOW: Final[tuple[Fault, ...]] = (
    Fault("slow_sender", _slow, frozenset({"408 body_timeout"}), share=2),
    Fault("slow_head", _slow_head, frozenset({"HTTP/1.1 408"}), share=1),
    Fault("revoked_key", _revoked, frozenset({"200, then 401 unauthorized"}), share=1),
    Fault(
        "hung_up_while_computed",
        _hang_up_after(labelled_body(SLOW), 0.02, 0.3),
        frozenset({GONE}),
    ),
    Fault(
        "deadline_while_computed",
        lambda site, _: said(post(site, labelled_body(SLOW, timeout_ms=100))),
        frozenset({"504 deadline_exceeded"}),
    ),
    Fault(
        "hungry",
        lambda site, _: said(post(site, _body(_HUNGRY, gradient_dtype="float64", maps=True))),
        frozenset({"200"}),
        share=1,
    ),
    Fault(
        "flood",
        _flood,
        frozenset({f"{_FLOOD} answers, 200 or 429 quota_exceeded", f"{_FLOOD} answers, 200"}),
        share=1,
    ),
)
