"""Shared memory: off unless allowed, for callers on this machine, each with names of their own."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as triton_memory
from pydantic import ValidationError

from lossd.callers import Allowance
from lossd.callers import Caller as Owner
from lossd.keys import add_key
from lossd.settings import Settings
from lossd.shared_memory import RegionTable, find_object, is_shared_memory_possible
from lossd_client import AsyncClient, Client
from lossd_client._regions import FOLDER, Region, Regions, sweep
from lossd_client._shared_memory import WORTHWHILE_BYTES, SharedMemoryTransport
from lossd_client.errors import MalformedBodyError, TooLargeError
from lossd_client.wire import SHARED_MEMORY_HEADER, Array
from oip_fixture import LABELS, LOGITS, binary, described, error, infer, read
from service_fixture import Served, problem, read_answer, safetensors, serving

pytestmark = pytest.mark.skipif(not is_shared_memory_possible(), reason="needs /dev/shm")

PREFIX = "lossd.anonymous."
MARK = f"client-of-test-{os.getpid()}-"
RNG = np.random.default_rng(2)
BIG_LOGITS = RNG.normal(size=(2, 4, 400, 400)).astype(np.float32)
BIG_LABELS = RNG.integers(0, 4, (2, 400, 400)).astype(np.uint8)


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that allows shared memory."""
    folder = tmp_path_factory.mktemp("lossd")
    with serving(cache_dir=folder, shared_memory="on") as running:
        yield running


@pytest.fixture(autouse=True)
def _marked_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of this process are told from those of others on the machine."""
    monkeypatch.setattr("lossd_client._regions._MARK", MARK)


class Memory:
    """A piece of shared memory of a test's own."""

    def __init__(self, name: str, data: bytes) -> None:
        self.path = FOLDER / name
        self.path.write_bytes(data)

    @property
    def key(self) -> str:
        return f"/{self.path.name}"


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Logits, labels and as much room again for a gradient."""
    data = LOGITS.tobytes() + LABELS.tobytes()
    found = Memory(f"{PREFIX}test-{os.getpid()}", data + bytes(4096))
    yield found
    found.path.unlink(missing_ok=True)


def register(service: Served, name: str, key: str, nbytes: int = 1024, **more: Any) -> Any:
    document = {"key": key, "byte_size": nbytes, "offset": 0, **more}
    content = json.dumps(document).encode()
    return service.client.post(f"/v2/systemsharedmemory/region/{name}/register", content=content)


@pytest.fixture
def region(open_service: Served, memory: Memory) -> Iterator[str]:
    """The same, registered."""
    answer = register(open_service, "r", memory.key, memory.path.stat().st_size)
    assert answer.status_code == 200, answer.text
    yield "r"
    open_service.client.post("/v2/systemsharedmemory/unregister")


def placed(name: str, array: Array, offset: int = 0, *, nbytes: int | None = None) -> Any:
    parameters = {
        "shared_memory_region": "r",
        "shared_memory_byte_size": array.nbytes if nbytes is None else nbytes,
        "shared_memory_offset": offset,
    }
    return {**described(name, array), "parameters": parameters}, b""


INPUTS = placed("logits", LOGITS), placed("target", LABELS, LOGITS.nbytes)


def expected(service: Served) -> Array:
    values: Array = read(
        infer(service.client, "dice", binary("logits", LOGITS), binary("target", LABELS))
    ).tensors["loss/dice"]
    return values


# -- the Open Inference Protocol ------------------------------------------------------------------


def test_it_is_off_unless_it_is_allowed(served: Served, memory: Memory) -> None:
    answer = register(served, "r", memory.key)
    assert answer.status_code == 501
    assert "LOSSD_SHARED_MEMORY" in error(answer)
    assert "system_shared_memory" not in served.client.get("/v2").json()["extensions"]
    assert served.client.get("/v2/systemsharedmemory/status").json() == []
    assert infer(served.client, "dice", *INPUTS).status_code == 501
    assert served.client.get("/v1/limits").json()["shared_memory"] is None


def test_it_needs_a_loopback_address() -> None:
    with pytest.raises(ValidationError, match=r"listen on 127\.0\.0\.1"):
        Settings(shared_memory="on", host="0.0.0.0")  # noqa: S104 - what is refused


def test_the_unmodified_client_uses_it(open_service: Served) -> None:
    where = open_service.client.base_url
    client = triton.InferenceServerClient(f"{where.host}:{where.port}")
    assert "system_shared_memory" in client.get_server_metadata()["extensions"]
    key, nbytes = f"/{PREFIX}triton-{os.getpid()}", 8192
    handle = triton_memory.create_shared_memory_region("r", key, nbytes)
    try:
        triton_memory.set_shared_memory_region(handle, [LOGITS, LABELS])
        client.register_system_shared_memory("r", key, nbytes)
        (status,) = client.get_system_shared_memory_status("r")
        assert status == {"name": "r", "key": key, "offset": 0, "byte_size": nbytes}
        inputs = [
            triton.InferInput("logits", LOGITS.shape, "FP32"),
            triton.InferInput("target", LABELS.shape, "UINT8"),
        ]
        inputs[0].set_shared_memory("r", LOGITS.nbytes)
        inputs[1].set_shared_memory("r", LABELS.nbytes, LOGITS.nbytes)
        outputs = [
            triton.InferRequestedOutput("loss/dice"),
            triton.InferRequestedOutput("gradient/logits"),
        ]
        outputs[1].set_shared_memory("r", LOGITS.nbytes, 4096)
        answer = client.infer("dice", inputs, outputs=outputs)
        assert answer.as_numpy("loss/dice").tolist() == expected(open_service).tolist()
        gradient = triton_memory.get_contents_as_numpy(handle, np.float32, LOGITS.shape, 4096)
        with Client(str(where)) as own:
            there = own.evaluate("dice", logits=LOGITS, target=LABELS, gradient="total")
        assert gradient.tolist() == there.gradient["logits"].tolist()
        client.unregister_system_shared_memory("r")
        assert client.get_system_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status() == []
        assert (FOLDER / key[1:]).exists()  # it is the client's
    finally:
        triton_memory.destroy_shared_memory_region(handle)
        client.close()


@pytest.mark.parametrize(
    ("key", "nbytes", "text"),
    [
        (f"/{PREFIX}nothing", 8, f"Unable to open shared memory region: '/{PREFIX}nothing'"),
        ("/probe", 8, "begin with '/lossd.anonymous.'"),
        ("/lossd.team-b.x", 8, "begin with '/lossd.anonymous.'"),
        (f"/{PREFIX}../../etc/passwd", 8, "without another '/'"),
        (f"/{PREFIX}\0x", 8, "begin with"),
        (f"/{PREFIX}{'x' * 300}", 8, "begin with"),
        ("", 8, "key"),
        (f"/{PREFIX}x", -1, "byte_size"),
        (f"/{PREFIX}x", "many", "byte_size"),
    ],
)
def test_keys_that_are_refused(open_service: Served, key: str, nbytes: Any, text: str) -> None:
    answer = register(open_service, "x", key, nbytes)
    assert 400 <= answer.status_code < 500
    assert text in error(answer)


def test_a_region_is_registered_once_and_no_larger_than_it_is(
    open_service: Served, memory: Memory, region: str
) -> None:
    size = memory.path.stat().st_size
    assert "already in manager" in error(register(open_service, region, memory.key))
    for nbytes, offset in ((size + 1, 0), (size, 1), (0, size + 1)):
        answer = register(open_service, "other", memory.key, nbytes, offset=offset)
        assert error(answer) == f"Invalid shared memory region: '{memory.key}'"
    answer = open_service.client.get("/v2/systemsharedmemory/region/x/status")
    assert answer.status_code == 404
    assert error(answer) == "Unable to find system shared memory region: 'x'"


@pytest.mark.parametrize("what", ["link", "queue", "folder", "second name"])
def test_only_memory_is_opened(open_service: Served, tmp_path: Path, what: str) -> None:
    path = FOLDER / f"{PREFIX}odd-{os.getpid()}"
    other = FOLDER / f"{PREFIX}odd-{os.getpid()}-other"
    other.write_bytes(bytes(64))
    try:
        if what == "link":
            (tmp_path / "x").write_bytes(bytes(64))
            path.symlink_to(tmp_path / "x")
        elif what == "queue":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            path.hardlink_to(other)
        answer = register(open_service, "odd", f"/{path.name}", 8)
        assert error(answer) == f"Unable to open shared memory region: '/{path.name}'"
    finally:
        other.unlink()
        if what == "folder":
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("inputs", "status", "text"),
    [
        (
            (placed("logits", LOGITS, nbytes=99_999), INPUTS[1]),
            400,
            "Invalid offset + byte size for shared memory region: 'r'",
        ),
        (
            (placed("logits", LOGITS, 9_999), INPUTS[1]),
            400,
            "Invalid offset + byte size for shared memory region: 'r'",
        ),
        ((placed("logits", LOGITS, nbytes=8), INPUTS[1]), 400, "Expected 480, got 8"),
        (
            (
                (
                    {
                        **described("logits", LOGITS),
                        "parameters": {
                            "shared_memory_region": "zz",
                            "shared_memory_byte_size": 8,
                        },
                    },
                    b"",
                ),
                INPUTS[1],
            ),
            404,
            "Unable to find shared memory region: 'zz'",
        ),
        (
            (
                (
                    {
                        **described("logits", LOGITS),
                        "parameters": {"shared_memory_region": "r"},
                    },
                    b"",
                ),
                INPUTS[1],
            ),
            400,
            "shared_memory_byte_size",
        ),
    ],
)
@pytest.mark.usefixtures("region")
def test_places_that_are_refused(open_service: Served, inputs: Any, status: int, text: str) -> None:
    answer = infer(open_service.client, "dice", *inputs)
    assert answer.status_code == status
    assert text in error(answer)


@pytest.mark.usefixtures("region")
def test_room_that_is_too_small_for_an_output_is_refused(open_service: Served) -> None:
    output = {
        "name": "gradient/logits",
        "parameters": placed("", LOGITS, nbytes=8)[0]["parameters"],
    }
    answer = infer(open_service.client, "dice", *INPUTS, outputs=[output])
    assert answer.status_code == 400
    assert error(answer) == (
        "shared memory size specified with the request for output 'gradient/logits' (8 bytes) "
        "should be at least 480 bytes to hold the results"
    )


@pytest.mark.usefixtures("region")
def test_places_of_outputs_are_looked_at_before_anything_is_computed(
    open_service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_service.engine, "submit", None)
    for parameters, text in (
        ({"shared_memory_region": "zz"}, "Unable to find shared memory region: 'zz'"),
        ({"shared_memory_offset": 1 << 30}, "Invalid offset + byte size"),
    ):
        place = {**INPUTS[0][0]["parameters"], **parameters}
        output = {"name": "total", "parameters": place}
        assert text in error(infer(open_service.client, "dice", *INPUTS, outputs=[output]))


@pytest.mark.usefixtures("region")
def test_memory_that_shrinks_ends_a_request_and_no_service(
    open_service: Served, memory: Memory
) -> None:
    os.truncate(memory.path, 10)
    answer = infer(open_service.client, "dice", *INPUTS)
    assert answer.status_code == 400
    assert "Invalid shared memory region" in error(answer)
    assert open_service.client.get("/v2/health/ready").status_code == 200


@pytest.mark.usefixtures("region")
def test_memory_that_is_replaced_is_another(open_service: Served, memory: Memory) -> None:
    data = memory.path.read_bytes()
    memory.path.rename(memory.path.with_suffix(".old"))
    memory.path.write_bytes(data)
    try:
        assert "another one now" in error(infer(open_service.client, "dice", *INPUTS))
    finally:
        memory.path.with_suffix(".old").unlink()
    memory.path.unlink()
    assert "Unable to open" in error(infer(open_service.client, "dice", *INPUTS))


@pytest.mark.usefixtures("region")
def test_labels_that_change_meanwhile_are_either_good_or_refused(
    open_service: Served, memory: Memory
) -> None:
    """What is checked is what is used, whatever the owner writes at the same time."""
    stop = threading.Event()
    bad = np.full_like(LABELS, 200).tobytes()

    def disturb() -> None:
        with memory.path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                for labels in (bad, LABELS.tobytes()):
                    file.seek(LOGITS.nbytes)
                    file.write(labels)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        statuses = set()
        for _ in range(60):
            answer = infer(open_service.client, "dice", *INPUTS)
            statuses.add(answer.status_code)
            if answer.status_code == 200:
                values = read(answer).tensors["loss/dice"]
                assert ((values >= 0) & (values <= 1)).all()
    finally:
        stop.set()
        disturber.join()
    assert statuses <= {200, 422}
    assert open_service.client.get("/health/ready").status_code == 200


def test_a_request_that_was_passed_on_uses_none(open_service: Served, memory: Memory) -> None:
    content = json.dumps({"key": memory.key, "byte_size": 8}).encode()
    answer = open_service.client.post(
        "/v2/systemsharedmemory/region/r/register",
        content=content,
        headers={"X-Forwarded-For": "10.0.0.7"},
    )
    assert answer.status_code == 501
    assert "on this machine" in error(answer)


def test_gpu_memory_is_not_shared(open_service: Served) -> None:
    answer = open_service.client.post("/v2/cudasharedmemory/region/g/register", content=b"{}")
    assert answer.status_code == 400
    assert error(answer) == (
        "failed to register CUDA shared memory region: 'g', GPUs not supported"
    )
    assert open_service.client.get("/v2/cudasharedmemory/region/g/status").status_code == 404
    assert open_service.client.post("/v2/cudasharedmemory/unregister").status_code == 200


def test_regions_of_callers_are_apart_and_bounded() -> None:
    table = RegionTable()
    mine, theirs = Owner(name="a"), Owner(name="a-b")
    memory = Memory(f"lossd.a.t-{os.getpid()}", bytes(16))
    try:
        find = partial(find_object, mine, memory.key)
        table.register(mine, "r", "system", find, (0, 16))
        assert table.of(theirs, "system") == table.of(mine, "cuda") == []
        with pytest.raises(MalformedBodyError, match=r"lossd\.a-b\."):
            find_object(theirs, memory.key)
        for number in range(255):
            table.register(mine, f"r{number}", "system", find, (0, 16))
        with pytest.raises(TooLargeError):
            table.register(mine, "last", "system", find, (0, 16))
        table.unregister(mine, "cuda")
        assert len(table.of(mine, "system")) == 256
        table.unregister(mine, "system")
        assert table.of(mine, "system") == []
    finally:
        memory.path.unlink()


# -- bodies of lossd's own protocol ---------------------------------------------------------------


def body_in(memory: Memory, document: Any) -> str:
    body = safetensors(document, {"logits": LOGITS, "target": LABELS})
    memory.path.write_bytes(body + bytes(4096))
    return f"{memory.path.name}; body={len(body)}"


def evaluate(service: Served, said: str, **more: Any) -> Any:
    headers = {"Content-Type": "application/vnd.safetensors", SHARED_MEMORY_HEADER: said}
    return service.client.post("/v1/evaluate", headers={**headers, **more})


def test_a_body_in_shared_memory_is_answered_there(open_service: Served, memory: Memory) -> None:
    answer = evaluate(open_service, body_in(memory, {"losses": ["dice"], "gradient": "total"}))
    assert answer.status_code == 200
    assert answer.content == b""
    nbytes = int(answer.headers[SHARED_MEMORY_HEADER])
    answer._content = memory.path.read_bytes()[:nbytes]  # noqa: SLF001 - where it would be else
    _, tensors = read_answer(answer)
    assert tensors["loss/dice"].tolist() == expected(open_service).tolist()
    assert tensors["gradient/logits"].shape == LOGITS.shape


def test_an_answer_that_does_not_fit_comes_as_any_other(
    open_service: Served, memory: Memory
) -> None:
    said = body_in(memory, {"losses": ["dice"], "gradient": "total", "gradient_dtype": "float64"})
    os.truncate(memory.path, int(said.rpartition("=")[2]))
    answer = evaluate(open_service, said)
    assert SHARED_MEMORY_HEADER not in answer.headers
    assert read_answer(answer)[1]["gradient/logits"].dtype == np.float64


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("x", "malformed_body"),
        ("lossd.other.x; body=8", "malformed_body"),
        (f"{PREFIX}gone; body=8", "malformed_body"),
        (f"{PREFIX}x; body=-8", "malformed_body"),
        (f"{PREFIX}x; body={1 << 40}", "too_large"),
    ],
)
def test_bodies_that_are_not_there(open_service: Served, said: str, code: str) -> None:
    answer = evaluate(open_service, said)
    problem(answer, 413 if code == "too_large" else 400, code)


def test_calls_that_are_not_charged_have_no_body_there(open_service: Served) -> None:
    answer = open_service.client.post(
        "/v2/systemsharedmemory/region/r/register",
        headers={SHARED_MEMORY_HEADER: f"{PREFIX}x; body=8"},
    )
    assert answer.status_code == 400
    assert "a call that is charged" in error(answer)


def test_a_body_in_shared_memory_needs_leave(served: Served, memory: Memory) -> None:
    problem(evaluate(served, body_in(memory, {"losses": ["dice"]})), 501, "not_supported")


def test_bytes_in_shared_memory_count(tmp_path: Path, memory: Memory) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "team", Allowance(mib_per_minute=1))
    theirs = Memory(f"lossd.team.{os.getpid()}", bytes(2 << 20))
    try:
        with serving(cache_dir=tmp_path, shared_memory="on", keys_file=keys) as service:
            said = {"X-API-Key": key}
            answer = evaluate(service, f"{theirs.path.name}; body={2 << 20}", **said)
            problem(answer, 413, "too_large")
            answer = evaluate(service, body_in(memory, {"losses": ["dice"]}), **said)
            assert "'/lossd.team.'" in problem(answer, 400, "malformed_body")["detail"]
    finally:
        theirs.path.unlink()


# -- the client -----------------------------------------------------------------------------------


def regions() -> list[str]:
    return [path.name for path in FOLDER.glob(f"{PREFIX}{MARK}*")]


def big(client: Client, **more: Any) -> Any:
    assert BIG_LOGITS.nbytes > WORTHWHILE_BYTES
    return client.evaluate("dice", logits=BIG_LOGITS, target=BIG_LABELS, gradient="total", **more)


def test_the_client_uses_it_by_itself_and_leaves_nothing(open_service: Served) -> None:
    url = str(open_service.client.base_url)
    with Client(url, shared_memory="off") as plain:
        there = big(plain)
        assert regions() == []
    with Client(url) as client:
        for _ in range(3):
            got = big(client)
            assert got["dice"].tolist() == there["dice"].tolist()
            assert got.gradient["logits"].tobytes() == there.gradient["logits"].tobytes()
            assert got.gradient["logits"].flags.writeable
        assert len(regions()) == 1
        client.evaluate("dice", logits=LOGITS, target=LABELS)
    assert regions() == []


def test_the_asynchronous_client_uses_it_too(open_service: Served) -> None:
    url = str(open_service.client.base_url)

    async def run() -> tuple[Any, int]:
        async with AsyncClient(url) as client:
            calls = [
                client.evaluate("dice", logits=BIG_LOGITS, target=BIG_LABELS, gradient="total")
                for _ in range(3)
            ]
            return await asyncio.gather(*calls), len(regions())

    results, used = asyncio.run(run())
    assert 1 <= used <= 3
    assert regions() == []
    with Client(url, shared_memory="off") as plain:
        there = big(plain)
    for got in results:
        assert got.gradient["logits"].tobytes() == there.gradient["logits"].tobytes()


def test_kept_tensors_go_the_same_way(open_service: Served) -> None:
    with Client(str(open_service.client.base_url)) as client:
        kept = client.put(BIG_LOGITS)
        assert len(regions()) == 1
        np.testing.assert_array_equal(client.get(kept), BIG_LOGITS)
        client.delete(kept)


def test_results_outlive_the_region(open_service: Served) -> None:
    with Client(str(open_service.client.base_url)) as client:
        first = big(client).gradient["logits"].copy()
        kept = big(client)
        big(client)
    np.testing.assert_array_equal(kept.gradient["logits"], first)


def test_the_client_falls_back_in_silence(
    open_service: Served, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(str(served.client.base_url)) as client:  # not allowed there
        big(client)
    with Client(str(open_service.client.base_url)) as client:
        monkeypatch.setattr("lossd_client._regions.Region.__init__", _no_room)
        big(client)
    assert regions() == []


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_region_that_the_service_does_not_see_is_given_up(
    open_service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a container that has a /dev/shm of its own."""
    monkeypatch.setattr("lossd.shared_memory.SHARED_MEMORY_FOLDER", Path("/proc/nothing"))
    with Client(str(open_service.client.base_url)) as client:
        big(client)
        big(client)
        way = client._transport  # noqa: SLF001 - nothing else shows it
        assert isinstance(way, SharedMemoryTransport)
        assert way._state == "off"  # noqa: SLF001
    assert regions() == []


def test_errors_of_a_request_are_its_own(open_service: Served) -> None:
    with Client(str(open_service.client.base_url)) as client:
        for _ in range(2):
            with pytest.raises(Exception, match="12"):
                client.evaluate("dice", logits=BIG_LOGITS, target=BIG_LABELS + np.uint8(9))
            assert len(regions()) == 1
    assert regions() == []


def test_a_killed_process_leaves_what_the_next_one_removes() -> None:
    program = (
        f"import lossd_client._regions as r; r._MARK = {MARK!r}; "
        f"print(r.Region({PREFIX!r}, 8).name, flush=True); input()"
    )
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = FOLDER / process.stdout.readline().strip()
        sweep(PREFIX)
        assert left.exists()  # it is in use
        process.kill()
    assert left.exists()
    held = Region(PREFIX, 8)
    mine = FOLDER / f"{PREFIX}mine"
    mine.write_bytes(b"x")
    try:
        Regions(PREFIX).close()
        assert not left.exists()
        assert held.name in regions()
        assert mine.exists()  # made by somebody else, who locks nothing
    finally:
        held.remove()
        mine.unlink()


def test_a_client_that_is_forgotten_removes_its_regions() -> None:
    own = Regions(PREFIX)
    own.give_back(own.take(8))
    assert len(regions()) == 1
    del own
    assert regions() == []


def test_few_idle_regions_are_kept_and_none_much_too_large() -> None:
    own = Regions(PREFIX)
    taken = [own.take(size << 20) for size in (1, 2, 3, 9, 9, 9)]
    for each in taken:
        own.give_back(each)
    assert len(regions()) == 4
    fitting = own.take(3 << 20)
    assert fitting.nbytes == 3 << 20
    own.close()
    own.give_back(fitting)
    assert regions() == []


def test_a_forked_process_lets_go_of_its_parents_regions() -> None:
    own = Region(PREFIX, 8)
    own.pid -= 1  # as if it were somebody else's
    own.remove()
    assert own.name in regions()
    with suppress(FileNotFoundError):
        sweep(PREFIX)
    assert own.name not in regions()
