"""Tensors that the service keeps: put, used, forgotten, uploaded again."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from typing import Any, Literal

import httpx
import numpy as np
import pytest

from fake_lossd import (
    URL,
    FakeLossd,
    FakeTransport,
    Seen,
    kept_response,
    problem,
    unknown_ref,
)
from lossd_client import AsyncClient, Client, TensorRef, errors
from lossd_client.wire import Array, Json

LOGITS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
TARGET = np.zeros((2, 2, 2), np.uint8)
RLE = {"rle": [[{"size": [2, 2], "counts": "04"}], []], "labels": [[1], []], "background": 0}


class Either:
    """A client of either kind, driven by blocking code."""

    def __init__(self, kind: Literal["sync", "async"], fake: FakeLossd) -> None:
        self._runner = asyncio.Runner() if kind == "async" else None
        self._client = (AsyncClient if kind == "async" else Client)(URL, transport=fake.transport())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = vars(type(self._client))[name]

        def call(*arguments: Any, **named: Any) -> Any:
            made = method(self._client, *arguments, **named)
            return made if self._runner is None else self._runner.run(made)

        return call

    def close(self) -> None:
        if self._runner is None:
            self._client.close()
        else:
            self._runner.run(self._client.close())  # type: ignore[arg-type]
            self._runner.close()


@pytest.fixture
def fake() -> FakeLossd:
    return FakeLossd()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fake: FakeLossd) -> Any:
    either = Either(request.param, fake)
    yield either
    either.close()


def paths(fake: FakeLossd) -> list[str]:
    return [f"{seen.method} {seen.path.removeprefix('/v1/')}" for seen in fake.seen]


def test_a_kept_tensor_goes_up_once_and_then_by_its_name(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS)
    for _ in range(3):
        assert client.evaluate("dice", logits=kept, target=TARGET)["dice"].tolist() == [5.5, 17.5]
    assert paths(fake) == ["PUT tensors", *["POST evaluate"] * 3]
    assert fake.seen[0].tensors["tensor"].tolist() == LOGITS.tolist()
    assert list(fake.seen[1].tensors) == ["target"]
    assert fake.seen[1].document["inputs"] == {"logits": {"ref": kept.ref}}


def test_a_ref_says_what_it_stands_for(client: Any) -> None:
    kept = client.put(LOGITS)
    assert (kept.dtype, kept.shape, kept.nbytes) == ("float32", (2, 3, 2, 2), 96)
    assert repr(kept) == f"TensorRef({kept.ref[:8]}…, float32, [2, 3, 2, 2])"
    assert len(kept.ref) == 64
    with pytest.raises(FrozenInstanceError):
        kept.shape = (1,)


def test_what_is_kept_comes_back_and_can_be_deleted(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS)
    assert np.array_equal(client.get(kept), LOGITS)
    assert np.array_equal(client.get(kept.ref), LOGITS)
    client.delete(kept)
    client.delete(kept.ref)  # gone already, which is what is wanted
    with pytest.raises(errors.UnknownRefError, match=r"unknown_ref"):
        client.get(kept)
    assert fake.kept == {}


def test_a_ref_from_outside_is_quoted(client: Any, fake: FakeLossd) -> None:
    client.delete("../losses?a b")
    assert fake.seen[0].path == "/v1/tensors/..%2Flosses%3Fa%20b"
    with pytest.raises(ValueError, match="must not be empty"):
        client.get("")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_forgotten_tensor_is_uploaded_again_once(
    client: Any, fake: FakeLossd, *, restarted: bool
) -> None:
    kept = client.put(LOGITS)
    first = kept.ref
    fake.kept.clear()
    fake.process = "second" if restarted else "first"
    for _ in range(2):
        assert client.evaluate("dice", logits=kept, target=TARGET)["dice"].tolist() == [5.5, 17.5]
    assert paths(fake)[1:] == ["POST evaluate", "PUT tensors", "POST evaluate", "POST evaluate"]
    assert (kept.ref == first) is not restarted


def test_all_forgotten_tensors_of_a_request_are_uploaded_again(
    client: Any, fake: FakeLossd
) -> None:
    kept = [client.put(LOGITS + index) for index in range(3)]
    fake.kept.clear()
    inputs = [{"logits": each, "target": TARGET} for each in kept]
    result = client.evaluate("dice", inputs=inputs)
    assert result["dice"].tolist() == [5.5, 17.5, 6.5, 18.5, 7.5, 19.5]
    assert paths(fake)[3:] == ["POST evaluate", *["PUT tensors"] * 3, "POST evaluate"]


def test_forgotten_tensors_told_one_at_a_time_are_uploaded_again(
    client: Any, fake: FakeLossd
) -> None:
    kept = [client.put(LOGITS + index) for index in range(2)]
    fake.script.extend([unknown_ref(kept[0].ref)])
    del fake.kept[kept[1].ref]
    inputs = [{"logits": each} for each in kept]
    assert len(client.evaluate("dice", inputs=inputs)["dice"]) == 4
    assert [path for path in paths(fake)[2:] if path.startswith("PUT")] == ["PUT tensors"] * 2


def test_a_tensor_is_uploaded_again_for_every_process_that_never_had_it(
    client: Any, fake: FakeLossd
) -> None:
    kept = client.put(LOGITS)
    fake.kept.clear()
    fake.script.extend([unknown_ref(kept.ref), kept_response(kept.ref, LOGITS)])
    fake.script.append(ConnectionRefusedError("gone"))
    assert client.evaluate("dice", logits=kept, target=TARGET)["dice"].tolist() == [5.5, 17.5]
    again = ["POST evaluate", "PUT tensors", "POST evaluate"]
    assert paths(fake)[1:] == [*again, *again]


def test_a_tensor_that_is_forgotten_at_once_again_is_an_error(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS)
    forgotten = unknown_ref(kept.ref)
    fake.script.extend([forgotten, kept_response(kept.ref, LOGITS), forgotten])
    with pytest.raises(errors.UnknownRefError):
        client.evaluate("dice", logits=kept)
    assert paths(fake)[1:] == ["POST evaluate", "PUT tensors", "POST evaluate"]


def test_nothing_is_uploaded_again_for_a_ref_that_is_not_this_clients(
    client: Any, fake: FakeLossd
) -> None:
    kept = client.put(LOGITS)
    with pytest.raises(errors.UnknownRefError):
        client.evaluate("dice", logits=kept, target={"ref": "0" * 64})
    assert paths(fake) == ["PUT tensors", "POST evaluate"]


def test_a_tensor_put_to_keep_nothing_is_not_uploaded_again(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS, keep="nothing")
    assert client.evaluate("dice", logits=kept)["dice"].tolist() == [5.5, 17.5]
    fake.kept.clear()
    with pytest.raises(errors.UnknownRefError):
        client.evaluate("dice", logits=kept)
    assert paths(fake) == ["PUT tensors", "POST evaluate", "POST evaluate"]


def test_a_changed_array_is_not_passed_off_as_the_one_that_was_put(
    client: Any, fake: FakeLossd
) -> None:
    array = LOGITS.copy()
    kept = client.put(array)
    array += 1
    assert client.evaluate("dice", logits=kept)["dice"].tolist() == [5.5, 17.5]
    fake.kept.clear()
    with pytest.raises(ValueError, match="changed after put"):
        client.evaluate("dice", logits=kept)


def test_an_array_that_changes_while_it_is_put_is_not_passed_off_either(fake: FakeLossd) -> None:
    array = LOGITS.copy()

    def respond(seen: Seen) -> httpx.Response:
        array[:] = 0
        return fake.answer(seen)

    with Client(URL, transport=FakeTransport(respond)) as client:
        kept = client.put(array)
        fake.kept.clear()
        with pytest.raises(ValueError, match="changed after put"):
            client.evaluate("dice", logits=kept)


def test_an_upload_that_fails_is_the_calls_error(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS)
    fake.script.extend([unknown_ref(kept.ref), problem(413, "too_large")])
    with pytest.raises(errors.TooLargeError):
        client.evaluate("dice", logits=kept)


def test_uploads_count_as_no_retries(fake: FakeLossd) -> None:
    def respond(seen: Seen) -> httpx.Response:
        if paths(fake).count("POST evaluate") == 1 and seen.path == "/v1/evaluate":
            fake.script.append(problem(503, "draining"))
        return fake.answer(seen)

    with Client(URL, transport=FakeTransport(respond), retries=1) as client:
        kept = [client.put(LOGITS + index) for index in range(6)]
        fake.kept.clear()
        assert (
            len(client.evaluate("dice", inputs=[{"logits": each} for each in kept])["dice"]) == 12
        )
    assert paths(fake).count("POST evaluate") == 3


class Forgetful:
    """Holds the first requests until all have come, having forgotten what was put."""

    def __init__(self, fake: FakeLossd, callers: int) -> None:
        self.fake = fake
        self._all_here = threading.Barrier(callers)
        self._lock = threading.Lock()

    def respond(self, seen: Seen) -> httpx.Response:
        with self._lock:
            answer = self.fake.answer(seen)
        if answer.status_code == 404:
            self._all_here.wait(10)
        return answer


def test_many_threads_upload_a_forgotten_tensor_once(fake: FakeLossd) -> None:
    kept = Client(URL, transport=fake.transport()).put(LOGITS)
    fake.kept.clear()
    transport = FakeTransport(Forgetful(fake, 16).respond)
    with Client(URL, transport=transport) as client, ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(client.evaluate, "dice", logits=kept) for _ in range(16)]
        assert all(call.result()["dice"].tolist() == [5.5, 17.5] for call in calls)
    assert paths(fake)[1:].count("PUT tensors") == 1
    assert paths(fake).count("POST evaluate") == 32


def test_many_tasks_upload_a_forgotten_tensor_once(fake: FakeLossd) -> None:
    kept = Client(URL, transport=fake.transport()).put(LOGITS)
    fake.kept.clear()

    async def run() -> None:
        transport = FakeTransport(Forgetful(fake, 16).respond)
        async with AsyncClient(URL, transport=transport) as client:
            calls = (client.evaluate("dice", logits=kept) for _ in range(16))
            results = await asyncio.gather(*calls)
            assert all(each["dice"].tolist() == [5.5, 17.5] for each in results)

    asyncio.run(run())
    assert paths(fake)[1:].count("PUT tensors") == 1
    assert paths(fake).count("POST evaluate") == 32


def test_evaluate_many_takes_refs(fake: FakeLossd) -> None:
    with Client(URL, transport=fake.transport()) as client:
        kept = client.put(LOGITS)
        items = [{"target": TARGET}] * 5
        results = client.evaluate_many(items, losses="dice", logits=kept, progress="none")
        assert [each["dice"][0] for each in results] == [5.5] * 5


# -- what else stands for a tensor ---------------------------------------------------------------


def test_json_forms_travel_beside_arrays(client: Any, fake: FakeLossd) -> None:
    client.evaluate("dice", logits=LOGITS, target=RLE)
    assert list(fake.seen[0].tensors) == ["logits"]
    assert fake.seen[0].document["inputs"] == {"target": RLE}


def test_json_forms_of_several_objects_are_a_list(client: Any, fake: FakeLossd) -> None:
    kept = client.put(LOGITS)
    inputs = [{"logits": LOGITS}, {"logits": kept, "target": RLE}]
    client.evaluate("dice", inputs=inputs)
    assert list(fake.seen[1].tensors) == ["0/logits"]
    expected = [{}, {"logits": {"ref": kept.ref}, "target": RLE}]
    assert fake.seen[1].document["inputs"] == expected


def test_json_forms_are_made_plain(client: Any, fake: FakeLossd) -> None:
    mask = {"size": np.array([2, 2]), "counts": b"04"}  # as pycocotools gives it
    client.evaluate("dice", logits=LOGITS, target={"rle": [[mask]], "labels": ((np.int64(1),),)})
    written = {"rle": [[{"size": [2, 2], "counts": "04"}]], "labels": [[1]]}
    assert fake.seen[0].document["inputs"]["target"] == written


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"mask": [0, 1]}, "input 'target': a mapping needs one of base64, npy, png, ref, rle"),
        ({}, "a mapping needs one of"),
        ({"png": b"\x89PNG"}, "input 'target': bytes are not text; write them in base64"),
    ],
)
def test_other_mappings_are_no_tensors(
    client: Any, fake: FakeLossd, value: Json, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        client.evaluate("dice", logits=LOGITS, target=value)
    assert fake.seen == []


@pytest.mark.parametrize("value", [{"ref": "a"}, RLE, "a ref"])
def test_only_values_can_be_put(client: Any, fake: FakeLossd, value: Json) -> None:
    tensor = client.put(LOGITS) if value == "a ref" else value
    with pytest.raises(TypeError, match="put takes the values of a tensor"):
        client.put(tensor)
    with pytest.raises(TypeError, match="input 'tensor': dtype uint16"):
        client.put(np.zeros(1, np.uint16))
    with pytest.raises(ValueError, match="keep must be"):
        client.put(LOGITS, keep="weak")
    assert len(fake.seen) == (value == "a ref")


def broken() -> dict[str, httpx.Response]:
    return {
        "no json": httpx.Response(201, text="kept"),
        "no tensors": httpx.Response(201, json={"ref": "abc"}),
        "another name": httpx.Response(201, json={"tensors": {}}),
        "no shape": httpx.Response(
            201, json={"tensors": {"tensor": {"ref": "a", "dtype": "int8", "nbytes": 1}}}
        ),
    }


@pytest.mark.parametrize("why", broken())
def test_an_answer_to_put_that_cannot_be_read_is_the_services_fault(
    client: Any, fake: FakeLossd, why: str
) -> None:
    fake.script.append(broken()[why])
    with pytest.raises(errors.ServiceError, match=r"incomplete|is this lossd"):
        client.put(LOGITS)


def test_a_ref_lets_go_of_the_array_only_if_told(fake: FakeLossd) -> None:
    def is_held(**options: Any) -> bool:
        array: Array = LOGITS.copy()
        watched = weakref.ref(array)
        with Client(URL, transport=fake.transport()) as client:
            kept: TensorRef = client.put(array, **options)
        del array
        gc.collect()
        return watched() is not None and kept.nbytes > 0

    assert is_held()
    assert not is_held(keep="nothing")
