"""Many requests: in order, bounded, with their errors in the right place."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from fake_lossd import URL, FakeLossd, FakeTransport, Seen, problem
from lossd_client import AsyncClient, Client, Result, errors, losses


def request(value: float) -> dict[str, Any]:
    return {"logits": np.full((1, 1, 2, 2), value, np.float32)}


def counted(count: int, pulled: list[int]) -> Iterator[dict[str, Any]]:
    for index in range(count):
        pulled.append(index)
        yield request(index)


def value(result: Result | Exception) -> float:
    assert isinstance(result, Result)
    return float(result.total[0])


class Crowd:
    """Answers the later the earlier a request came, and knows how many were inside at once."""

    def __init__(self) -> None:
        self.fake = FakeLossd()
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()

    def handle(self, incoming: Seen) -> httpx.Response:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.02 if len(self.fake.seen) % 2 else 0.001)
        with self._lock:
            self.inside -= 1
            return self.fake.answer(incoming)


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture
def client(crowd: Crowd) -> Iterator[Client]:
    with Client(URL, transport=FakeTransport(crowd.handle)) as client:
        yield client


def async_client(crowd: Crowd) -> AsyncClient:
    return AsyncClient(URL, transport=FakeTransport(crowd.handle))


def test_order_is_kept_and_concurrency_bounded(client: Client, crowd: Crowd) -> None:
    requests = counted(20, [])
    results = client.evaluate_many(requests, losses="dice", concurrency=3, progress="none")
    assert [value(each) for each in results] == list(range(20))
    assert 2 <= crowd.most_inside <= 3


def test_order_is_kept_and_concurrency_bounded_async(crowd: Crowd) -> None:
    async def run() -> list[float]:
        async with async_client(crowd) as client:
            results = client.evaluate_many(
                counted(20, []), losses="dice", concurrency=3, progress="none"
            )
            return [value(each) async for each in results]

    assert asyncio.run(run()) == list(range(20))
    assert 2 <= crowd.most_inside <= 3


def test_no_more_is_read_than_will_soon_be_sent(client: Client) -> None:
    pulled: list[int] = []
    results = client.evaluate_many(
        counted(100, pulled), losses="dice", concurrency=2, progress="none"
    )
    assert pulled == []
    for taken in range(1, 6):
        next(results)
        assert len(pulled) <= taken + 3


def test_no_more_is_read_than_will_soon_be_sent_async(crowd: Crowd) -> None:
    pulled: list[int] = []

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for each in counted(100, pulled):
            yield each
            await asyncio.sleep(0)

    async def run() -> None:
        async with async_client(crowd) as client:
            results = client.evaluate_many(
                requests(), losses="dice", concurrency=2, progress="none"
            )
            for taken in range(1, 6):
                await anext(results)
                assert len(pulled) <= taken + 3
            await results.aclose()

    asyncio.run(run())
    assert len(crowd.fake.seen) <= len(pulled)


def test_an_item_overrides_what_is_common(client: Client, crowd: Crowd) -> None:
    items = [request(1), request(2) | {"losses": losses.Focal(), "task": "multilabel"}]
    results = client.evaluate_many(items, losses="dice", task="binary", progress="none")
    assert [list(each.losses) for each in results] == [["dice"], ["focal"]]
    tasks = {seen.document["losses"][0]["name"]: seen.document["task"] for seen in crowd.fake.seen}
    assert tasks == {"dice": "binary", "focal": "multilabel"}


BAD: dict[str, Any] = {"logits": np.zeros(1, np.uint32)}


def test_a_failed_item_raises_when_reached(client: Client) -> None:
    results = client.evaluate_many([request(0), request(1), BAD], losses="dice", progress="none")
    assert [value(next(results)), value(next(results))] == [0, 1]
    with pytest.raises(TypeError, match="logits"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_failed_item_raises_when_reached_async(crowd: Crowd) -> None:
    async def run() -> None:
        async with async_client(crowd) as client:
            items = [request(0), BAD, request(1)]
            results = client.evaluate_many(items, losses="dice", progress="none")
            assert value(await anext(results)) == 0
            with pytest.raises(TypeError, match="logits"):
                await anext(results)

    asyncio.run(run())


def test_errors_can_take_the_place_of_results(client: Client, crowd: Crowd) -> None:
    crowd.fake.script.append(problem(422, "invalid_input"))
    items = [request(0), BAD, {}, request(3)]
    found = list(
        client.evaluate_many(
            items, losses="dice", concurrency=1, progress="none", on_error="return"
        )
    )
    assert [type(each) for each in found] == [
        errors.InvalidInputError,
        TypeError,
        ValueError,
        Result,
    ]


def test_errors_can_take_the_place_of_results_async(crowd: Crowd) -> None:
    async def run() -> list[Result | Exception]:
        async with async_client(crowd) as client:
            items = [request(0), BAD, request(2)]
            results = client.evaluate_many(items, losses="dice", progress="none", on_error="return")
            return [each async for each in results]

    assert [type(each) for each in asyncio.run(run())] == [Result, TypeError, Result]


def test_leaving_the_loop_drops_what_was_not_sent(client: Client, crowd: Crowd) -> None:
    results = client.evaluate_many(counted(100, []), losses="dice", concurrency=2, progress="none")
    next(results)
    results.close()
    assert len(crowd.fake.seen) <= 4


def test_an_iterable_that_fails_fails_the_iteration(client: Client) -> None:
    def requests() -> Iterator[dict[str, Any]]:
        yield request(0)
        raise OSError("no such image")

    with pytest.raises(OSError, match="no such image"):
        list(client.evaluate_many(requests(), losses="dice", progress="none"))


def test_nothing_gives_nothing(client: Client) -> None:
    assert list(client.evaluate_many([], losses="dice", progress="none")) == []


def test_the_bar_counts_and_shows_the_rate(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(list(client.evaluate_many([request(0)] * 5, losses="dice"))) == 5
    assert "5/5" in capfd.readouterr().err
    list(client.evaluate_many(iter([request(0)] * 5), losses="dice"))
    assert "requests/s" in capfd.readouterr().err
    list(client.evaluate_many([request(0)], losses="dice", progress="none"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"progress": "loud"}, {"on_error": "ignore"}]
)
def test_options_without_meaning_are_refused_at_once(
    client: Client, crowd: Crowd, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        client.evaluate_many([], **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        async_client(crowd).evaluate_many([], **options)
