"""Bodies and answers of the service: codings, room, memory, and clients that leave."""

import gc
import gzip
import json
import os
import socket
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from benchmarks.footprint import Footprint
from lossd.body_memory import BodyMemory
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd.receiving import Arrivals
from lossd_client.errors import QueueFullError
from lossd_client.wire import JSON, SAFETENSORS
from service_fixture import (
    Answer,
    Caller,
    Process,
    Served,
    npy,
    png,
    problem,
    read_answer,
    safetensors,
    serving,
    tensor,
    wait_until,
)
from wire_fixture import answers, received, request

MIB = 1 << 20
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 128, 128)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 128, 128), np.uint8)
BODY = safetensors(
    {"losses": ["dice", "focal"], "gradient": "total"}, {"logits": LOGITS, "target": LABELS}
)
SMALL = json.dumps(
    {
        "losses": ["dice"],
        "inputs": {"logits": tensor(LOGITS[:, :, :4, :4]), "target": tensor(LABELS[:, :4, :4])},
    }
).encode()


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers hold the same tensors to the bit."""
    first, second = read_answer(one)[1], read_answer(other)[1]
    return list(first) == list(second) and all(
        np.array_equal(first[name], second[name]) for name in first
    )


@pytest.fixture
def plain(app_client: Caller) -> Answer:
    """The answer to the body as it is."""
    return app_client.evaluate_bytes(BODY, SAFETENSORS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that takes bodies of 1 MiB."""
    with serving(cache_dir=Path(tmp_path_factory.mktemp("lossd")), max_body_mib=1) as running:
        yield running


# -- landing --------------------------------------------------------------------------------------


def test_a_large_body_is_read_where_it_landed(
    small: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed: list[int] = []
    read: list[int] = []
    take = BodyMemory.take

    def taken(memory: BodyMemory, nbytes: int) -> memoryview:
        body = take(memory, nbytes)
        landed.append(np.frombuffer(body, np.uint8).ctypes.data)
        return body

    def decoded(body: bytearray | memoryview, sources: Any) -> Any:
        read.append(np.frombuffer(body, np.uint8).ctypes.data)
        return read_safetensors_body(body, sources)

    monkeypatch.setattr(BodyMemory, "take", taken)
    monkeypatch.setattr("lossd.requests.read_safetensors_body", decoded)
    assert small.client.evaluate_bytes(BODY, SAFETENSORS).is_success
    assert read == landed
    assert len(read) == 1


# -- codings --------------------------------------------------------------------------------------


def zstd_of_unknown_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


COMPRESS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "GZIP": ("GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd of unknown size": ("zstd", zstd_of_unknown_size),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize("how", COMPRESS)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_compressed_body_is_the_body(
    app_client: Caller, plain: Answer, how: str, framing: str
) -> None:
    coding, compress = COMPRESS[how]
    sent = compress(BODY)
    content: Any = sent if framing == "length" else iter([sent[:1000], sent[1000:]])
    answer = app_client.evaluate_bytes(content, SAFETENSORS, **{"Content-Encoding": coding})
    assert same(answer, plain)


def test_forms_and_json_may_be_compressed_too(app_client: Caller) -> None:
    answer = app_client.evaluate_bytes(
        zstandard.compress(SMALL), JSON, **{"Content-Encoding": "zstd"}
    )
    assert same(answer, app_client.evaluate_bytes(SMALL, JSON))
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.png", png(LABELS[0])))]
    form = httpx.Request("POST", "http://a", data={"losses": "dice"}, files=files)
    kind, plain = form.headers["content-type"], form.read()
    answer = app_client.evaluate_bytes(gzip.compress(plain), kind, **{"Content-Encoding": "gzip"})
    assert same(answer, app_client.evaluate_bytes(plain, kind))


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, zstd", "gzip, gzip", "*", "gzip;q=1"])
def test_another_coding_is_415_and_those_taken_are_told(app_client: Caller, coding: str) -> None:
    answer = app_client.evaluate_bytes(SMALL, JSON, **{"Content-Encoding": coding})
    told = problem(answer, 415, "unsupported_coding")
    assert coding in told["detail"]
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"


def test_a_coding_in_two_fields_is_two_codings(app_client: Caller) -> None:
    headers = [("Content-Type", JSON), ("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]
    answer = app_client.post("/v1/evaluate", content=gzip.compress(SMALL), headers=headers)
    problem(answer, 415, "unsupported_coding")


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut at its end": lambda data: data[:-1],
    "cut in its middle": lambda data: data[: len(data) // 2],
    "followed by more": lambda data: data + b"\0",
    "twice": lambda data: data * 2,
    "not compressed": lambda _: SMALL,
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_broken_compressed_body_is_400(app_client: Caller, coding: str, what: str) -> None:
    sent = BROKEN[what](COMPRESS[coding][1](SMALL))
    answer = app_client.evaluate_bytes(sent, JSON, **{"Content-Encoding": coding})
    assert coding in problem(answer, 400, "malformed_body")["detail"]


def test_a_wrong_checksum_is_400(app_client: Caller) -> None:
    for coding, sent in (
        ("gzip", gzip.compress(SMALL)),
        ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress(SMALL)),
    ):
        place = -6 if coding == "gzip" else -1
        damaged = bytearray(sent)
        damaged[place] ^= 1
        answer = app_client.evaluate_bytes(bytes(damaged), JSON, **{"Content-Encoding": coding})
        problem(answer, 400, "malformed_body")


@pytest.mark.parametrize("how", ["gzip", "deflate", "zstd", "zstd of unknown size"])
def test_a_bomb_is_413_long_before_it_has_unfolded(small: Served, how: str) -> None:
    coding, compress = COMPRESS[how]
    answer = small.client.evaluate_bytes(
        compress(bytes(200 * MIB)), JSON, **{"Content-Encoding": coding}
    )
    told = problem(answer, 413, "too_large")
    assert "unfolds to more than 1048576 bytes" in told["detail"]


def test_a_compressed_body_may_unfold_to_the_limit(small: Served) -> None:
    sent = gzip.compress(SMALL + b" " * (MIB - len(SMALL)))
    assert small.client.evaluate_bytes(sent, JSON, **{"Content-Encoding": "gzip"}).is_success
    sent = gzip.compress(SMALL + b" " * (MIB - len(SMALL) + 1))
    problem(
        small.client.evaluate_bytes(sent, JSON, **{"Content-Encoding": "gzip"}), 413, "too_large"
    )


def test_a_zstd_window_beyond_what_http_allows_is_400(app_client: Caller) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    stream = compressor.compressobj()
    sent = stream.compress(SMALL) + stream.flush()
    answer = app_client.evaluate_bytes(sent, JSON, **{"Content-Encoding": "zstd"})
    problem(answer, 400, "malformed_body")


def test_what_is_counted_as_received_is_what_came_over_the_wire(served: Served) -> None:
    def count() -> float:
        found = REGISTRY.get_sample_value("lossd_received_bytes_total", {"key": "anonymous"})
        return found or 0.0

    sent = zlib.compressobj(wbits=31)
    body = sent.compress(BODY) + sent.flush()
    before = count()
    served.client.evaluate_bytes(body, SAFETENSORS, **{"Content-Encoding": "gzip"})
    assert count() == before + len(body)
    served.client.evaluate_bytes(BODY, SAFETENSORS)
    assert count() == before + len(body) + len(BODY)


@pytest.mark.parametrize("accepted", ["gzip", "gzip, deflate, br, zstd", "*", "identity;q=0"])
def test_answers_are_never_compressed(app_client: Caller, plain: Answer, accepted: str) -> None:
    answer = app_client.evaluate_bytes(BODY, SAFETENSORS, **{"Accept-Encoding": accepted})
    assert "content-encoding" not in answer.headers
    assert int(answer.headers["content-length"]) == answer.num_bytes_downloaded
    assert same(answer, plain)


# -- room for arriving bodies ---------------------------------------------------------------------


def test_a_caller_leaves_room_for_others() -> None:
    arrivals = Arrivals(100)
    with arrivals.room("a") as first, arrivals.room("a") as second, arrivals.room("b") as other:
        first(25)
        second(25)
        with pytest.raises(QueueFullError, match="50 of them yours"):
            second(1)
        with arrivals.room("a") as more, pytest.raises(QueueFullError):
            more(1)
        other(50)
        with arrivals.room("c") as third, pytest.raises(QueueFullError):
            third(1)
    with arrivals.room("c") as third:
        third(60)
        third(40)  # a lone body may grow
        with pytest.raises(QueueFullError):
            third(1)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 80)), max_size=20),
    limit=st.integers(1, 100),
)
def test_all_together_never_hold_more_than_there_is(
    sizes: list[tuple[str, int]], limit: int
) -> None:
    arrivals = Arrivals(limit)
    held = 0

    def hold(rest: list[tuple[str, int]]) -> None:
        nonlocal held
        if not rest:
            return
        (name, nbytes), *later = rest
        with arrivals.room(name) as take:
            try:
                take(nbytes)
            except QueueFullError:
                nbytes = 0
            held += nbytes
            assert held <= limit
            hold(later)
        held -= nbytes

    hold(sizes)
    with arrivals.room("a") as take:
        take(limit)


def test_bodies_without_room_are_429_before_they_are_read(tmp_path: Path) -> None:
    head = request("/v1/evaluate", b" " * MIB, f"Content-Type: {SAFETENSORS}")[:-MIB]
    with serving(cache_dir=tmp_path, max_body_mib=1, max_arriving_mib=1) as running:
        address = running.client.base_url.host, running.client.base_url.port or 0
        with socket.create_connection(address, timeout=10) as first:
            first.sendall(head)
            wait_until(lambda: _refused(address, head), 10)
        wait_until(lambda: running.client.evaluate_bytes(SMALL, JSON).is_success)


def _refused(address: tuple[str, int], head: bytes) -> bool:
    with socket.create_connection(address, timeout=10) as second:
        second.sendall(head)
        second.settimeout(0.3)
        try:
            second.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False  # the first one's head had not been read yet
        (answer,) = answers(received(second))
    assert (answer.status, answer.document["code"]) == (429, "queue_full")
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["retry-after"]) >= 1
    assert f"of {MIB} bytes of bodies are arriving" in answer.document["detail"]
    return True


# -- memory ---------------------------------------------------------------------------------------


def address_of(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_memory_is_used_again_when_the_last_view_is_gone() -> None:
    memory = BodyMemory(16 * MIB)
    body = memory.take(MIB)
    place = address_of(body)
    tensors = [
        np.frombuffer(body, np.float32)[8:],
        torch.from_numpy(np.frombuffer(body[64:], np.float32)),
        np.asarray(body)[::2].reshape(-1, 2),
        torch.frombuffer(body, dtype=torch.float32)[3:].view(torch.int32),
    ]
    del body
    while tensors:
        assert address_of(memory.take(MIB)) != place
        tensors.pop(0)
        gc.collect()
    assert place in {address_of(one) for one in [memory.take(MIB), memory.take(MIB)]}


def test_idle_memory_is_bounded_and_not_wasted_on_small_bodies() -> None:
    memory = BodyMemory(3 * MIB)
    for view in [memory.take(MIB) for _ in range(5)]:
        view.release()
    gc.collect()
    assert sum(one.nbytes for one in memory._idle) <= 3 * MIB  # noqa: SLF001 - what is bounded
    idle = len(memory._idle)  # noqa: SLF001
    small = memory.take(1000)
    assert len(memory._idle) == idle  # noqa: SLF001
    assert small.nbytes == 1000


def test_memory_of_small_bodies_makes_room_for_a_larger_one() -> None:
    memory = BodyMemory(64 * MIB)
    for nbytes in (MIB, 2 * MIB, 4 * MIB, 16 * MIB):
        memory.take(nbytes).release()
        gc.collect()
    sizes = [one.nbytes for one in memory._idle]  # noqa: SLF001 - what is kept
    assert sizes == [16 * MIB]
    first = [memory.take(MIB) for _ in range(4)]
    first.clear()
    gc.collect()
    assert len(memory._idle) == 5  # noqa: SLF001
    memory.take(3 * MIB).release()
    gc.collect()
    # Three of them were enough, and what is larger was no help but costs nothing anew.
    assert sorted(one.nbytes // MIB for one in memory._idle) == [1, 3, 16]  # noqa: SLF001


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_smaller_body_does_not_need_goes_back_to_the_system() -> None:
    memory, process = BodyMemory(256 * MIB), Footprint(os.getpid())
    large = memory.take(128 * MIB)
    np.frombuffer(large, np.uint8)[:] = 1
    place, before = address_of(large), process.resident_bytes()
    large.release()
    gc.collect()
    small = memory.take(64 * MIB)
    assert address_of(small) == place
    assert before - process.resident_bytes() > 60 * MIB
    np.frombuffer(small, np.uint8)[:] = 2
    small.release()
    gc.collect()
    again = memory.take(128 * MIB)
    assert address_of(again) == place
    assert np.frombuffer(again, np.uint8)[-1] == 0


def test_memory_of_no_bytes_is_memory_too() -> None:
    assert BodyMemory(MIB).take(0).nbytes == 0


def test_memory_may_come_back_from_any_thread() -> None:
    memory = BodyMemory(64 * MIB)
    views = [memory.take(MIB) for _ in range(16)]
    threads = [threading.Thread(target=views.pop) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len(memory._idle) == 16  # noqa: SLF001


def test_a_body_is_released_when_its_request_has_been_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[weakref.ref[Any]] = []
    take = BodyMemory.take

    def remember(memory: BodyMemory, nbytes: int) -> memoryview:
        body = take(memory, nbytes)
        taken.append(weakref.ref(body.obj))
        return body

    monkeypatch.setattr(BodyMemory, "take", remember)
    for _ in range(3):
        served.client.evaluate_bytes(BODY, SAFETENSORS).raise_for_status()
    assert len(taken) == 3
    served.client.evaluate_bytes(SMALL, JSON).raise_for_status()  # the engine has let go, too

    def released() -> bool:
        gc.collect()
        return all(one() is None for one in taken)

    wait_until(released)


# -- clients that leave ---------------------------------------------------------------------------


def test_a_client_that_leaves_while_its_body_lands_is_499(service_process: Process) -> None:
    host, port = service_process.url.removeprefix("http://").split(":")
    sent = request("/v1/evaluate", BODY, f"Content-Type: {SAFETENSORS}", "X-Request-ID: leaver")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent[:-1000])
    wait_until(lambda: any('"leaver"' in line for line in service_process.lines))
    (event,) = [one for one in service_process.events if one.get("request_id") == "leaver"]
    assert (event["status"], event["code"]) == (499, "client_gone")


def test_a_large_body_that_stops_is_408_with_how_much_came(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, body_timeout_s=0.5, ready=False) as slow:
        address = slow.client.base_url.host, slow.client.base_url.port or 0
        with socket.create_connection(address, timeout=10) as connection:
            sent = request("/v1/evaluate", BODY, f"Content-Type: {SAFETENSORS}")
            connection.sendall(sent[:-1000])
            (answer,) = answers(received(connection))
    assert (answer.status, answer.document["code"]) == (408, "body_timeout")
    assert answer.document["detail"].startswith(f"{len(BODY) - 1000} bytes of the body arrived")
