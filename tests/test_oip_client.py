"""The unmodified client of Triton, blocking and asynchronous, against a service."""

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.http as blocking
import tritonclient.http.aio as asynchronous
from tritonclient.utils import InferenceServerException

from lossd_client import Client
from lossd_client.wire import NUMPY_DTYPES, Array
from oip_fixture import DATATYPES, LABELS, LOGITS
from service_fixture import Served

BINARY = blocking.InferRequestedOutput


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return f"{served.client.base_url.host}:{served.client.base_url.port}"


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    client = blocking.InferenceServerClient(url)
    yield client
    client.close()


def given(name: str, array: Array, *, binary: bool = True) -> Any:
    found = blocking.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def inputs(*, binary: bool = True) -> list[Any]:
    return [
        given("logits", LOGITS, binary=binary),
        given("target", LABELS, binary=binary),
    ]


def expected(served: Served, losses: Any = "dice", **more: Any) -> Any:
    with Client(str(served.client.base_url)) as own:
        return own.evaluate(losses, logits=LOGITS, target=LABELS, **more)


def test_what_the_client_asks_about_a_server(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "lossd"
    assert client.is_model_ready("dice")
    assert client.is_model_ready("dice", "1")
    assert not client.is_model_ready("nope")
    assert client.get_model_metadata("dice", "1")["inputs"][0]["name"] == "logits"
    assert client.get_model_config("dice")["max_batch_size"] == 1024
    assert len(client.get_model_repository_index()) > 50
    client.load_model("dice")
    with pytest.raises(InferenceServerException, match="part of the service"):
        client.unload_model("dice")
    assert client.get_inference_statistics("dice", "1")["model_stats"][0]["name"] == "dice"
    assert len(client.get_inference_statistics()["model_stats"]) > 50


@pytest.mark.parametrize("binary", [True, False])
def test_it_infers(client: Any, served: Served, binary: bool) -> None:  # noqa: FBT001 - a case
    answer = client.infer("dice", inputs(binary=binary), request_id="7", model_version="1")
    assert answer.get_response()["id"] == "7"
    assert answer.as_numpy("loss/dice").tolist() == expected(served)["dice"].tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_are_chosen(client: Any, served: Served, binary: bool) -> None:  # noqa: FBT001
    wanted = [BINARY("gradient/logits", binary_data=binary), BINARY("loss/focal")]
    answer = client.infer(
        "evaluate",
        inputs(),
        outputs=wanted,
        parameters={"losses": "dice,focal", "task": "multiclass"},
        priority=1,
        timeout=20_000_000,
    )
    there = expected(served, ["dice", "focal"], gradient="total")
    assert answer.as_numpy("gradient/logits").tolist() == there.gradient["logits"].tolist()
    assert answer.as_numpy("loss/focal").tolist() == there["focal"].tolist()
    assert answer.as_numpy("loss/dice") is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_logits_of_every_float(client: Any, served: Served, dtype: str) -> None:
    logits = LOGITS.astype(NUMPY_DTYPES[dtype])
    answer = client.infer("dice", [given("logits", logits), given("target", LABELS)])
    with Client(str(served.client.base_url)) as own:
        there = own.evaluate("dice", logits=logits, target=LABELS)
    assert answer.as_numpy("loss/dice").tolist() == there["dice"].tolist()


@pytest.mark.parametrize("asked", ["gzip", "deflate"])
def test_it_compresses_both_ways(client: Any, served: Served, asked: str) -> None:
    answer = client.infer(
        "dice",
        inputs(),
        outputs=[BINARY("gradient/logits"), BINARY("loss/dice", binary_data=False)],
        request_compression_algorithm=asked,
        response_compression_algorithm=asked,
    )
    there = expected(served, gradient="total")
    assert answer.as_numpy("gradient/logits").tolist() == there.gradient["logits"].tolist()
    assert answer.as_numpy("loss/dice").tolist() == there["dice"].tolist()


@pytest.mark.parametrize(
    ("model", "change", "status", "text"),
    [
        ("nope", {}, "404", "unknown model: 'nope'"),
        ("dice", {"model_version": "2"}, "404", "version 2 is not found"),
        ("dice", {"parameters": {"smoth": 1.0}}, "422", "no such parameter"),
        ("dice", {"outputs": [BINARY("zzz")]}, "400", "unexpected inference output 'zzz'"),
        ("evaluate", {}, "422", "losses"),
    ],
)
def test_errors_reach_the_caller(
    client: Any, model: str, change: dict[str, Any], status: str, text: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs(), **change)
    assert caught.value.status() == status
    assert text in caught.value.message()


def test_calls_under_way_at_a_time(url: str, served: Served) -> None:
    client = blocking.InferenceServerClient(url, concurrency=4)
    calls = [client.async_infer("dice", inputs()) for _ in range(8)]
    answers = [call.get_result().as_numpy("loss/dice").tolist() for call in calls]
    client.close()
    assert answers == [expected(served)["dice"].tolist()] * 8


def test_the_asynchronous_client(url: str, served: Served) -> None:
    there = expected(served, gradient="total")

    async def run() -> None:
        async with asynchronous.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("dice")
            assert (await client.get_model_metadata("dice"))["name"] == "dice"
            assert len(await client.get_model_repository_index()) > 50
            wanted = [BINARY("gradient/logits"), BINARY("loss/dice", binary_data=False)]
            for asked in (None, "gzip", "deflate"):
                answer = await client.infer(
                    "dice",
                    inputs(),
                    outputs=wanted,
                    request_compression_algorithm=asked,
                    response_compression_algorithm=asked,
                )
                gradient = answer.as_numpy("gradient/logits")
                assert gradient.tolist() == there.gradient["logits"].tolist()
                assert answer.as_numpy("loss/dice").tolist() == there["dice"].tolist()
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.infer("nope", inputs())

    asyncio.run(run())


def test_arrays_of_several_dimensions_and_tables(client: Any) -> None:
    prediction = np.array([[0.5, 2.0]], np.float32)
    target = np.array([[0.0, 1.0]], np.float32)
    answer = client.infer(
        "l1",
        [given("prediction", prediction), given("target", target)],
        outputs=[BINARY("loss/l1"), BINARY("gradient/prediction")],
    )
    assert answer.as_numpy("loss/l1").tolist() == [0.75]
    assert answer.as_numpy("gradient/prediction").tolist() == [[0.5, 0.5]]
