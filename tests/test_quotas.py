"""What callers may use: buckets, what is charged when, what a refusal says, what is let go of."""

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from lossd import app
from lossd.callers import ANONYMOUS, Allowance, Caller
from lossd.core.evaluation import evaluate
from lossd.keys import add_key, limit_key
from lossd.metering import WORK, rate_limit_headers
from lossd.quotas import Quota, Quotas, Standing, TokenBucket, Usage
from lossd.settings import Settings
from lossd_client import Client
from lossd_client.errors import QuotaExceededError, TooLargeError
from lossd_client.wire import JSON
from service_fixture import (
    Answer,
    Json,
    Served,
    problem,
    serving,
    tensor,
    wait_until,
)

MIB = 1 << 20


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def usage_of(clock: Clock, **allowed: Any) -> Usage:
    return Quotas(Allowance(**allowed), clock).usage(ANONYMOUS)


def left(usage: Usage) -> dict[str, int]:
    return {standing.quota: standing.left for standing in usage.standings()}


# -- buckets --------------------------------------------------------------------------------------

LIMITS = st.integers(1, 10_000)
STEPS = st.lists(
    st.tuples(st.floats(0, 200), st.floats(0, 1.2), st.sampled_from(["take", "give back"])),
    max_size=40,
)


@given(LIMITS, STEPS)
def test_no_time_sees_more_than_the_limit_times_one_plus_its_minutes(
    limit: int, steps: list[tuple[float, float, str]]
) -> None:
    bucket, now_s, used = TokenBucket(limit, 0.0), 0.0, [(0.0, 0.0)]
    for pause_s, share, action in steps:
        now_s += pause_s
        units = share * limit
        if action == "give back":
            bucket.take(-units, now_s)
            used.append((now_s, -units))
        elif bucket.wait_s(units, now_s) == 0:
            bucket.take(units, now_s)
            used.append((now_s, units))
    for first, last in itertools.combinations_with_replacement(range(len(used)), 2):
        minutes = (used[last][0] - used[first][0]) / 60
        total = sum(units for _, units in used[first : last + 1])
        assert total <= limit * (1 + minutes) * (1 + 1e-6)


@given(LIMITS, STEPS, st.floats(0, 1))
def test_whoever_waits_as_long_as_told_is_let_in_and_not_much_sooner(
    limit: int, steps: list[tuple[float, float, str]], share: float
) -> None:
    bucket, now_s = TokenBucket(limit, 1e6), 1e6
    for pause_s, taken, _ in steps:
        now_s += pause_s
        bucket.take(taken * limit, now_s)  # whether it is there or not
    wait_s = bucket.wait_s(share * limit, now_s)
    if wait_s > 1e-3:
        assert bucket.wait_s(share * limit, now_s + 0.999 * wait_s) > 0
    assert bucket.wait_s(share * limit, now_s + wait_s) == 0


@given(LIMITS, LIMITS, st.floats(-3, 1))
def test_another_limit_keeps_what_is_full_and_how_long_a_debt_lasts(
    limit: int, other: int, filling: float
) -> None:
    bucket = TokenBucket(limit, 0.0)
    bucket.take(limit * (1 - filling), 0.0)
    before_s = bucket.wait_s(limit, 0.0)
    bucket.resize(other, 0.0)
    assert bucket.left(0.0) == pytest.approx(filling * other, abs=1e-6 * other)
    assert bucket.wait_s(other, 0.0) == pytest.approx(before_s, abs=1e-6)


# -- what one caller has used ---------------------------------------------------------------------


def test_a_refused_request_is_charged_nothing() -> None:
    usage = usage_of(Clock(), requests_per_minute=3, mib_per_minute=1, concurrent_requests=9)
    usage.let_in(MIB)
    before = left(usage)
    assert before == {"requests": 2, "bytes": 0, "concurrency": 8}
    with pytest.raises(QuotaExceededError):
        usage.let_in(1)
    with pytest.raises(TooLargeError):
        usage.let_in(MIB + 1)
    assert left(usage) == before


def test_the_longest_of_several_waits_is_told() -> None:
    clock = Clock()
    usage = usage_of(clock, requests_per_minute=1, mib_per_minute=1)
    usage.let_in(MIB // 2)
    clock.now_s += 15.0
    with pytest.raises(
        QuotaExceededError, match="requests: 1 a minute, 0 left, 1 wanted"
    ) as caught:
        usage.let_in(MIB)
    assert caught.value.retry_after_s == pytest.approx(45.0)
    usage = usage_of(clock, requests_per_minute=2, mib_per_minute=1)
    usage.let_in(MIB // 2)
    with pytest.raises(
        QuotaExceededError, match="bytes: 1048576 a minute, 524288 left, 1048576"
    ) as caught:
        usage.let_in(MIB)
    assert caught.value.retry_after_s == pytest.approx(30.0)


def test_bytes_that_never_came_are_given_back_at_the_end() -> None:
    usage = usage_of(Clock(), mib_per_minute=1)
    work = usage.let_in(MIB)
    work.receive_bytes(1000)
    assert left(usage) == {"bytes": 0}
    work.end()
    assert left(usage) == {"bytes": MIB - 1000}


def test_what_was_not_done_costs_only_the_bytes_that_came() -> None:
    usage = usage_of(Clock(), requests_per_minute=9, samples_per_minute=9, mib_per_minute=1)
    work = usage.let_in(1000)
    work.receive_bytes(1000)
    work.charge_samples(5)
    assert left(usage) == {"requests": 8, "samples": 4, "bytes": MIB - 1000}
    work.give_back()
    work.end()
    assert left(usage) == {"requests": 9, "samples": 9, "bytes": MIB - 1000}


def test_a_body_of_unknown_length_is_charged_as_it_comes_and_what_it_owes_is_waited_for() -> None:
    clock = Clock()
    usage = usage_of(clock, mib_per_minute=1)
    first, second = usage.let_in(None), usage.let_in(None)
    first.receive_bytes(MIB)
    second.receive_bytes(MIB)
    for work in (first, second):
        work.end()
    with pytest.raises(QuotaExceededError) as caught:
        usage.let_in(None)
    assert caught.value.retry_after_s == pytest.approx(60.0)
    clock.now_s += 60.0
    third = usage.let_in(None)
    with pytest.raises(TooLargeError, match=f"bytes: {MIB} a minute, {MIB + 1} in this request"):
        third.receive_bytes(MIB + 1)


def test_no_number_of_bodies_of_unknown_length_owes_more_than_a_minute() -> None:
    usage = usage_of(Clock(), mib_per_minute=1)
    works = [usage.let_in(None) for _ in range(4)]
    for work in works[:2]:
        work.receive_bytes(MIB)
    with pytest.raises(QuotaExceededError) as caught:
        works[2].receive_bytes(1)
    assert caught.value.retry_after_s == pytest.approx(60.0, abs=0.01)


def test_a_time_to_come_back_to_a_full_house_is_that_of_the_next_end() -> None:
    clock = Clock()
    usage = usage_of(clock, concurrent_requests=2)

    def wait_s() -> float:
        with pytest.raises(QuotaExceededError, match="2 requests at a time") as caught:
            usage.let_in(0)
        assert caught.value.retry_after_s
        return caught.value.retry_after_s

    first = usage.let_in(0)
    second = usage.let_in(0)
    assert 0 < wait_s() < 0.1  # nothing is known of either
    clock.now_s += 8.0
    assert wait_s() == pytest.approx(4.0)  # both take 8 s, as far as is known
    first.end()
    third = usage.let_in(0)
    assert wait_s() == pytest.approx(4.0)  # the second is overdue, one of two ends every 4 s
    second.end()
    usage.let_in(0)
    clock.now_s += 2.0
    assert wait_s() == pytest.approx(6.0)  # the third is 2 s old
    third.end()
    usage.let_in(0)


def test_limits_that_change_count_for_what_runs() -> None:
    clock = Clock()
    callers = Quotas(Allowance(requests_per_minute=10, concurrent_requests=8), clock)

    def told(**allowed: Any) -> dict[str, int]:
        return left(callers.usage(Caller(name="a", allowance=Allowance(**allowed))))

    usage = callers.usage(Caller(name="a"))
    works = [usage.let_in(0) for _ in range(5)]
    assert left(usage) == {"requests": 5, "concurrency": 3}
    assert told(requests_per_minute=100) == {"requests": 50, "concurrency": 3}
    assert told(concurrent_requests=4, samples_per_minute=7) == {
        "requests": 5,
        "samples": 7,
        "concurrency": 0,
    }
    works[0].charge_samples(3)
    for work in works:
        work.give_back()
        work.end()
    assert told() == {"requests": 10, "concurrency": 8}


def test_callers_share_nothing_and_are_forgotten_when_they_are_as_new() -> None:
    clock = Clock()
    callers = Quotas(Allowance(requests_per_minute=2, concurrent_requests=2), clock)
    names = [f"n{number}" for number in range(100)]
    works = [callers.usage(Caller(name=name)).let_in(0) for name in names]
    busy = works.pop()
    for work in works:
        work.end()
    assert [left(callers.usage(Caller(name=name)))["requests"] for name in names] == [1] * 100
    clock.now_s += 61.0
    callers.usage(Caller(name="other"))
    assert set(callers.__dict__["_usages"]) == {"n99", "other"}
    busy.end()
    clock.now_s += 61.0
    callers.usage(Caller(name="other"))
    assert set(callers.__dict__["_usages"]) == {"other"}


@given(st.data())
def test_whatever_requests_do_all_comes_back_and_no_more_are_in_progress(
    data: st.DataObject,
) -> None:
    clock = Clock()
    usage = usage_of(
        clock,
        requests_per_minute=10,
        samples_per_minute=10,
        mib_per_minute=1,
        concurrent_requests=3,
    )
    full, works = left(usage), []
    for _ in range(data.draw(st.integers(0, 30))):
        clock.now_s += data.draw(st.floats(0, 5))
        act = data.draw(st.sampled_from(["let in", "receive", "charge", "give back", "end"]))
        with contextlib.suppress(QuotaExceededError, TooLargeError):
            if act == "let in":
                works.append(usage.let_in(data.draw(st.none() | st.integers(0, 2 * MIB))))
            elif works:
                work = works[data.draw(st.integers(0, len(works) - 1))]
                if act == "receive":
                    work.receive_bytes(data.draw(st.integers(0, MIB)))
                elif act == "charge":
                    work.charge_samples(data.draw(st.integers(0, 12)))
                elif act == "give back":
                    work.give_back()
                else:
                    works.remove(work)
                    work.end()
        assert len(works) <= 3
        assert left(usage)["concurrency"] == 3 - len(works)
        assert all(0 <= units <= full[quota] for quota, units in left(usage).items())
    for work in works:
        work.end()
    clock.now_s += 3600.0
    assert left(usage) == full
    assert usage.is_as_new()


def test_there_are_limits_without_being_asked_only_where_there_are_keys(tmp_path: Path) -> None:
    assert Settings().default_allowance() == Allowance()
    keyed = Settings(keys_file=tmp_path, key_requests_per_minute=7)
    assert keyed.default_allowance() == Allowance(requests_per_minute=7, concurrent_requests=128)
    chosen = Settings(keys_file=tmp_path, key_concurrent_requests=3)
    assert chosen.default_allowance() == Allowance(concurrent_requests=3)


def test_the_pages_say_what_the_code_does() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "http.md").read_text(encoding="utf-8")
    for quota in get_args(Quota):
        assert f"\n| `{quota}` | " in page
    for method, path in WORK:
        assert f"`{method} {path}`" in page.partition("## Quotas")[2]
    standings = [Standing("requests", 100, 50, 30.0), Standing("bytes", MIB, 1048000, 0.1)]
    for name, value in rate_limit_headers(standings):
        assert f"\n{name.decode()}: {value.decode()}\n".lower() in page.lower()
    limit = Settings(keys_file=docs).default_allowance().concurrent_requests
    said = Settings.model_fields["key_concurrent_requests"].description or ""
    assert f"{limit} if not given" in said
    operations = (docs / "operations.md").read_text(encoding="utf-8")
    assert f"a key may have {limit} requests in progress" in " ".join(operations.split())


@pytest.mark.parametrize(
    ("standings", "retry_after_s", "policy", "limit"),
    [
        ([], None, None, None),
        (
            [Standing("bytes", MIB, 5, 0.2), Standing("concurrency", 4, 3, None)],
            None,
            '"bytes";q=1048576;qu="content-bytes";w=60, "concurrency";q=4;qu="concurrent-requests"',
            '"bytes";r=5;t=1, "concurrency";r=3',
        ),
        (
            [Standing("samples", 100, 0, 60.0)],
            7,
            '"samples";q=100;qu="samples";w=60',
            '"samples";r=0;t=7',
        ),
    ],
)
def test_the_fields_are_those_of_the_draft(
    standings: Sequence[Standing], retry_after_s: int | None, policy: str | None, limit: str | None
) -> None:
    fields = dict(rate_limit_headers(standings, retry_after_s))
    told = {name.decode(): value.decode() for name, value in fields.items()}
    assert told.get("ratelimit-policy") == policy
    assert told.get("ratelimit") == limit


# -- the service ----------------------------------------------------------------------------------

ALLOWED: dict[str, dict[str, Any]] = {
    "free": {},
    "few": {"requests_per_minute": 3},
    "head": {"requests_per_minute": 1},
    "large": {"mib_per_minute": 1},
    "chunked": {"mib_per_minute": 1},
    "samples": {"samples_per_minute": 4, "requests_per_minute": 60},
    "failing": {"samples_per_minute": 4, "requests_per_minute": 60, "mib_per_minute": 1},
    "narrow": {"concurrent_requests": 2},
    "hot": {"requests_per_minute": 1},
    "keeper": {"requests_per_minute": 1, "mib_per_minute": 1},
    "patient": {"samples_per_minute": 240},
}


class Door:
    """A service whose callers have quotas, and a clock that only the tests advance."""

    def __init__(self, served: Served, clock: Clock, keys: dict[str, str], keys_file: Path) -> None:
        self.served, self.clock, self.keys, self.keys_file = served, clock, keys, keys_file

    def headers(self, name: str) -> dict[str, str]:
        return {"X-API-Key": self.keys[name]}

    def evaluate(self, name: str, document: Json, **more: str) -> Answer:
        return self.served.client.evaluate(document, headers=self.headers(name) | more)

    def quotas(self, name: str) -> Json:
        answer = self.served.client.get("/v1/limits", headers=self.headers(name))
        found: Json = answer.json()["quotas"]
        return found

    def left(self, name: str) -> dict[str, int]:
        return {quota: told["left"] for quota, told in self.quotas(name).items()}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder, clock = tmp_path_factory.mktemp("quotas"), Clock()
    path = folder / "keys"
    keys = {name: add_key(path, name, Allowance(**allowed)) for name, allowed in ALLOWED.items()}
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "Quotas", lambda defaults: Quotas(defaults, clock))
            running = stack.enter_context(serving(keys_file=path, cache_dir=folder))
        yield Door(running, clock, keys, path)


def request(samples: int = 1, **more: Any) -> Json:
    inputs = {
        "logits": tensor(np.zeros((samples, 2, 2, 2), np.float32)),
        "target": tensor(np.zeros((samples, 2, 2), np.uint8)),
    }
    return {"losses": ["dice"], "inputs": inputs, **more}


def refusals(quota: str, key: str) -> float:
    labels = {"quota": quota, "key": key}
    return REGISTRY.get_sample_value("lossd_quota_refusals_total", labels) or 0.0


def test_every_answer_to_work_says_what_is_left(door: Door) -> None:
    before = refusals("requests", "few")
    good = door.evaluate("few", request())
    assert good.status_code == 200
    assert good.headers["ratelimit-policy"] == (
        '"requests";q=3;w=60, "concurrency";q=128;qu="concurrent-requests"'
    )
    assert good.headers["ratelimit"] == '"requests";r=2;t=20, "concurrency";r=127'
    bad = door.evaluate("few", request(task="many"))
    assert bad.status_code == 422
    assert bad.headers["ratelimit"] == '"requests";r=1;t=40, "concurrency";r=127'
    door.evaluate("few", request()).raise_for_status()
    door.clock.now_s += 1.5
    refused = door.evaluate("few", request())
    told = problem(refused, 429, "quota_exceeded")
    assert told["detail"] == "requests: 3 a minute, 0 left, 1 wanted; try again in 18.5 s"
    assert refused.headers["retry-after"] == "19"
    # The window does not end after the time to come back, and the request is not in progress.
    assert refused.headers["ratelimit"] == '"requests";r=0;t=19, "concurrency";r=128'
    assert refusals("requests", "few") == before + 1
    door.clock.now_s += 18.4
    assert door.evaluate("few", request()).status_code == 429
    door.clock.now_s += 0.1
    assert door.evaluate("few", request()).status_code == 200
    assert door.evaluate("free", request()).headers["ratelimit"] == '"concurrency";r=127'


@pytest.mark.parametrize("path", ["/v1/limits", "/v1/losses", "/health/ready", "/v1/nowhere"])
def test_what_is_no_work_is_neither_charged_nor_told(door: Door, path: str) -> None:
    before = door.left("few")
    answer = door.served.client.get(path, headers=door.headers("few"))
    assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)
    assert door.left("few") == before


def test_to_keep_a_tensor_is_work_and_to_fetch_it_is_none(door: Door) -> None:
    client, headers = door.served.client, door.headers("keeper")
    kept = client.put("/v1/tensors", json=tensor(np.zeros(9, np.float32)), headers=headers)
    assert kept.status_code == 201
    sent = int(kept.request.headers["content-length"])
    assert door.left("keeper") == {"requests": 0, "bytes": MIB - sent, "concurrency": 128}
    ref = kept.json()["ref"]
    assert client.get(f"/v1/tensors/{ref}", headers=headers).status_code == 200
    again = client.put("/v1/tensors", json=tensor(np.zeros(9, np.float32)), headers=headers)
    problem(again, 429, "quota_exceeded")


def test_limits_tell_the_callers_own_quotas(door: Door) -> None:
    assert door.quotas("patient") == {
        "samples": {"limit": 240, "left": 240, "window_s": 60, "full_in_s": 0.0},
        "concurrency": {"limit": 128, "left": 128},
    }
    with Client(str(door.served.client.base_url), api_key=door.keys["patient"]) as client:
        assert client.limits()["quotas"] == door.quotas("patient")


def test_a_service_without_keys_and_limits_tells_none(served: Served) -> None:
    assert served.client.get("/v1/limits").json()["quotas"] == {}
    assert "ratelimit" not in served.client.evaluate(request()).headers


@contextmanager
def connection(door: Door) -> Iterator[socket.socket]:
    address = door.served.client.base_url
    with socket.create_connection((address.host, address.port or 0), timeout=10) as made:
        yield made


def head(door: Door, name: str, framing: str) -> bytes:
    lines = [
        "POST /v1/evaluate HTTP/1.1",
        "Host: a",
        f"X-API-Key: {door.keys[name]}",
        f"Content-Type: {JSON}",
        framing,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_refused_body_is_not_waited_for(door: Door) -> None:
    door.evaluate("head", request()).raise_for_status()
    with connection(door) as made:
        made.sendall(head(door, "head", "Content-Length: 1000"))  # and nothing of the body
        answer = b"".join(iter(lambda: made.recv(65536), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 429")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()


def test_a_body_beyond_the_whole_quota_is_told_so_and_not_to_wait(door: Door) -> None:
    before = door.left("large")
    with connection(door) as made:
        made.sendall(head(door, "large", f"Content-Length: {MIB + 1}"))
        answer = b"".join(iter(lambda: made.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"bytes: 1048576 a minute, 1048577 in this request, which will never" in answer
    assert b"retry-after" not in answer.lower()
    assert door.left("large") == before
    # Nor is a longer one, which is refused for its length whatever the quota.
    with connection(door) as made:
        made.sendall(head(door, "large", f"Content-Length: {1 << 60}"))
        answer = b"".join(iter(lambda: made.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"the body is larger than" in answer
    wait_until(lambda: door.left("large") == before)


def test_a_body_that_ends_early_costs_what_came_of_it(door: Door) -> None:
    with connection(door) as made:
        made.sendall(head(door, "large", "Content-Length: 1000000") + b"{" * 1000)
        wait_until(lambda: door.left("large") == {"bytes": MIB - 1000000, "concurrency": 127})
    wait_until(lambda: door.left("large") == {"bytes": MIB - 1000, "concurrency": 128})


def test_a_chunked_body_is_charged_as_it_comes(door: Door) -> None:
    def chunked(nbytes: int) -> Answer:
        body = (b" " * min(65536, nbytes - start) for start in range(0, nbytes, 65536))
        headers = door.headers("chunked") | {"Content-Type": JSON}
        return door.served.client.post("/v1/evaluate", content=body, headers=headers)

    problem(chunked(MIB - 5), 400, "malformed_body")
    assert door.left("chunked")["bytes"] == 5
    problem(chunked(MIB), 400, "malformed_body")
    refused = chunked(10)
    problem(refused, 429, "quota_exceeded")
    assert refused.headers["retry-after"] == "60"
    door.clock.now_s += 120.0
    too_large = problem(chunked(2 * MIB), 413, "too_large")
    assert "in this request, which will never be let in" in too_large["detail"]


def test_samples_are_charged_before_they_wait_and_a_refusal_costs_no_request(door: Door) -> None:
    door.evaluate("samples", request(3)).raise_for_status()
    refused = door.evaluate("samples", request(2))
    assert (
        "samples: 4 a minute, 1 left, 2 wanted; try again in 15 s"
        in problem(refused, 429, "quota_exceeded")["detail"]
    )
    assert refused.headers["retry-after"] == "15"
    assert "connection" not in refused.headers  # its body has been read
    never = problem(door.evaluate("samples", request(5)), 413, "too_large")
    assert "samples: 4 a minute, 5 in this request" in never["detail"]
    # A request that can never be let in was let in as far as its samples; a refused one was not.
    assert door.left("samples") == {"requests": 58, "samples": 1, "concurrency": 128}
    door.clock.now_s += 15.0
    door.evaluate("samples", request(2)).raise_for_status()


def test_what_is_wrong_costs_a_request_and_its_bytes_and_no_samples(door: Door) -> None:
    wrong = request(2, preset="none such")
    answer = door.evaluate("failing", wrong)
    assert answer.status_code == 422
    sent = int(answer.request.headers["content-length"])
    assert door.left("failing") == {
        "requests": 59,
        "samples": 4,
        "bytes": MIB - sent,
        "concurrency": 128,
    }


class Gate:
    """Holds the engine inside a batch until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(20)
        return evaluate(*arguments, **more)


def slots(door: Door) -> int:
    return door.left("narrow")["concurrency"]


@contextmanager
def one_is_computed(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of the two that may be in progress is, until the end; its answer is good."""
    gate = Gate(monkeypatch)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(door.evaluate("narrow", request())))
    thread.start()
    try:
        assert gate.entered.wait(10)
        assert slots(door) == 1
        yield
    finally:
        gate.opened.set()
        thread.join()
    assert answers[0].status_code == 200
    wait_until(lambda: slots(door) == 2)


@pytest.mark.parametrize(
    ("document", "status"),
    [(request(), 200), (request(task="many"), 422), (request(timeout_ms=1e-3), 504)],
)
def test_whoever_is_answered_is_not_in_progress(door: Door, document: Json, status: int) -> None:
    assert door.evaluate("narrow", document).status_code == status
    wait_until(lambda: slots(door) == 2)


def test_a_full_house_is_told_and_whoever_leaves_it_makes_room(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_is_computed(door, monkeypatch):
        with connection(door) as slow:
            slow.sendall(head(door, "narrow", "Content-Length: 1000"))
            wait_until(lambda: slots(door) == 0)
            refused = door.evaluate("narrow", request())
            told = problem(refused, 429, "quota_exceeded")
            assert "concurrency: 2 requests at a time, which are in progress" in told["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["ratelimit"] == '"concurrency";r=0'
        wait_until(lambda: slots(door) == 1)
        assert door.evaluate("narrow", request(timeout_ms=50)).status_code == 504
        wait_until(lambda: slots(door) == 1)


def test_whoever_hangs_up_while_it_waits_is_not_in_progress(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(request()).encode()
    with one_is_computed(door, monkeypatch):
        with connection(door) as gone:
            gone.sendall(head(door, "narrow", f"Content-Length: {len(body)}") + body)
            wait_until(lambda: door.served.engine.queue_depth().requests == 1)
            assert slots(door) == 0
        wait_until(lambda: slots(door) == 1)


def test_what_the_file_says_counts_without_a_restart(door: Door) -> None:
    def status() -> int:
        return door.evaluate("hot", request()).status_code

    assert [status(), status()] == [200, 429]
    limit_key(door.keys_file, "hot", lambda _: Allowance(requests_per_minute=100_000))
    door.clock.now_s += 1.0  # 1/60 of what it may now use
    wait_until(lambda: status() == 200)
    assert door.quotas("hot")["requests"]["limit"] == 100_000
    limit_key(door.keys_file, "hot", lambda _: Allowance())
    wait_until(lambda: "requests" not in door.quotas("hot"))


def test_the_client_waits_as_long_as_it_is_told_and_then_succeeds(door: Door) -> None:
    url, key = str(door.served.client.base_url), door.keys["patient"]
    logits, target = np.zeros((237, 2, 2, 2), np.float32), np.zeros((237, 2, 2), np.uint8)
    before = refusals("samples", "patient")

    def pass_time() -> None:
        wait_until(lambda: refusals("samples", "patient") == before + 1)
        door.clock.now_s += 1.0

    with Client(url, api_key=key, timeout_s=60) as client:
        client.evaluate("dice", logits=logits, target=target)
        thread = threading.Thread(target=pass_time)
        thread.start()
        started_s = time.monotonic()
        result = client.evaluate("dice", logits=logits[:7], target=target[:7])
        assert time.monotonic() - started_s >= 1.0
        thread.join()
    assert result["dice"].shape == (7,)
    assert refusals("samples", "patient") == before + 1
    with Client(url, api_key=key, retries=0) as client, pytest.raises(QuotaExceededError) as caught:
        client.evaluate("dice", logits=logits[:100], target=target[:100])
    assert caught.value.retry_after_s == 25.0
