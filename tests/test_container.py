"""The image, built and run as docker-compose.yml says: `make container`."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import container_fixture
from container_fixture import ROOT, Container, run
from service_fixture import wait_until
from test_conformance import RUN as CONFORMANCE

pytestmark = pytest.mark.skipif(bool(container_fixture.absent()), reason=container_fixture.absent())

SMALL = {
    "losses": ["dice"],
    "task": "binary",
    "inputs": {"logits": [[[[2.0, -1.0], [0.5, -3.0]]]], "target": [[[1, 0], [1, 0]]]},
}


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    container_fixture.write_report(found)


@pytest.fixture(scope="module")
def image(figures: dict[str, Any]) -> dict[str, Any]:
    figures["build_s"] = round(container_fixture.build(), 1)
    found = container_fixture.inspect()
    figures["image_mib"] = round(found["Size"] / 2**20, 1)
    figures["layers"] = [
        {"size": size, "command": " ".join(command.split())[:100]}
        for size, command in container_fixture.layers()
        if not size.startswith("0B")
    ]
    return found


@pytest.fixture(scope="module")
def container(image: dict[str, Any], figures: dict[str, Any]) -> Iterator[Container]:
    del image
    running = Container(port=18437)
    running.remove()
    try:
        figures["first_start_ready_s"] = round(running.start(), 1)
        yield running
    finally:
        running.remove()


def test_the_image_says_what_it_is_and_when_it_is_ready(image: dict[str, Any]) -> None:
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert "/health/ready" in str(config["Healthcheck"]["Test"])
    assert config["Labels"]["org.opencontainers.image.title"] == "lossd"
    assert list(config["Volumes"]) == ["/var/cache/lossd"]
    assert "LOSSD_ALLOW_ANONYMOUS" not in str(config["Env"])


@pytest.mark.usefixtures("image")
def test_the_image_holds_no_test_no_build_tool_of_ours_and_no_download() -> None:
    # Two of them are not there, and what find says of that may cut a path of the others in two.
    everything = _in_image("sh", "-c", "find /opt /build /root /app -type f 2>/dev/null")
    ours = [path for path in everything.splitlines() if "/lossd" in path.partition("/lib/")[2]]
    assert any(path.endswith("/lossd/core/tiles.py") for path in ours)
    assert not [path for path in ours if "test" in path]
    unwanted = (".whl", "/hatchling/", "/pytest/", "/.cache/pip/", ".env", "pip.conf")
    in_opt = [path for path in everything.splitlines() if path.startswith("/opt/lossd/")]
    assert not [path for path in in_opt if any(word in path for word in unwanted)]
    assert not [path for path in in_opt if "/tests/" in path or "/test/" in path]
    assert not [path for path in everything.splitlines() if path.startswith(("/build", "/app"))]


@pytest.mark.usefixtures("image")
def test_the_image_alone_refuses_to_listen_to_everybody() -> None:
    done = run("docker", "run", "--rm", container_fixture.IMAGE, check=False)
    assert done.returncode == 2
    assert "--allow-anonymous" in done.stdout


def test_it_is_not_root_and_writes_nowhere_but_into_its_cache(container: Container) -> None:
    assert container.inside("id", "-u").strip() == "10001"
    for folder in ("/", "/opt/lossd", "/etc", "/opt/lossd-kernels"):
        assert "Read-only file system" in container.inside("touch", f"{folder}/x", check=False)
    assert container.inside("touch", "/var/cache/lossd/written") == ""
    assert "CapEff:\t0000000000000000" in container.inside("cat", "/proc/1/status")


def test_it_starts_with_the_kernels_of_the_image(container: Container) -> None:
    assert '"kernels_seeded"' in container.logs()
    assert httpx.get(f"{container.url}/health/ready").json()["device"] == "cpu (compiled)"


def test_it_has_its_page(container: Container) -> None:
    page = httpx.get(f"{container.url}/", headers={"Accept": "text/html"})
    assert "page/page.js" in page.text
    assert "dice" in httpx.get(f"{container.url}/page/curves.json").json()


@pytest.mark.skipif(
    not CONFORMANCE.exists(), reason="the conformance cases are not beside the repository"
)
def test_it_passes_every_conformance_case(container: Container) -> None:
    done = run(sys.executable, str(CONFORMANCE), container.url, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


def test_the_demo_runs_against_it(container: Container, tmp_path: Any) -> None:
    demo = [sys.executable, "examples/demo.py", "--url", container.url, "--out", str(tmp_path)]
    done = subprocess.run(  # noqa: S603 - our own
        demo, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report" / "report.html").exists()


def test_sigterm_loses_nothing_that_was_accepted_and_ends_in_time(
    container: Container, figures: dict[str, Any]
) -> None:
    answers = _Askers(container.url)
    with answers:
        wait_until(lambda: len(answers.statuses) > 50)
        figures["stop_s"] = round(container.stop(), 1)
    state = container.state()
    assert (state["Running"], state["ExitCode"], state["OOMKilled"]) == (False, 0, False)
    assert figures["stop_s"] < 45  # compose's stop_grace_period, after which it kills
    assert set(answers.statuses.values()) <= {200, 503}
    # A connection may be cut that docker's proxy took and the service never saw. What the service
    # saw has a line in its log, and must have come back.
    lines = [json.loads(line) for line in container.logs().splitlines() if line.startswith("{")]
    seen = {line["request_id"]: line["status"] for line in lines if line["event"] == "request"}
    asked = {name: status for name, status in seen.items() if name.startswith(_Askers.PREFIX)}
    assert len(asked) > 50
    assert asked == {name: answers.statuses.get(name) for name in asked}
    assert [line["complete"] for line in lines if line["event"] == "drained"] == [True]


def test_it_starts_again_from_the_volume(container: Container, figures: dict[str, Any]) -> None:
    figures["second_start_ready_s"] = round(container.start(), 1)
    assert container.logs().count('"kernels_seeded"') == 1
    # The compiler's header is kept beside the kernels and not in memory.
    assert container.inside("find", "/tmp", "-type", "f") == ""  # noqa: S108 - the container's
    assert container.inside("ls", "/var/cache/lossd/written").strip()
    assert httpx.post(f"{container.url}/v1/evaluate", json=SMALL).is_success


def _in_image(*command: str) -> str:
    entrypoint, *rest = command
    options = ["--rm", "--user", "0", "--entrypoint", entrypoint]
    return run("docker", "run", *options, container_fixture.IMAGE, *rest, check=False).stdout


class _Askers:
    """Threads that ask without a pause until they are told to stop."""

    PREFIX = "asker-"

    def __init__(self, url: str, count: int = 4) -> None:
        self.statuses: dict[str, int] = {}
        """Of every request that had an answer, by its id."""
        self._url = url
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        for count in itertools.count():
            if self._done.is_set():
                return
            name = f"{self.PREFIX}{number}-{count}"
            try:
                # A connection each: on a kept one the server may rightly hang up between requests.
                answer = httpx.post(
                    f"{self._url}/v1/evaluate", json=SMALL, headers={"X-Request-ID": name}
                )
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                self.statuses[name] = answer.status_code
