"""Sixteen requests in one batch, one of them bad: the others get the bits that they get alone."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from faults.sabotage import FAILURES, Sabotage
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob
from lossd.http_protocol import HttpProtocol
from lossd_client.wire import SAFETENSORS, Array
from service_fixture import (
    Answer,
    Served,
    problem,
    read_answer,
    safetensors,
    serving,
    wait_until,
)

COMPANY = 16
GUILTY = 11
SIZES = [(9, 7), (65, 64), (33, 40), (50, 41)]


class Gate:
    """The engine's `evaluate`, which waits at every batch until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.batches: list[int] = []
        self.then: Callable[..., Any] = Sabotage(evaluate)

    def __call__(self, jobs: Sequence[AnyJob], *rest: Any) -> Any:
        self.batches.append(len(jobs))
        assert self.opened.wait(30)
        return self.then(jobs, *rest)


@contextmanager
def held(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The engine inside a batch of one that is not among those asked for here."""
    gate = Gate()
    monkeypatch.setattr("lossd.engine.evaluate", gate)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(send, served, body(0))
        try:
            wait_until(lambda: gate.batches == [1])
            yield gate
        finally:
            gate.opened.set()
        read_answer(first.result())


def tensors(number: int) -> dict[str, Array]:
    rng = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)]
    target = rng.integers(0, 3, (1, *size), dtype=np.uint8)
    return {"logits": rng.normal(0, 4, (1, 3, *size)).astype(np.float32), "target": target}


def body(
    number: int, *, label: str = "focal", spoil: Callable[..., Any] | None = None, **fields: Any
) -> bytes:
    inputs = tensors(number)
    if spoil is not None:
        spoil(inputs)
    losses = ["dice", "lovasz_softmax", {"name": "focal", "label": label}]
    return safetensors({"losses": losses, "gradient": "total", "maps": True, **fields}, inputs)


def send(served: Served, data: bytes, timeout_s: float = 30) -> Answer:
    # A connection of its own: whoever hangs up takes no other request along.
    return httpx.post(
        f"{served.client.base_url}/v1/evaluate",
        content=data,
        headers={"Content-Type": SAFETENSORS},
        timeout=timeout_s,
    )


def bits(answer: Answer) -> dict[str, bytes]:
    _, found = read_answer(answer)
    return {name: array.tobytes() for name, array in found.items()}


def batch_of(answer: Answer) -> int:
    document, _ = read_answer(answer)
    count: int = document["batch"]["requests"]
    return count


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("lossd_dropped_requests_total", {"reason": reason}) or 0.0


@pytest.fixture(scope="module")
def alone(served: Served) -> list[dict[str, bytes]]:
    """What each request is answered when nothing else is asked."""
    answers = [send(served, body(number)) for number in range(COMPANY)]
    assert {batch_of(answer) for answer in answers} == {1}
    return [bits(answer) for answer in answers]


@contextmanager
def company(served: Served, gate: Gate, guilty: bytes) -> Iterator[list[Future[Answer]]]:
    """Fifteen good requests and the guilty one, waiting together when the engine goes on."""
    with ThreadPoolExecutor(COMPANY) as pool:
        answers = [
            pool.submit(send, served, guilty if number == GUILTY else body(number))
            for number in range(COMPANY)
        ]
        wait_until(lambda: served.engine.queue_depth().requests == COMPANY)
        yield answers
        gate.opened.set()


def neighbours_are_right(answers: list[Future[Answer]], alone: list[dict[str, bytes]]) -> None:
    for number in range(COMPANY):
        if number != GUILTY:
            assert bits(answers[number].result()) == alone[number], number


def with_value(value: float) -> Callable[[dict[str, Array]], None]:
    def spoil(inputs: dict[str, Array]) -> None:
        inputs["logits"][0, 1, 3, 5] = value

    return spoil


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_its_own_senders_alone(
    served: Served, alone: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    guilty = body(GUILTY, spoil=with_value(value))
    with held(served, monkeypatch) as gate, company(served, gate, guilty) as answers:
        pass
    problem(answers[GUILTY].result(), 422, "non_finite_logits")
    neighbours_are_right(answers, alone)
    assert {batch_of(answers[n].result()) for n in range(COMPANY) if n != GUILTY} == {COMPANY}
    assert gate.batches == [1, COMPANY]  # nothing ran twice


@pytest.mark.parametrize("label", FAILURES)
def test_a_job_that_raises_fails_alone(
    served: Served, alone: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    guilty = body(GUILTY, label=label)
    # Not to the console, which takes seconds to draw the tracebacks.
    with capture_logs(), held(served, monkeypatch) as gate:
        with company(served, gate, guilty) as answers:
            pass
        wait_until(lambda: len(gate.batches) == 11)
    status, code = FAILURES[label][1].split()
    problem(answers[GUILTY].result(), int(status), code)
    neighbours_are_right(answers, alone)
    # The first one, all, halves until the guilty is alone, and the known job, which came out right.
    assert gate.batches[:2] == [1, COMPANY]
    assert sorted(gate.batches[2:]) == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert served.engine.is_ready()


def test_who_hangs_up_while_waiting_is_dropped_and_counted(
    served: Served, alone: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dropped("cancelled")
    with held(served, monkeypatch) as gate, ThreadPoolExecutor() as pool:
        gone = pool.submit(send, served, body(GUILTY), timeout_s=0.2)
        assert isinstance(gone.exception(), httpx.ReadTimeout)
        wait_until(lambda: served.engine.queue_depth().requests == 1)
        answers = {n: pool.submit(send, served, body(n)) for n in (1, 2, 3)}
        wait_until(lambda: served.engine.queue_depth().requests == 1 + len(answers))
        gate.opened.set()
    for number, answer in answers.items():
        assert bits(answer.result()) == alone[number]
    assert gate.batches == [1, len(answers)]
    assert dropped("cancelled") == before + 1


def test_who_hangs_up_while_computed_changes_nothing_for_the_others(
    served: Served, alone: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(served, monkeypatch) as gate, ThreadPoolExecutor() as pool:
        gone = pool.submit(send, served, body(GUILTY), timeout_s=1.0)
        answers = {n: pool.submit(send, served, body(n)) for n in (1, 2, 3)}
        wait_until(lambda: served.engine.queue_depth().requests == 1 + len(answers))
        one_more = threading.Event()
        then = gate.then

        def wait_for_the_caller_to_go(jobs: Sequence[AnyJob], *rest: Any) -> Any:
            if len(jobs) > 1:
                assert one_more.wait(30)
            return then(jobs, *rest)

        gate.then = wait_for_the_caller_to_go
        gate.opened.set()
        wait_until(lambda: gate.batches == [1, 1 + len(answers)])
        assert isinstance(gone.exception(), httpx.ReadTimeout)
        one_more.set()
    for number, answer in answers.items():
        assert bits(answer.result()) == alone[number]


@pytest.mark.parametrize("where", ["queue", "compute"])
def test_a_deadline_is_kept_while_the_engine_is_busy(
    served: Served,
    alone: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    before = dropped("deadline")
    gate = Gate()
    monkeypatch.setattr("lossd.engine.evaluate", gate)
    with ThreadPoolExecutor() as pool:
        try:
            hurried = body(GUILTY, timeout_ms=200)
            first = pool.submit(send, served, hurried if where == "compute" else body(1))
            wait_until(lambda: gate.batches == [1])
            if where == "compute":
                late = first
                patient = pool.submit(send, served, body(1))
            else:
                late = pool.submit(send, served, hurried)
                patient = first
            problem(late.result(), 504, "deadline_exceeded")
            assert not gate.opened.is_set()  # it was answered while the engine was still busy
            assert not patient.done()
        finally:
            gate.opened.set()
    assert bits(patient.result()) == alone[1]
    wait_until(lambda: served.engine.queue_depth().requests == 0)
    if where == "queue":
        assert gate.batches == [1]
        wait_until(lambda: dropped("deadline") == before + 1)


def wild_label(inputs: dict[str, Array]) -> None:
    inputs["target"][0, 2, 4] = 3


def wrong_size(inputs: dict[str, Array]) -> None:
    inputs["target"] = inputs["target"][:, 1:]


@pytest.mark.parametrize(
    ("spoil", "code"), [(wild_label, "label_out_of_range"), (wrong_size, "invalid_input")]
)
def test_what_can_be_seen_to_be_wrong_is_refused_before_the_queue(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, Array]], None],
    code: str,
) -> None:
    with held(served, monkeypatch) as gate:
        problem(send(served, body(GUILTY, spoil=spoil)), 422, code)
        assert served.engine.queue_depth().requests == 0
    assert gate.batches == [1]


def test_a_connection_that_is_made_while_the_service_leaves_does_not_hold_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller goes on asking; a connection that is kept alive would be served to the end."""
    shut_down, begin = uvicorn.Server.shutdown, HttpProtocol.__init__
    begun: list[HttpProtocol] = []
    made: list[socket.socket] = []

    def note(protocol: HttpProtocol, *arguments: Any, **more: Any) -> None:
        begin(protocol, *arguments, **more)
        begun.append(protocol)

    with serving(cache_dir=tmp_path, drain_s=20) as leaving:
        address = leaving.client.base_url.host, leaving.client.base_url.port or 0

        async def connect_first(server: uvicorn.Server, sockets: Any = None) -> None:
            made.append(socket.create_connection(address))
            while not begun:  # noqa: ASYNC110 - not an event: the order in the loop matters
                await asyncio.sleep(0)
            assert not server.server_state.connections  # it will be there a moment later
            await shut_down(server, sockets)

        monkeypatch.setattr(HttpProtocol, "__init__", note)
        monkeypatch.setattr(uvicorn.Server, "shutdown", connect_first)
        leaving.server.should_exit = True
        wait_until(lambda: made)
        answered = 0
        with made[0] as connection, contextlib.suppress(ConnectionError):
            connection.settimeout(10)
            while answered < 200:
                connection.sendall(b"GET /v1/limits HTTP/1.1\r\nHost: a\r\n\r\n")
                if not connection.recv(65536):
                    break
                answered += 1
                time.sleep(0.02)
        assert answered < 200
