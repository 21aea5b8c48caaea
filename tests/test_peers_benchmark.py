"""The comparison with other serving systems, as far as it goes without them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import environments, load, wires
from benchmarks.peers.cases import CASES
from benchmarks.peers.comparison import Comparison, Options, Refusal
from benchmarks.peers.frame import (
    Answer,
    Sample,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from benchmarks.peers.measurements import Measurement, Steady, measured, steady
from benchmarks.peers.processes import Turn, family
from benchmarks.peers.reference import WrongAnswerError, check, reference
from benchmarks.peers.servers.job import SEPARATE, SHARED, Plain, with_torch
from benchmarks.peers.systems import LOSSD, PEERS, System
from benchmarks.peers.tables import best_peer, report
from benchmarks.report import Report

LOAD = Path(load.__file__)


def sample(*, classes: int = 3, size: tuple[int, int] = (4, 5), batch: int = 1) -> Sample:
    rng = np.random.default_rng(classes + size[0])
    logits = rng.normal(0, 2, (batch, classes, *size)).astype(np.float16)
    return Sample(logits, rng.integers(0, classes, (batch, *size), dtype=np.uint8))


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 9), st.integers(1, 9))
def test_a_frame_holds_what_was_put_in(batch: int, classes: int, height: int, width: int) -> None:
    sent = sample(batch=batch, classes=classes, size=(height, width))
    for got, put in zip(decode_request(encode_request(sent)), sent, strict=True):
        np.testing.assert_array_equal(got, put)
    values = np.arange(batch, dtype=np.float32)
    answer = Answer(values, values + 0.5, sent.logits)
    for got, put in zip(decode_answer(encode_answer(answer)), answer, strict=True):
        np.testing.assert_array_equal(got, put)


def test_the_reference_by_hand() -> None:
    # One pixel, two classes, logits 0 and log 3: p = (1/4, 3/4), the label is class 0.
    one = Sample(np.array([0, np.log(3)]).reshape(1, 2, 1, 1), np.zeros((1, 1, 1), np.uint8))
    got = reference(one)
    np.testing.assert_allclose(got.cross_entropy, [np.log(4)])
    # Dice of class 0: (2/4 + 1) / (1/4 + 1 + 1), of class 1: 1 / (3/4 + 0 + 1).
    np.testing.assert_allclose(got.dice, [1 - (1.5 / 2.25 + 1 / 1.75) / 2])


def test_the_reference_is_differentiated_rightly() -> None:
    given_sample = sample(batch=2)
    leaf = torch.from_numpy(given_sample.logits.astype(np.float64)).requires_grad_()
    labels = torch.from_numpy(given_sample.target).long()
    p = leaf.softmax(1)
    t = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    both, size = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    dice = 1 - ((2 * both + 1) / (size + 1)).mean(1)
    cross_entropy = torch.nn.functional.cross_entropy(leaf, labels, reduction="none").mean((1, 2))
    (gradient,) = torch.autograd.grad((dice + cross_entropy).sum(), leaf)
    got = reference(given_sample)
    np.testing.assert_allclose(got.cross_entropy, cross_entropy.detach())
    np.testing.assert_allclose(got.dice, dice.detach())
    np.testing.assert_allclose(got.gradient, gradient, atol=1e-15)


@pytest.mark.parametrize("plain", [SEPARATE, SHARED], ids=["separate", "shared"])
def test_the_peers_torch_answers_a_mixed_batch_in_order(plain: Plain) -> None:
    samples = [sample(size=size) for size in ((4, 5), (6, 3), (4, 5), (2, 2))]
    for answer, one in zip(with_torch(plain, samples), samples, strict=True):
        assert answer.gradient.dtype == np.float16
        check(answer, reference(one))


@pytest.mark.parametrize("name", Answer._fields)
def test_a_wrong_answer_is_found(name: str) -> None:
    expected = reference(sample())
    wrong = expected._replace(**{name: getattr(expected, name) + 0.01})
    with pytest.raises(WrongAnswerError, match=name):
        check(wrong, expected)


def test_an_answer_of_another_shape_or_without_numbers_is_found() -> None:
    expected = reference(sample())
    with pytest.raises(WrongAnswerError, match="shape"):
        check(expected._replace(dice=expected.dice[:0]), expected)
    with pytest.raises(WrongAnswerError, match="dice"):
        check(expected._replace(dice=expected.dice * np.nan), expected)


@pytest.mark.parametrize("system", [LOSSD, *PEERS], ids=lambda system: system.name)
def test_a_request_is_whole(system: System) -> None:
    wire = system.wire
    head, _, body = wire.request(sample()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == f"POST {wire.path} HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert int(headers["Content-Length"]) == len(body)
    assert headers["Accept-Encoding"] == "identity"
    assert sample().logits.tobytes() in body
    assert sample().target.tobytes() in body


def test_an_open_inference_answer_is_read() -> None:
    expected = Answer(
        np.array([0.25], np.float32),
        np.array([0.75], np.float32),
        np.arange(8, dtype=np.float16).reshape(1, 2, 2, 2),
    )
    # In an order of its own, with the axis that a model's scalar has.
    outputs = [
        {
            "name": name,
            "datatype": "FP16" if name == "gradient" else "FP32",
            "shape": [1, 1] if name != "gradient" else [1, 2, 2, 2],
            "parameters": {"binary_data_size": getattr(expected, name).nbytes},
        }
        for name in ("gradient", "dice", "cross_entropy")
    ]
    header = json.dumps({"model_name": "losses", "outputs": outputs}).encode()
    body = header + b"".join(getattr(expected, str(one["name"])).tobytes() for one in outputs)
    head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(header)}".encode()
    for got, put in zip(wires.OPEN_INFERENCE.decode(head, body), expected, strict=True):
        np.testing.assert_array_equal(got, put)
    with pytest.raises(ValueError, match="binary"):
        wires.OPEN_INFERENCE.decode(b"HTTP/1.1 200 OK", b"{}")


def test_mixed_sizes_differ_and_have_about_the_same_pixels() -> None:
    sizes = CASES[-1].sizes
    assert len(set(sizes)) == len(sizes) == len(CASES[0].samples())
    assert all(abs(height * width / 256**2 - 1) < 0.01 for height, width in sizes)


def turn(*spans: tuple[float, float], errors: dict[str, int] | None = None) -> Turn:
    return Turn(spans, Counter(errors or {}), "", processor_s=0.5)


def test_warm_up_and_what_ends_after_the_deadline_are_dropped() -> None:
    # Two connections: two answers warm up, three count, the last one came after second 3.
    spans = [(0.0, 1.0), (0.0, 1.0), (1.0, 2.0), (1.0, 2.0), (2.0, 2.5), (2.0, 3.5)]
    got = steady(turn(*spans), connections=2, seconds=3.0)
    assert got.latencies_ms == [1000.0, 1000.0, 500.0]
    assert got.requests_per_s == pytest.approx(3 / 1.5)


@pytest.mark.parametrize("spans", [[], [(0.0, 1.0)] * 2, [(0.0, 1.0), (0.0, 1.0), (1.0, 9.0)]])
def test_a_turn_without_steady_answers_has_no_rate(spans: list[tuple[float, float]]) -> None:
    got = steady(turn(*spans), connections=2, seconds=3.0)
    assert (list(got.latencies_ms), got.requests_per_s) == ([], 0.0)


def test_rounds_are_put_together() -> None:
    one = Measurement(
        [Steady([10.0], 10.0), Steady([20.0], 40.0), Steady([30.0], 20.0)], Counter(), 0.0
    )
    other = Measurement(
        [Steady([1.0], 5.0), Steady([1.0], 10.0), Steady([1.0], 10.0)], Counter(), 0.0
    )
    assert one.requests_per_s == 20.0
    assert one.ratio_to(other) == 2.0  # of 2, 4 and 2 within the rounds
    assert one.percentile_ms(50) == 20.0
    assert other.answers == 3


def test_errors_are_counted_and_the_generators_cost_is_shared_out() -> None:
    both = [turn((0.0, 1.0), errors={"503": 2}), turn((0.0, 1.0), errors={"503": 1})]
    got = measured(both, connections=1, seconds=1.0)
    assert got.errors == {"503": 3}
    assert got.generator_ms == pytest.approx(500.0)


def measurement(rate: float, latency_ms: float) -> Measurement:
    return Measurement([Steady([latency_ms], rate)], Counter(), 0.1)


def made_report(own: Measurement) -> Report:
    by_system = {"lossd": own, "mosec": measurement(10.0, 90.0), "ray": measurement(5.0, 80.0)}
    seen = Comparison(CASES, versions={"mosec": "1"})
    seen.measurements["shared"] = {case.name: by_system for case in CASES}
    seen.refusals.append(Refusal("bentoml", "shared", "not today"))
    options = Options(Path(), PEERS, ("shared",), threads=2, rounds=1, kernels="auto", quick=False)
    return report(seen, options)


def test_targets_are_judged_against_the_best_peer() -> None:
    assert all(target.met for target in made_report(measurement(51.0, 79.0)).targets)
    slow = made_report(measurement(49.0, 85.0)).targets
    assert [target.met for target in slow] == [True, False, False, False, False, False, True, False]
    assert not any(target.binding for target in slow)


def test_the_report_names_what_was_left_out_and_the_versions() -> None:
    found = made_report(measurement(51.0, 79.0))
    assert found.sections[-1].rows == [
        {"system": "bentoml", "core": "shared", "reason": "not today"}
    ]
    assert found.environment["mosec"] == "1"
    assert {row["lossd_ratio"] for row in found.sections[0].rows} == {1.0, 5.1, 10.2}


def test_the_best_peer_is_not_lossd_and_has_answered() -> None:
    silent = Measurement([Steady([], 0.0)], Counter({"503": 9}), 0.0)
    assert best_peer({"lossd": measurement(9.0, 1.0), "ray": silent}) is None


def test_every_peer_has_pinned_requirements() -> None:
    folder = Path(environments.__file__).with_name("requirements")
    assert {path.stem for path in folder.glob("*.txt")} == {peer.name for peer in PEERS}
    for peer in PEERS:
        lines = (folder / f"{peer.name}.txt").read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all("==" in line for line in pins)
        assert any(line.startswith(peer.distribution) for line in pins)


def test_versions_of_an_environment_are_read() -> None:
    found = environments.versions(Path(sys.executable), "numpy", "no-such-distribution")
    assert found == {"python": sys.version.split()[0], "numpy": np.__version__}


def test_an_environment_that_does_not_run_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(environments.UnavailableError):
        environments.versions(tmp_path / "python", "numpy")


def test_a_process_and_what_it_began_are_a_family() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:  # noqa: S603 - our own
        until = time.monotonic() + 20
        while len(family(process.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        found = family(process.pid)
        process.communicate(b"\n")
    assert len(found) == 2
    assert found[0] == process.pid


class Handler(BaseHTTPRequestHandler):
    """Answers frames; 503 every third time on `/refusing`, no length on `/endless`."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        refused = self.path == "/refusing" and type(self).asked % 3 == 0
        answer = (
            b"busy" if refused else encode_answer(with_torch(SHARED, [decode_request(body)])[0])
        )
        self.send_response(503 if refused else 200)
        if self.path == "/endless":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def answering() -> Iterator[int]:
    Handler.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def requests(path: str = "/predict") -> list[bytes]:
    wire = wires.Wire(path, wires.FRAME.encode, wires.FRAME.decode)
    return [wire.request(sample(size=(4, width))) for width in (3, 4, 5)]


def test_load_asks_again_and_again_over_kept_connections() -> None:
    with answering() as port:
        log = load.load(("127.0.0.1", port), requests(), connections=2, seconds=0.3)
    assert len(log.spans_s) == Handler.asked > 2
    assert all(end > start for start, end in log.spans_s)
    assert not log.errors


def test_load_counts_what_is_not_200() -> None:
    with answering() as port:
        log = load.load(("127.0.0.1", port), requests("/refusing"), connections=2, seconds=0.3)
    assert log.errors["503"] == Handler.asked // 3 > 0
    assert log.first_error == "503 busy"
    assert len(log.spans_s) + log.errors.total() == Handler.asked


def test_load_refuses_an_answer_without_a_length() -> None:
    with answering() as port:
        log, _ = load.ask_each(("127.0.0.1", port), requests("/endless"))
    assert log.errors == {"AnswerError": 3}


def test_load_tells_of_a_server_that_is_not_there() -> None:
    with answering() as port:
        pass
    log, _ = load.ask_each(("127.0.0.1", port), requests())
    assert log.errors == {"ConnectionRefusedError": 3}


def test_the_script_writes_answers_beside_requests(tmp_path: Path) -> None:
    for number, content in enumerate(requests()):
        (tmp_path / f"{number}.request").write_bytes(content)
    with answering() as port:
        command = [sys.executable, "-I", str(LOAD), "127.0.0.1", str(port), str(tmp_path), "--each"]
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    assert len(found["spans_s"]) == 3
    assert found["errors"] == {}
    for number, width in enumerate((3, 4, 5)):
        head, body = ((tmp_path / f"{number}.{part}").read_bytes() for part in ("head", "body"))
        check(wires.FRAME.decode(head, body), reference(sample(size=(4, width))))
