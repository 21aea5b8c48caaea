"""The Open Inference Protocol by gRPC: the unmodified client, and the published numbers."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from generate_inference import DESCRIPTION, write
from lossd.callers import Allowance
from lossd.inference.messages import POOL, SERVICE
from lossd.keys import add_key
from lossd_client import Client
from lossd_client.wire import NUMPY_DTYPES, Array
from oip_fixture import DATATYPES, LABELS, LOGITS
from service_fixture import Served, lossd, serving

OUTPUT = triton.InferRequestedOutput


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(cache_dir=tmp_path_factory.mktemp("lossd"), grpc_port=0) as running:
        yield running


def address(service: Served) -> str:
    app: Any = service.server.config.app
    return f"127.0.0.1:{app.state.grpc_port}"


@pytest.fixture(scope="module")
def client(service: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(address(service)) as client:
        yield client


def given(name: str, array: Array) -> Any:
    found = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
    found.set_data_from_numpy(array)
    return found


def inputs() -> list[Any]:
    return [given("logits", LOGITS), given("target", LABELS)]


def expected(service: Served, losses: Any = "dice", **more: Any) -> Any:
    with Client(str(service.client.base_url)) as own:
        return own.evaluate(losses, logits=LOGITS, target=LABELS, **more)


def test_what_the_client_asks_about_a_server(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "lossd"
    assert client.is_model_ready("dice")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("dice", "9")
    metadata = client.get_model_metadata("dice", "1")
    assert [one.name for one in metadata.inputs] == ["logits", "probabilities", "target", "mask"]
    config = client.get_model_config("dice").config
    assert config.max_batch_size == 1024
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert len(client.get_model_repository_index().models) > 50
    client.load_model("dice")
    with pytest.raises(InferenceServerException, match="take no configuration"):
        client.load_model("dice", config="{}")
    with pytest.raises(InferenceServerException, match="part of the service"):
        client.unload_model("dice")
    assert len(client.get_inference_statistics().model_stats) > 50


def test_it_infers(client: Any, service: Served) -> None:
    before = client.get_inference_statistics("log_dice").model_stats[0].inference_count
    answer = client.infer("log_dice", inputs(), request_id="7", model_version="1")
    assert answer.get_response().id == "7"
    assert answer.as_numpy("loss/log_dice").tolist() == (
        expected(service, "log_dice")["log_dice"].tolist()
    )
    (figures,) = client.get_inference_statistics("log_dice").model_stats
    assert figures.inference_count == before + 2
    assert figures.inference_stats.success.ns > 0


def test_outputs_are_chosen(client: Any, service: Served) -> None:
    answer = client.infer(
        "evaluate",
        inputs(),
        outputs=[OUTPUT("gradient/logits"), OUTPUT("loss/focal")],
        parameters={"losses": "dice,focal", "task": "multiclass"},
        priority=1,
        timeout=20_000_000,
    )
    there = expected(service, ["dice", "focal"], gradient="total")
    assert answer.as_numpy("gradient/logits").tolist() == there.gradient["logits"].tolist()
    assert answer.as_numpy("loss/focal").tolist() == there["focal"].tolist()
    assert answer.as_numpy("loss/dice") is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_logits_of_every_float(client: Any, service: Served, dtype: str) -> None:
    logits = LOGITS.astype(NUMPY_DTYPES[dtype])
    answer = client.infer("dice", [given("logits", logits), given("target", LABELS)])
    with Client(str(service.client.base_url)) as own:
        there = own.evaluate("dice", logits=logits, target=LABELS)
    assert answer.as_numpy("loss/dice").tolist() == there["dice"].tolist()


def test_tensors_may_be_lists(client: Any, service: Served) -> None:
    request = service_pb2.ModelInferRequest(model_name="dice")
    for name, array, kind in (
        ("logits", LOGITS, "fp32_contents"),
        ("target", LABELS, "uint_contents"),
    ):
        tensor = request.inputs.add(
            name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape
        )
        getattr(tensor.contents, kind).extend(array.reshape(-1).tolist())
    answer = client._client_stub.ModelInfer(request)  # noqa: SLF001 - it writes raw bytes only
    values = np.frombuffer(answer.raw_output_contents[0], np.float64)
    assert values.tolist() == expected(service)["dice"].tolist()
    request.raw_input_contents.append(LOGITS.tobytes())
    with pytest.raises(Exception, match="must not be specified when using raw_input_contents"):
        client._client_stub.ModelInfer(request)  # noqa: SLF001


@pytest.mark.parametrize(
    ("model", "change", "status", "text"),
    [
        ("nope", {}, "NOT_FOUND", "unknown model: 'nope'"),
        ("a/b", {}, "NOT_FOUND", "unknown model: 'a/b'"),
        ("dice", {"model_version": "2"}, "NOT_FOUND", "version 2 is not found"),
        ("dice", {"parameters": {"smoth": 1.0}}, "INVALID_ARGUMENT", "no such parameter"),
        ("dice", {"outputs": [OUTPUT("zzz")]}, "INVALID_ARGUMENT", "inference output 'zzz'"),
        ("evaluate", {}, "INVALID_ARGUMENT", "losses"),
        ("dice", {"timeout": 1}, "DEADLINE_EXCEEDED", "0.001 ms"),
    ],
)
def test_errors_reach_the_caller(
    client: Any, model: str, change: dict[str, Any], status: str, text: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs(), **change)
    assert caught.value.status() == f"StatusCode.{status}"
    assert text in caught.value.message()


def test_a_stream_goes_on_after_a_refusal(service: Served) -> None:
    answers: Queue[Any] = Queue()

    def note(answers: Queue[Any], result: Any, error: Any) -> None:
        answers.put(error or result)

    with triton.InferenceServerClient(address(service)) as client:
        client.start_stream(partial(note, answers))
        for model in ("dice", "focal"):
            client.async_stream_infer(model, inputs(), parameters={"ignore_index": 0})
        client.async_stream_infer("dice", inputs(), parameters={"x": 1})
        client.async_stream_infer("dice", inputs())
        found = [answers.get(timeout=20) for _ in range(4)]
        client.stop_stream()
    assert isinstance(found[2], InferenceServerException)
    assert found[3].as_numpy("loss/dice").tolist() == expected(service)["dice"].tolist()


def test_keys_and_quotas_hold_and_memory_is_shared(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "team", Allowance(requests_per_minute=1))
    with (
        serving(cache_dir=tmp_path, keys_file=keys, grpc_port=0, shared_memory="on") as service,
        triton.InferenceServerClient(address(service)) as client,
    ):
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("dice", inputs())
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        said = {"x-api-key": key}
        assert "system_shared_memory" in client.get_server_metadata(headers=said).extensions
        assert not client.get_system_shared_memory_status(headers=said).regions
        with pytest.raises(InferenceServerException, match=r"begin with '/lossd\.team\.'"):
            client.register_system_shared_memory("r", "/x", 8, headers=said)
        client.infer("dice", inputs(), headers=said)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("dice", inputs(), headers=said)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def sent_nothing(service: Served, method: str) -> grpc.RpcError:
    """What becomes of a call whose message never comes."""
    never = threading.Event()

    def messages() -> Iterator[bytes]:
        never.wait(20)
        yield from ()

    with grpc.insecure_channel(address(service)) as channel:
        call = channel.stream_unary(f"/{SERVICE}/{method}")
        try:
            with pytest.raises(grpc.RpcError) as caught:
                call(messages(), timeout=20)
        finally:
            never.set()
    return caught.value


def test_who_shows_no_key_is_refused_before_the_message(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "team")
    with serving(cache_dir=tmp_path, keys_file=keys, grpc_port=0) as service:
        for method in ("ModelInfer", "ModelStreamInfer", "ServerMetadata"):
            assert sent_nothing(service, method).code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, grpc_port=0, body_timeout_s=0.2) as service:
        refused = sent_nothing(service, "ModelInfer")
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.2 s" in refused.details()


def test_a_call_without_a_message_and_one_that_is_too_large(tmp_path: Path) -> None:
    with (
        serving(cache_dir=tmp_path, grpc_port=0, max_body_mib=1) as service,
        grpc.insecure_channel(address(service)) as channel,
    ):
        call = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        for messages, code in (
            ([], grpc.StatusCode.INVALID_ARGUMENT),
            ([bytes(3 << 20)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(iter(messages), timeout=20)
            assert caught.value.code() is code


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.__main__.find_spec", lambda _: None)
    ended = lossd("serve", "--grpc-port", "0")
    assert ended.status == 2
    assert "lossd[grpc]" in ended.stderr


def test_the_description_is_that_of_the_definition(tmp_path: Path) -> None:
    write(tmp_path / "x.desc")
    assert (tmp_path / "x.desc").read_bytes() == DESCRIPTION.read_bytes(), (
        "run tools/generate_inference.py"
    )


def fields(kind: Descriptor) -> dict[str, tuple[Any, ...]]:
    return {
        one.name: (
            one.number,
            one.type,
            one.is_repeated,
            one.message_type and one.message_type.full_name,
        )
        for one in kind.fields
    }


def test_names_and_numbers_are_the_published_ones() -> None:
    service = POOL.FindServiceByName(SERVICE)
    published = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    waiting = []
    for method in service.methods:
        theirs = published.methods_by_name[method.name]
        for own, other in (
            (method.input_type, theirs.input_type),
            (method.output_type, theirs.output_type),
        ):
            assert own.full_name == other.full_name
            waiting.append((own, other))
    seen = set()
    while waiting:
        own, other = waiting.pop()
        if own.full_name in seen:
            continue
        seen.add(own.full_name)
        assert fields(own).items() <= fields(other).items(), own.full_name
        for field in own.fields:
            if field.message_type is not None:
                waiting.append((field.message_type, other.fields_by_name[field.name].message_type))
            if field.enum_type is not None:
                values = {one.name: one.number for one in field.enum_type.values}
                there = other.fields_by_name[field.name].enum_type.values
                assert values == {one.name: one.number for one in there}
    assert len(seen) > 40
