"""The load tests know right answers beforehand, and fail when a threshold is missed."""

from __future__ import annotations

import http.server
import importlib.util
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from loadtests import report as reports
from loadtests import run, thresholds
from loadtests.answers import (
    Case,
    NobodyWaits,
    Refused,
    Reply,
    Right,
    UnexpectedAnswerError,
)
from loadtests.arrivals import OPEN_MODELS, offsets_s
from loadtests.recording import Recording, Timing, percentile, read_recording
from loadtests.scenarios import MIXES, SCENARIOS, Scenario, mix_of, shares, stream
from loadtests.thresholds import TAIL
from loadtests.transport import send_as_told
from lossd_client.errors import ERRORS
from lossd_client.wire import JSON, SAFETENSORS
from service_fixture import Served

ROOT = Path(__file__).parents[1]
ID = "one-of-the-load-test"
NAMES = [one.name for one in SCENARIOS]
GOOD = [one.name for one in SCENARIOS if one.kind == "asked"]
needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="loadtests/requirements.txt"
)


def scenario(name: str) -> Scenario:
    return next(one for one in SCENARIOS if one.name == name)


def send(served: Served, one: Scenario, case: Case) -> Reply | None:
    headers = {"Content-Type": one.content_type, "X-Request-ID": ID}
    return send_as_told(str(served.client.base_url).rstrip("/"), case, headers)


@pytest.mark.parametrize("name", NAMES)
def test_every_case_is_answered_as_the_table_says(served: Served, name: str) -> None:
    one, small = scenario(name), scenario("small_json")
    for case in one.cases:
        case.answer.check(send(served, one, case), ID)
        small.cases[0].answer.check(send(served, small, small.cases[0]), ID)


@pytest.mark.parametrize("name", GOOD)
def test_an_answer_to_one_body_is_wrong_for_every_other(served: Served, name: str) -> None:
    one = scenario(name)
    replies = [send(served, one, case) for case in one.cases]
    for index, case in enumerate(one.cases):
        for other, reply in enumerate(replies):
            if other != index:
                with pytest.raises(UnexpectedAnswerError, match="wrong loss/"):
                    case.answer.check(reply, ID)


def test_a_value_off_by_two_in_the_fourth_digit_is_wrong(served: Served) -> None:
    one = scenario("small_json")
    case = one.cases[0]
    reply = send(served, one, case)
    assert isinstance(case.answer, Right)
    for name, value in case.answer.values.items():
        off = replace(case.answer, values={**case.answer.values, name: value + 2e-4})
        with pytest.raises(UnexpectedAnswerError, match=f"wrong loss/{name}"):
            off.check(reply, ID)


@pytest.mark.parametrize("name", ["safetensors_256x256x4", "mixed_sizes"])
def test_a_gradient_of_another_pixel_is_wrong(served: Served, name: str) -> None:
    one = scenario(name)
    case = one.cases[0]
    assert isinstance(case.answer, Right)
    last = case.answer.gradients[-1]
    moved = replace(last, pixels=np.roll(last.pixels, 1))
    off = replace(case.answer, gradients=[*case.answer.gradients[:-1], moved])
    with pytest.raises(UnexpectedAnswerError, match=r"wrong .*gradient/logits"):
        off.check(send(served, one, case), ID)


ANSWER = Right({"dice": np.array([0.5])})
RIGHT_BODY = {"losses": {"dice": [0.5]}, "total": [0.5]}


def reply(
    body: object = RIGHT_BODY, status: int = 200, content_type: str = JSON, request_id: str = ID
) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {"content-type": content_type, "x-request-id": request_id}, data)


def test_a_right_answer_is_right() -> None:
    ANSWER.check(reply(), ID)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (None, "no answer"),
        (reply(request_id="another"), "another request's id"),
        (reply({"code": "queue_full"}, 429), "429 queue_full instead of 200"),
        (reply(b"<html>", 502), "502 instead of 200"),
        (reply(b"<html>"), "cannot be read"),
        (reply(b"\0\0", content_type=SAFETENSORS), "cannot be read"),
        (reply([1]), "cannot be read"),
        (reply({"losses": {}, "total": [0.5]}), "without loss/dice"),
        (reply({"losses": {"dice": [None]}, "total": [0.5]}), "wrong loss/dice"),
        (reply({"losses": {"dice": [0.5, 0.5]}, "total": [0.5]}), "wrong loss/dice"),
        (reply({"losses": {"dice": [0.5]}, "total": [0.6]}), "wrong total"),
    ],
)
def test_an_answer_that_is_not_right_is_a_failure(given: Reply | None, kind: str) -> None:
    with pytest.raises(UnexpectedAnswerError, match=kind):
        ANSWER.check(given, ID)


PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (reply(), "200 instead of 422"),
        (reply({"code": "malformed_body"}, 400, PROBLEM), "400 malformed_body instead of 422"),
        (reply({"code": "invalid_input"}, 422, PROBLEM), "not as non_finite_logits"),
        (reply({"code": "non_finite_logits"}, 422), "not as non_finite_logits"),
        (reply({"code": "non_finite_logits"}, 422, PROBLEM, "another"), "another request's id"),
    ],
)
def test_a_refusal_of_another_kind_is_a_failure(given: Reply, kind: str) -> None:
    answer = Refused(422, "non_finite_logits")
    answer.check(reply({"code": "non_finite_logits"}, 422, PROBLEM), ID)
    with pytest.raises(UnexpectedAnswerError, match=kind):
        answer.check(given, ID)


def test_an_answer_where_nobody_waits_is_a_failure() -> None:
    with pytest.raises(UnexpectedAnswerError):
        NobodyWaits().check(reply(), ID)


def test_abuse_expects_status_and_code_that_belong_together() -> None:
    expected = [case.answer for one in SCENARIOS if one.kind == "refused" for case in one.cases]
    for answer in expected:
        assert isinstance(answer, Refused)
        assert answer.code is None or ERRORS[answer.code].status == answer.status
        assert 400 <= answer.status < 500


def test_abuse_is_small() -> None:
    for one in SCENARIOS:
        if one.kind != "asked":
            assert all(len(case.body) < 64 << 10 for case in one.cases), one.name


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_is_sent_by_its_shares(name: str) -> None:
    by_share = shares(MIXES[name])
    assert sum(by_share.values()) == pytest.approx(1)
    sent = Counter(one.name for one, _ in islice(stream(by_share, "by_share"), 1000))
    assert sent.keys() == by_share.keys()
    for one, share in by_share.items():
        assert sent[one] == pytest.approx(1000 * share, abs=3)


def test_every_scenario_is_part_of_a_mix() -> None:
    assert {name for mix in MIXES.values() for name in shares(mix)} == set(NAMES)


def test_abuse_has_the_share_that_was_asked_for() -> None:
    by_share = shares(mix_of("small", 40.0))
    assert by_share.pop("small_json") == pytest.approx(0.6)
    assert len(by_share) == len(NAMES) - len(GOOD)
    assert shares(mix_of("abuse", 0.0)).keys() == set(GOOD)


def test_in_turn_sends_each_once_before_any_twice() -> None:
    names = [one.name for one, _ in islice(stream(shares(MIXES["abuse"]), "in_turn"), 40)]
    assert names == NAMES * 2


def test_a_scenario_sends_its_bodies_one_after_the_other() -> None:
    cases = [case for _, case in islice(stream({"small_json": 1.0}, "by_share"), 8)]
    assert cases == [*scenario("small_json").cases] * 2


def test_a_constant_rate_is_evenly_spaced_and_does_not_drift() -> None:
    offsets = list(islice(offsets_s("constant", 30.0, seed=1), 3001))
    assert offsets[0] == 0
    assert offsets[3000] == 100
    np.testing.assert_allclose(np.diff(offsets), 1 / 30, rtol=1e-9)


def test_poisson_arrivals_have_their_rate_and_no_rhythm() -> None:
    gaps = np.diff(list(islice(offsets_s("poisson", 30.0, seed=1), 20_001)))
    assert gaps.mean() == pytest.approx(1 / 30, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 30, rel=0.05)


def test_a_closed_loop_has_no_schedule() -> None:
    with pytest.raises(ValueError, match="closed"):
        offsets_s("closed", 30.0, seed=1)


def test_a_percentile_is_a_measured_value() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2
    assert percentile([4.0, 1.0, 3.0, 2.0], 99) == 4
    assert percentile(list(range(1, 201)), 99) == 198
    assert math.isnan(percentile([], 99))


def recording(
    latencies_ms: Mapping[str, Sequence[float]], *, every_s: float = 0.1, late_ms: float = 0.0
) -> Recording:
    made = Recording()
    for name, latencies in latencies_ms.items():
        for count, latency_ms in enumerate(latencies):
            due_s = 100 + count * every_s
            begun_s = due_s + count * late_ms / 1e3
            made.add(name, Timing(due_s, begun_s, due_s + latency_ms / 1e3), None)
    return made


def test_a_latency_counts_from_when_a_request_was_due() -> None:
    timing = Timing(due_s=10.0, begun_s=12.0, ended_s=12.5)
    assert (timing.latency_ms, timing.late_ms) == (2500, 2000)


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = recording({"small_json": [1.0, 2.0], "nan_logits": [3.0]}, late_ms=4.0)
    error = UnexpectedAnswerError("wrong total", "0.6, not 0.5")
    made.add("small_json", Timing(105, 105, 105.5), error)
    made.write(tmp_path / "recording")
    assert read_recording(tmp_path / "recording") == made
    assert (made.requests, made.failed, made.elapsed_s) == (4, 1, 5.5)


def test_an_open_model_waits_for_what_is_being_served() -> None:
    unloaded = recording({"small_json": [2.0, 2.0, 9.0], "multipart": [10.0]})
    by_share = {"small_json": 0.75, "multipart": 0.25}
    for model in OPEN_MODELS:
        found = thresholds.references_ms(unloaded, by_share, model, users=16)
        before = (0.75 * 4 + 0.25 * 100) / (0.75 * 2 + 0.25 * 10)
        assert found == pytest.approx({"small_json": 2 + before, "multipart": 10 + before})


def test_a_closed_loop_waits_for_every_other_user() -> None:
    unloaded = recording({"small_json": [2.0], "multipart": [10.0]})
    by_share = {"small_json": 0.75, "multipart": 0.25}
    found = thresholds.references_ms(unloaded, by_share, "closed", users=3)
    assert found == pytest.approx({"small_json": 2 + 2 * 4, "multipart": 10 + 2 * 4})
    alone = thresholds.references_ms(unloaded, by_share, "closed", users=1)
    assert alone == pytest.approx({"small_json": 2, "multipart": 10})


UNLOADED = recording({"small_json": [2.0] * 10, "multipart": [10.0] * 10})
REFERENCES = {"small_json": 5.0, "multipart": 12.0}
LOAD = {"small_json": [24.0] * 100, "multipart": [59.0] * 100}


def judged(load: Recording, rate_per_s: float | None = 10.0) -> list[thresholds.Verdict]:
    phases = {"unloaded": UNLOADED, "load": load}
    return thresholds.judge(phases, REFERENCES, ratio=5.0, rate_per_s=rate_per_s)


def missed(verdicts: list[thresholds.Verdict]) -> set[tuple[str, str]]:
    return {(verdict.threshold, verdict.subject) for verdict in verdicts if not verdict.met}


def test_a_load_within_its_bounds_misses_no_threshold() -> None:
    assert missed(judged(recording(LOAD))) == set()


def test_two_slow_answers_in_a_hundred_miss_the_bound_and_one_does_not() -> None:
    one, two = [24.0] * 99 + [26.0], [24.0] * 98 + [26.0] * 2
    assert missed(judged(recording({**LOAD, "small_json": one}))) == set()
    assert missed(judged(recording({**LOAD, "small_json": two}))) == {(TAIL, "small_json")}


@pytest.mark.parametrize("phase", ["unloaded", "load"])
def test_one_wrong_answer_in_any_phase_misses_a_threshold(phase: str) -> None:
    wrong = recording(LOAD)
    error = UnexpectedAnswerError("wrong total", "")
    wrong.add("small_json", Timing(101, 101, 101.002), error)
    phases = {"unloaded": recording(LOAD), "load": recording(LOAD), phase: wrong}
    verdicts = thresholds.judge(phases, REFERENCES, ratio=5.0, rate_per_s=None)
    assert missed(verdicts) == {("unexpected answers", phase)}


def test_a_scenario_that_was_not_sent_misses_its_thresholds() -> None:
    verdicts = judged(recording({"small_json": LOAD["small_json"]}))
    assert missed(verdicts) == {("requests sent", "multipart"), (TAIL, "multipart")}


def test_without_an_unloaded_latency_no_bound_is_met() -> None:
    unloaded = recording({"small_json": [2.0]})
    references = thresholds.references_ms(
        unloaded, {"small_json": 0.5, "multipart": 0.5}, "constant", users=1
    )
    phases = {"unloaded": unloaded, "load": recording(LOAD)}
    verdicts = thresholds.judge(phases, references, ratio=5.0, rate_per_s=None)
    assert missed(verdicts) == {(TAIL, "small_json"), (TAIL, "multipart")}


def test_a_generator_that_falls_behind_misses_its_rate() -> None:
    slow = recording(LOAD, every_s=0.2, late_ms=20.0)  # each request 20 ms later than the last
    assert missed(judged(slow)) == {("share of the rate", "load")}
    assert missed(judged(slow, rate_per_s=None)) == set()


def test_who_hangs_up_has_no_latency_to_bound() -> None:
    load = recording({"hung_up_in_the_body": [1e6]})
    verdicts = thresholds.judge(
        {"load": load}, {"hung_up_in_the_body": 1.0}, ratio=5.0, rate_per_s=None
    )
    assert missed(verdicts) == set()
    assert TAIL not in {verdict.threshold for verdict in verdicts}


def report(load: Recording) -> reports.Report:
    return reports.Report(
        started="2026-01-01T00:00:00+00:00",
        service={"url": "http://127.0.0.1:1"},
        generator=reports.describe_generator(),
        mix={"name": "everything", "abuse_percent": 0.0, "shares": {}},
        model={"name": "constant", "users": 16, "rate_per_s": 10.0, "load_percent": None},
        phases={"unloaded": UNLOADED, "load": load},
        references_ms=REFERENCES,
        verdicts=judged(load),
    )


def readme_table(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, code marks removed."""
    text = (ROOT / "loadtests" / "README.md").read_text(encoding="utf-8")
    below = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def entries(document: Any, path: str) -> list[Any]:
    """What a document holds at a dotted path, in which `*` is every entry."""
    found = [document]
    for key in filter(None, path.split(".")):
        if key == "*":
            found = [
                entry for one in found for entry in (one.values() if isinstance(one, dict) else one)
            ]
        else:
            found = [one[key] for one in found]
    return found


def failing_load() -> Recording:
    load = recording(LOAD)
    error = UnexpectedAnswerError("wrong total", "0.6, not 0.5")
    load.add("multipart", Timing(101, 101, 101.002), error)
    return load


@needs_locust
def test_the_json_report_has_what_the_readme_says(tmp_path: Path) -> None:
    reports.write(report(failing_load()), tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    described: dict[str, set[str]] = {}
    for path, _ in readme_table("The JSON report"):
        keys = path.split(".")
        for depth, key in enumerate(keys):
            described.setdefault(".".join(keys[:depth]), set()).add(key)
    assert described
    for parent, children in described.items():
        if children != {"*"}:
            assert {frozenset(entry) for entry in entries(document, parent)} == {
                frozenset(children)
            }, parent


@needs_locust
def test_the_report_tells_a_failed_load_and_what_was_not_measured() -> None:
    document = report(failing_load()).document()
    assert not document["passed"]
    found = document["phases"]["load"]["scenarios"]["multipart"]
    assert found["failures"] == {"wrong total": {"count": 1, "example": "0.6, not 0.5"}}
    assert (found["requests"], found["failed"], found["p99_ms"]) == (101, 1, 59)
    empty = report(Recording()).document()
    assert {one["measured"] for one in empty["thresholds"] if one["threshold"] == TAIL} == {None}
    assert not empty["passed"]


@needs_locust
def test_people_see_failures_and_missed_thresholds() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    reports.show(report(failing_load()), console)
    text = console.export_text()
    assert "load multipart: 1 times wrong total: 0.6, not 0.5" in text
    assert "MISSED unexpected answers of load: at most 0, measured 1" in text
    assert "FAILED" in text


def test_the_readme_lists_the_scenarios_and_mixes() -> None:
    listed = {row[0]: int(row[1]) for row in readme_table("Scenarios")}
    assert listed == {one.name: one.share for one in SCENARIOS}
    assert {row[0] for row in readme_table("Mixes")} == MIXES.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mix", "unheard"],
        ["--model", "closed", "--rate", "10"],
        ["--url", "localhost:8000"],
        ["--seconds", "0"],
        ["--ratio", "nan"],
        ["--abuse-percent", "101"],
        ["--users", "some"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2


def test_load_needs_neither_torch_nor_the_service() -> None:
    absent = ["torch", "lossd", "benchmarks"]
    modules = [path.stem for path in (ROOT / "loadtests").glob("*.py")]
    if importlib.util.find_spec("locust") is None:
        modules.remove("locustfile")
    assert "run" in modules
    text = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    text += "".join(f"import loadtests.{name}\n" for name in modules)
    done = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def load_test(url: str, out: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, report and output of a load test of a few seconds."""
    command = [sys.executable, "loadtests/run.py", "--url", url, "--out", str(out)]
    command += ["--mix", "small", "--seconds", "1", "--baseline-seconds", "1", *more]
    done = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (out / "report.json").exists(), done.stdout + done.stderr
    return done.returncode, json.loads((out / "report.json").read_text()), done.stdout


# How fast a busy machine is must not decide here, so any ratio is good enough.
GENEROUS = ("--ratio", "1e9")


@needs_locust
def test_a_load_that_is_answered_rightly_passes(served: Served, tmp_path: Path) -> None:
    url = str(served.client.base_url)
    status, document, output = load_test(url, tmp_path, "--model", "closed", *GENEROUS)
    assert (status, document["passed"]) == (0, True), output
    assert document["phases"]["load"]["scenarios"]["small_json"]["requests"] > 0
    assert document["service"]["url"] == url.rstrip("/")
    for phase in ("unloaded", "load"):
        assert "<html" in (tmp_path / f"{phase}.html").read_text()


@needs_locust
def test_an_open_model_does_not_wait_for_answers_and_loses_none(tmp_path: Path) -> None:
    asked: list[str] = []
    with liar(asked, takes_s=0.5) as url:
        _, document, output = load_test(url, tmp_path, "--model", "constant", "--rate", "20")
    phases = document["phases"]
    assert list(phases) == ["unloaded", "load"], output
    assert phases["unloaded"]["requests"] <= 3  # one after the other
    assert phases["load"]["requests"] >= 10  # of twenty that are due
    assert phases["unloaded"]["requests"] + phases["load"]["requests"] == len(asked)


@needs_locust
def test_a_load_that_is_answered_wrongly_fails(tmp_path: Path) -> None:
    with liar([]) as url:
        status, document, output = load_test(url, tmp_path, "--model", "closed", "--users", "2")
    assert (status, document["passed"]) == (1, False), output
    failures = document["phases"]["load"]["scenarios"]["small_json"]["failures"]
    assert set(failures) == {"wrong loss/dice"}


@contextmanager
def liar(asked: list[str], takes_s: float = 0.0) -> Iterator[str]:
    """A service that is always ready, gives everyone the same numbers and notes their ids."""
    body = json.dumps({"losses": {"dice": [0.25], "cross_entropy": [1.0]}, "total": [1.25]})

    class Liar(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.headers["X-Request-ID"])
            time.sleep(takes_s)
            self.answer(body.encode())

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", JSON)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Request-ID", self.headers.get("X-Request-ID", ""))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
