"""Every metric moves when its event happens, and no caller makes series."""

import asyncio
import itertools
import mmap
import re
import threading
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from generate_docs import declared_metrics
from jobs import TASKS, case, make_job
from lossd import __version__, device_memory, event_loop, gauges, metrics
from lossd.accounting import Accounting
from lossd.core.evaluation import _samples, evaluate
from lossd.core.job import AnyJob, Job
from lossd.engine import Engine, State
from lossd.settings import Settings
from lossd.tracing import NOT_TRACED
from lossd_client.errors import ERRORS
from service_fixture import Caller, Served, serving, tensor, wait_until

ROOT = Path(__file__).parents[1]
LOGITS = np.zeros((2, 3, 4, 5), np.float32)
REQUEST = {
    "losses": ["dice", "focal"],
    "inputs": {"logits": tensor(LOGITS), "target": tensor(np.zeros((2, 4, 5), np.uint8))},
}
OTHER_GROUP = {
    "losses": ["dice"],
    "inputs": {"logits": tensor(LOGITS[:, :2]), "target": tensor(np.zeros((2, 4, 5), np.uint8))},
}
Series = dict[str, float]


def read(text: str) -> Series:
    """Samples of lossd's metrics by name and labels, `name{label=value,…}`."""
    return {
        sample.name
        + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("lossd_")
    }


def now(client: Caller) -> Series:
    return read(client.get("/metrics").text)


def moved(before: Series, after: Series) -> Series:
    """What has changed, without the buckets."""
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0) and "_bucket" not in name
    }


def increments(before: Series) -> Series:
    return moved(before, read(generate_latest().decode()))


class Hold:
    """Holds the engine inside a batch, so that what comes next gathers behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.guilty: set[int] = set()
        """Samples that jobs have which fail."""
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(self, jobs: Sequence[AnyJob], *rest: Any) -> Any:
        self.entered.set()
        assert self.opened.wait(20)
        if any(job.samples in self.guilty for job in jobs):
            msg = "kernel broke"
            raise RuntimeError(msg)
        return evaluate(jobs, *rest)


@contextmanager
def waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch, documents: Sequence[Any]
) -> Iterator[tuple[Hold, list[httpx.Response]]]:
    """A service whose engine is busy while these requests wait, in this order."""
    hold = Hold(monkeypatch)
    answers: list[httpx.Response] = []

    def send(document: Any) -> None:
        with Caller(base_url=served.client.base_url, timeout=30) as client:
            answers.append(client.evaluate(document))

    threads = [threading.Thread(target=send, args=(one,)) for one in [REQUEST, *documents]]
    threads[0].start()
    assert hold.entered.wait(10)
    try:
        for number, thread in enumerate(threads[1:], start=1):
            thread.start()
            wait_until(lambda number=number: served.engine.queue_depth().requests == number)
        yield hold, answers
    finally:
        hold.opened.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


# -- one request ----------------------------------------------------------------------------------


def test_an_evaluation_moves_what_it_should(app_client: Caller) -> None:
    before = now(app_client)
    answer = app_client.evaluate(REQUEST)
    wait_until(
        lambda: "lossd_request_seconds_count,route=/v1/evaluate" in moved(before, now(app_client))
    )
    change = moved(before, now(app_client))
    route = "route=/v1/evaluate"
    assert change[f"lossd_requests_total,code=ok,key=anonymous,{route},status=200"] == 1
    assert change[f"lossd_request_seconds_count,{route}"] == 1
    assert change["lossd_samples_total,key=anonymous"] == 2
    body = len(answer.request.content)
    assert change["lossd_received_bytes_total,key=anonymous"] == body
    assert change["lossd_sent_bytes_total,key=anonymous"] > len(answer.content)  # /metrics, too
    for stage in ("receive", "read", "queue", "compute", "write"):
        assert change[f"lossd_stage_seconds_count,stage={stage}"] == 1
        assert change[f"lossd_stage_seconds_sum,stage={stage}"] > 0
    assert change["lossd_batches_total,reason=idle"] == 1
    for name, value in {
        "lossd_batch_samples": 2,
        "lossd_batch_requests": 1,
        "lossd_batch_bytes": LOGITS.nbytes + LOGITS[:, 0].size,  # labels are bytes
        "lossd_batch_tiles": 2,
    }.items():
        assert (change[f"{name}_count"], change[f"{name}_sum"]) == (1, value), name
    assert change["lossd_dispatch_queue_requests_count"] == 1
    assert "lossd_dispatch_queue_requests_sum" not in change
    assert change["lossd_dispatch_oldest_seconds_count"] == 1
    assert change["lossd_compute_seconds_count"] == 1
    never = ("failures", "reruns", "dropped")
    assert not [name for name in change if any(word in name for word in never)]


def test_an_error_counts_under_its_code_with_the_stages_it_came_through(
    app_client: Caller,
) -> None:
    before = now(app_client)
    app_client.evaluate({**REQUEST, "losses": ["dicee"]})
    change = moved(before, now(app_client))
    name = "lossd_requests_total,code=unknown_loss,key=anonymous,route=/v1/evaluate,status=404"
    assert change[name] == 1
    assert change["lossd_stage_seconds_count,stage=read"] == 1
    assert "lossd_stage_seconds_count,stage=queue" not in change
    assert "lossd_samples_total,key=anonymous" not in change


def test_bytes_of_a_refused_body_count() -> None:
    with serving(max_body_mib=1) as served:
        before = now(served.client)
        body = b" " * ((1 << 20) + 1)
        parts = iter([body[: 1 << 19], body[1 << 19 :]])  # of no announced length
        answer = served.client.evaluate_bytes(parts, "application/json")
        assert answer.status_code == 413
        change = moved(before, now(served.client))
        assert change["lossd_received_bytes_total,key=anonymous"] > 1 << 19


def test_a_job_counts_the_tiles_that_it_is_cut_into() -> None:
    for task, soft in itertools.product(TASKS, (False, True)):
        for spatial in [(7, 5), (64, 64), (65, 64), (8, 128, 9)]:
            made = case(task, soft=soft, spatial=spatial)
            job = make_job("dice", made.inputs, **made.fields)
            assert isinstance(job, Job)
            assert job.tiles == sum(sample.extent.total for sample in _samples(job))


def test_tables_have_no_tiles(app_client: Caller) -> None:
    before = now(app_client)
    boxes = [[0.0, 0.0, 1.0, 1.0]]
    app_client.evaluate(
        {"losses": ["giou"], "inputs": {"prediction": boxes, "target": boxes}}
    ).raise_for_status()
    change = moved(before, now(app_client))
    assert change["lossd_batch_tiles_count"] == 1
    assert "lossd_batch_tiles_sum" not in change


def test_no_caller_makes_a_series(app_client: Caller) -> None:
    before = set(now(app_client))
    for number in range(5):
        app_client.get(f"/nowhere/{number}")
        app_client.get(f"/v1/losses/no_such_{number}")
        app_client.request(("GET", "PUT", "PATCH", "HEAD", "DELETE")[number], "/v1/evaluate")
        headers = {"X-Request-ID": f"id{number}", "Content-Type": f"odd/{number}"}
        app_client.post(f"/v1/evaluate?arrays={number}", headers=headers)
    texts = "\n".join(set(now(app_client)) - before)
    routes = {entry.partition("route=")[2].partition(",")[0] for entry in texts.splitlines()}
    assert routes <= {"", "unknown", "/v1/losses/{name}", "/v1/evaluate", "/metrics"}
    codes = {entry.partition("code=")[2].partition(",")[0] for entry in texts.splitlines()}
    assert codes <= {"", "ok", *ERRORS}
    every = "\n".join(now(app_client))
    for code in ("not_found", "unknown_loss", "method_not_allowed", "unsupported_media_type"):
        assert f"code={code}," in every


async def breaks_off(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    msg = "half an answer is out"
    raise ValueError(msg)


async def cut_off(_: Scope, __: Receive, ___: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("app", "error", "labels"),
    [
        (breaks_off, ValueError, "code=internal,key=anonymous,route=unknown,status=200"),
        (cut_off, asyncio.CancelledError, "code=unanswered,key=anonymous,route=unknown,status=0"),
    ],
)
def test_an_answer_that_never_ended_is_not_counted_as_good(
    app: ASGIApp, error: type[BaseException], labels: str
) -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/v1/limits", "headers": []}
    before = read(generate_latest().decode())
    with pytest.raises(error):
        asyncio.run(_awaited(Accounting(app, NOT_TRACED)(scope, receive, send)))
    assert increments(before)[f"lossd_requests_total,{labels}"] == 1
    assert "lossd_requests_in_progress" not in increments(before)


async def _awaited(work: Awaitable[None]) -> None:
    await work


# -- several requests -----------------------------------------------------------------------------


def test_what_waits_is_measured_while_it_waits_and_when_it_leaves(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = now(served.client)
    with waiting(served, monkeypatch, [REQUEST, OTHER_GROUP, REQUEST]) as (hold, answers):
        during = now(served.client)
        assert during["lossd_queue_requests"] == 3
        assert during["lossd_queue_samples"] == 6
        assert during["lossd_queue_bytes"] == 2 * (480 + 40) + 320 + 40
        assert during["lossd_queue_oldest_seconds"] > 0
        assert during["lossd_requests_in_progress"] == 5  # the one that asks is one
        hold.opened.set()
    wait_until(lambda: now(served.client)["lossd_requests_in_progress"] == 1)
    change = moved(before, now(served.client))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert change["lossd_batch_requests_count"] == 3
    assert change["lossd_batch_requests_sum"] == 4
    assert change["lossd_dispatch_queue_requests_sum"] == 1  # the smaller group waited once more
    assert change["lossd_dispatch_oldest_seconds_sum"] > 0
    after = now(served.client)
    assert (after["lossd_queue_requests"], after["lossd_queue_oldest_seconds"]) == (0, 0)


def test_a_batch_that_fails_counts_its_reruns_and_the_job_at_fault(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = now(served.client)
    three = {
        **REQUEST,
        "inputs": {
            "logits": tensor(np.repeat(LOGITS[:1], 3, axis=0)),
            "target": tensor(np.zeros((3, 4, 5), np.uint8)),
        },
    }
    with waiting(served, monkeypatch, [REQUEST, REQUEST, REQUEST, three]) as (hold, answers):
        hold.guilty = {3}
        hold.opened.set()
    change = moved(before, now(served.client))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 500]
    assert change["lossd_batch_reruns_total"] == 2  # four, then two
    assert change["lossd_job_failures_total"] == 1
    assert change["lossd_batch_samples_count"] == 2  # a rerun is no batch of its own
    assert change["lossd_compute_seconds_count"] == 1 + 1 + 2 + 2


def test_requests_that_nobody_waits_for_are_counted_as_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = now(served.client)
    late = {**REQUEST, "timeout_ms": 50}
    with waiting(served, monkeypatch, [late]) as (hold, answers):
        wait_until(lambda: len(answers) == 1)
        assert answers[0].status_code == 504
        with (
            pytest.raises(httpx.ReadTimeout),
            Caller(base_url=served.client.base_url, timeout=0.2) as hasty,
        ):
            hasty.evaluate(REQUEST)
        gone = "lossd_requests_total,code=client_gone,key=anonymous,route=/v1/evaluate,status=499"
        wait_until(lambda: gone in moved(before, now(served.client)))
        hold.opened.set()
    wait_until(lambda: served.engine.queue_depth().requests == 0)
    change = moved(before, now(served.client))
    assert change["lossd_dropped_requests_total,reason=deadline"] == 1
    assert change["lossd_dropped_requests_total,reason=cancelled"] == 1
    assert change["lossd_batches_total,reason=idle"] == 1


def test_when_the_engine_stops_everything_it_held_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class DeviceLostError(BaseException):
        pass

    def die(*_: Any) -> Any:
        raise DeviceLostError

    with serving() as served, waiting(served, monkeypatch, [REQUEST]) as (hold, answers):
        before = now(served.client)
        monkeypatch.setattr("lossd.engine.evaluate", die)  # of the second batch
        hold.opened.set()
        wait_until(lambda: len(answers) == 2)
        # Counted when all are answered.
        wait_until(lambda: moved(before, now(served.client)).get("lossd_job_failures_total") == 1)
        change = moved(before, now(served.client))
        assert change["lossd_engine_state,state=failed"] == 1
        assert change["lossd_engine_state,state=ready"] == -1
        assert change["lossd_ready"] == -1


# -- read when asked ------------------------------------------------------------------------------


def test_exactly_one_state_is_current(app_client: Caller) -> None:
    series = now(app_client)
    states = {state: series[f"lossd_engine_state,state={state}"] for state in get_args(State)}
    assert states.pop("ready") == 1
    assert list(states.values()) == [0] * 5
    assert series["lossd_ready"] == 1


def test_kernels_count_up_while_they_compile() -> None:
    engine = Engine(Settings(kernels="eager"))
    engine.progress = 2, 8
    gauges.read_gauges(engine)
    series = read(generate_latest().decode())
    assert (series["lossd_kernels_ready"], series["lossd_kernels_expected"]) == (2, 8)
    assert series["lossd_engine_state,state=starting"] == 1
    metrics.START_UP_SECONDS.set(0)
    engine.start()
    wait_until(engine.is_ready)
    gauges.read_gauges(engine)
    series = read(generate_latest().decode())
    assert (series["lossd_kernels_ready"], series["lossd_kernels_expected"]) == (0, 0)
    assert series["lossd_start_up_seconds"] > 0
    engine.drain()
    assert engine.join()
    gauges.read_gauges(engine)
    assert read(generate_latest().decode())["lossd_engine_state,state=stopped"] == 1


def test_the_build_says_what_runs(served: Served) -> None:
    (name,) = [name for name in now(served.client) if name.startswith("lossd_build_info")]
    for part in (__version__, "cpu (eager)", served.engine.numerics_version, torch.__version__):
        assert f"={part}" in name


def test_memory_of_the_cpu_is_that_of_the_process(app_client: Caller) -> None:
    pages = b"\1" * (64 << 20)
    # Not from the heap, which may have pages of the tests before at hand.
    with mmap.mmap(-1, len(pages)) as block:
        before = device_memory.resident_bytes()
        block.write(pages)
        series = now(app_client)
    assert series["lossd_device_memory_bytes,kind=used"] > before + (32 << 20)
    assert series["lossd_device_memory_bytes,kind=total"] == device_memory.usable_bytes()
    assert device_memory.resident_bytes() < device_memory.usable_bytes()


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/box/inner", {"box/memory.max": "5000", "box/inner/memory.max": "max"}, 5000),
        ("0::/box/inner", {"box/memory.max": "5000", "box/inner/memory.max": "3000"}, 3000),
        ("0::/not/here", {"memory.max": "7000"}, 7000),
        (
            "4:memory:/box\n0::/",
            {"memory/box/memory.limit_in_bytes": "4000", "memory/memory.limit_in_bytes": "9000"},
            4000,
        ),
    ],
)
def test_a_control_group_limits_the_memory(
    tmp_path: Path, group: str, limits: dict[str, str], expected: int
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(group + "\n")
    for name, text in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert device_memory.usable_bytes(tmp_path, tmp_path / "groups") == expected
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    machine = device_memory.usable_bytes(tmp_path, tmp_path / "nothing")
    assert machine > 1 << 24


def test_a_device_that_does_not_answer_leaves_the_other_metrics(
    app_client: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: torch.device) -> Any:
        msg = "CUDA error: device lost"
        raise RuntimeError(msg)

    monkeypatch.setattr(gauges, "device_memory", broken)
    series = now(app_client)
    assert np.isnan(series["lossd_device_memory_bytes,kind=used"])
    assert series["lossd_ready"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_holds_the_tensors_in_it() -> None:
    device = torch.device("cuda")
    block = torch.ones(64 << 20, dtype=torch.uint8, device=device)
    memory = device_memory.device_memory(device)
    assert block.nbytes <= memory["allocated"] <= memory["reserved"] <= memory["used"]
    assert memory["used"] <= memory["total"]


# -- the event loop -------------------------------------------------------------------------------


def test_a_blocked_event_loop_lags() -> None:
    async def blocked() -> None:
        async with event_loop.watched_event_loop():
            await asyncio.sleep(0.05)
            time.sleep(0.4)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0.05)

    before = read(generate_latest().decode())
    asyncio.run(blocked())
    change = increments(before)
    assert change["lossd_event_loop_lag_seconds_count"] >= 1
    assert change["lossd_event_loop_lag_seconds_sum"] > 0.2


def test_the_watch_ends_with_the_app() -> None:
    async def tasks() -> tuple[set[str], set[str]]:
        async with event_loop.watched_event_loop():
            inside = {task.get_name() for task in asyncio.all_tasks()}
        return inside, {task.get_name() for task in asyncio.all_tasks()}

    inside, after = asyncio.run(tasks())
    assert inside - after == {"event loop watch"}


def test_a_watch_that_dies_says_so_and_the_service_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken() -> None:
        msg = "no histogram"
        raise ValueError(msg)

    monkeypatch.setattr(event_loop, "_watch", broken)
    said: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            said.append({"event": event, **fields})

    monkeypatch.setattr(event_loop, "log", Log())
    with serving() as served:
        wait_until(lambda: said)
        served.client.evaluate(REQUEST).raise_for_status()
    assert [entry["event"] for entry in said] == ["event_loop_watch_failed"]
    assert str(said[0]["exc_info"]) == "no histogram"


# -- the documentation ----------------------------------------------------------------------------


def test_every_metric_says_what_it_means_to_operators() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("| what you see |")[2].partition("\n\n")[0]
    declared = {metric.name for metric in declared_metrics()}
    assert len(declared) == len(declared_metrics()) >= 30
    assert _metrics_in(table) == declared
    assert _metrics_in(page) == declared
    assert f"lossd_queue_samples / {Settings().max_queue_samples}\n" in page
    for flag in re.findall(r"`--([\w-]+)`", page):
        assert flag.replace("-", "_") in Settings.model_fields, flag


def _metrics_in(text: str) -> set[str]:
    """Names of metrics, without the endings of the series that a histogram has."""
    histograms = {metric.name for metric in declared_metrics() if metric.kind == "histogram"}
    names = set(re.findall(r"lossd_\w+", text))
    bases = {name: name.rpartition("_")[0] for name in names}
    return {bases[name] if bases[name] in histograms else name for name in names}
