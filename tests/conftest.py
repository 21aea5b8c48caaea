"""What all tests share: their order, and services, in a process of their own and in this one."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import structlog

import service_fixture
from browser_fixture import browser as browser  # noqa: PLC0414 - a fixture of pages' tests
from browser_fixture import tab as tab  # noqa: PLC0414 - likewise
from core_fixture import core as core  # noqa: PLC0414 - a fixture of every test
from lossd import engine
from service_fixture import Process, Served

# Log lines of services in this process go where pytest captures them; drawing the tensors of every
# frame of a traceback would take seconds.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("lossd", deadline=None)
hypothesis.settings.load_profile("lossd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in an order in which two processes are busy; `-n` has to keep it.

    The first that needs kernels comes first, and its process compiles them for minutes; the other
    process gets the files that need none meanwhile. Among either, those with most tests come first.
    """
    counts = Counter(item.path for item in items)
    needing = {item.path for item in items if _uses(item, "core")}
    first = max(needing, key=counts.__getitem__, default=None)

    def order(item: pytest.Item) -> tuple[bool, bool, int, Path]:
        path = item.path
        return path != first, path in needing, -counts[path], path

    items.sort(key=order)
    for item in items:
        if _uses(item, "tab"):
            # A browser is a dozen processes, one of which now and then loses something on a busy
            # machine. What is wrong with a page fails twice, and the summary names the first time.
            item.add_marker(pytest.mark.flaky(reruns=1))


def _uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def _no_canary_by_the_clock() -> Iterator[None]:
    """Engines of this process run their known job only where a test asks for it.

    Tests put something else in the place of `evaluate`, which an idle engine of others would meet.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "CANARY_EVERY_S", 3600.0)
        patch.setattr(engine, "STALE_AFTER_S", 7200.0)
        yield


@pytest.fixture(scope="session")
def service_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`lossd serve` in a process of its own, ready."""
    with service_fixture.process(tmp_path_factory.mktemp("lossd")) as running:
        yield running


@pytest.fixture(scope="session")
def service_url(service_process: Process) -> str:
    """Address of a real service."""
    return service_process.url


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service in this process, with its engine."""
    with service_fixture.serving(cache_dir=Path(tmp_path_factory.mktemp("lossd"))) as running:
        yield running


@pytest.fixture
def app_client(served: Served) -> service_fixture.Caller:
    """Calls the service in this process."""
    return served.client


@pytest.fixture
def headers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads were in numpy's reader of `.npy` headers at a time, for each that was.

    Two at a time fail now and then in some versions of CPython: python/cpython#106905.
    """
    read, inside, seen = np.lib.format.read_array_header_1_0, list[None](), list[int]()

    def slow(*arguments: Any) -> Any:
        inside.append(None)
        seen.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return read(*arguments)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    return seen
