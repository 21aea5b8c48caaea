"""What operators see: health, limits, metrics, documents, logs, settings, the command, SIGTERM."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from lossd import __version__
from lossd.losses import LOSSES
from lossd.settings import Settings
from lossd_client.errors import ERRORS
from lossd_client.wire import SAFETENSORS
from service_fixture import (
    Caller,
    Process,
    environment,
    lossd,
    process,
    safetensors,
    tensor,
    wait_until,
)

LOGITS = np.zeros((2, 3, 4, 5), np.float32)
LABELS = np.zeros((2, 4, 5), np.uint8)
REQUEST = {
    "losses": ["dice", "focal"],
    "inputs": {"logits": tensor(LOGITS), "target": tensor(LABELS)},
}


def test_a_service_is_alive_and_ready(app_client: Caller) -> None:
    assert app_client.get("/health/live").json() == {"status": "live"}
    ready = app_client.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["device"] == "cpu (eager)"
    assert ready["numerics_version"]


def test_the_index_says_where_things_are(app_client: Caller) -> None:
    index = app_client.get("/").json()
    assert (index["name"], index["version"], index["state"]) == ("lossd", __version__, "ready")
    for key in ("catalogue", "limits", "docs", "metrics"):
        app_client.get(index[key]).raise_for_status()
    assert app_client.get(index["evaluate"]).status_code == 405


def test_limits_are_the_settings(app_client: Caller) -> None:
    limits = app_client.get("/v1/limits").json()
    defaults = Settings()
    assert limits["body_bytes"] == defaults.max_body_mib << 20
    assert limits["samples"] == defaults.max_request_samples
    assert limits["classes"] == defaults.max_classes
    assert limits["timeout_ms"] == defaults.timeout_ms
    assert limits["queue_bytes"] == defaults.max_queue_mib << 20
    assert SAFETENSORS in limits["content_types"]


def test_server_timing_names_the_stages(app_client: Caller) -> None:
    answer = app_client.evaluate(REQUEST)
    header = answer.headers["server-timing"]
    assert re.fullmatch(r"(\w+;dur=[\d.]+(, |$))+", header)
    entries = dict(re.findall(r"(\w+);dur=([\d.]+)", header))
    assert list(entries) == ["receive", "read", "queue", "compute", "write", "total"]
    *parts, total = map(float, entries.values())
    assert sum(parts) == pytest.approx(total, abs=0.01)
    assert answer.headers["content-length"] == str(len(answer.content))


def test_the_catalogue_lists_every_loss(app_client: Caller) -> None:
    entries = app_client.get("/v1/losses").json()
    assert [entry["name"] for entry in entries] == sorted(LOSSES)
    for entry in entries:
        assert app_client.get(f"/v1/losses/{entry['name']}").json() == entry
        assert entry["summary"].endswith(".")
        assert entry["formula"]
        assert entry["reference"]["url"].startswith("https://")
        assert set(entry["tasks"]) <= {"binary", "multiclass", "multilabel"}
        assert "value" in entry["returns"]
        for schema in entry["parameters"]["properties"].values():
            assert schema["description"]
            assert "default" in schema


def test_an_alias_finds_its_loss(app_client: Caller) -> None:
    assert app_client.get("/v1/losses/iou").json()["name"] == "jaccard"


def test_the_openapi_document_describes_the_evaluation_and_its_problems(
    app_client: Caller,
) -> None:
    document = app_client.get("/openapi.json").json()
    assert {"/v1/evaluate", "/v1/losses", "/v1/limits", "/health/ready", "/metrics"} <= set(
        document["paths"]
    )
    evaluate = document["paths"]["/v1/evaluate"]["post"]
    assert set(evaluate["requestBody"]["content"]) == {
        "application/json",
        SAFETENSORS,
        "multipart/form-data",
    }
    for code, error in ERRORS.items():
        if error.status:
            assert code in evaluate["responses"][str(error.status)]["description"]
    example = evaluate["requestBody"]["content"]["application/json"]["example"]
    app_client.evaluate(example).raise_for_status()
    assert "lossd" in app_client.get("/docs").text


# -- a real process -------------------------------------------------------------------------------


def test_a_real_process_answers(service_url: str) -> None:
    answer = httpx.post(f"{service_url}/v1/evaluate", json=REQUEST)
    assert answer.json()["losses"]["dice"] == pytest.approx([2 / 3 - 1 / 6] * 2, abs=1e-3)


def test_log_lines_are_json_with_the_id_and_without_the_data(service_process: Process) -> None:
    logits = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
    encoded = tensor(logits)
    request = {**REQUEST, "inputs": {"logits": encoded, "target": tensor(LABELS)}}
    url = f"{service_process.url}/v1/evaluate"
    httpx.post(url, json=request, headers={"X-Request-ID": "good"}).raise_for_status()
    httpx.post(url, json={**request, "task": encoded["base64"]}, headers={"X-Request-ID": "bad"})
    wait_until(lambda: any('"bad"' in line for line in service_process.lines))
    events = {event.get("request_id"): event for event in service_process.events}
    assert events["good"]["event"] == "request"
    assert events["good"]["path"] == "/v1/evaluate"
    assert (events["good"]["status"], events["good"]["code"]) == (200, "ok")
    assert events["good"]["samples"] == 2
    assert (events["bad"]["status"], events["bad"]["code"]) == (422, "invalid_input")
    assert all({"event", "level", "timestamp"} <= set(event) for event in service_process.events)
    everything = "\n".join(service_process.lines)
    for start in range(0, len(encoded["base64"]) - 24, 24):
        assert encoded["base64"][start : start + 24] not in everything


def test_one_id_leads_from_the_request_to_its_batch(tmp_path: Path) -> None:
    with process(tmp_path, "--log-level", "debug") as running:
        url = f"{running.url}/v1/evaluate"
        httpx.post(url, json=REQUEST, headers={"X-Request-ID": "mine"}).raise_for_status()
        httpx.post(url, json=REQUEST, headers={"X-Request-ID": "other"}).raise_for_status()
        wait_until(lambda: sum('"batch"' in line for line in running.lines) == 2)
        of_mine = [
            event
            for event in running.events
            if event.get("request_id") == "mine" or "mine" in event.get("request_ids", [])
        ]
        request = next(event for event in of_mine if event["event"] == "request")
        batch = next(event for event in of_mine if event["event"] == "batch")
        assert running.stop() == 0
    assert (request["code"], request["samples"]) == ("ok", 2)
    assert batch["request_ids"] == ["mine"]
    assert (batch["reason"], batch["samples"], batch["tiles"]) == ("idle", 2, 2)
    assert 0 < batch["ms"] < request["ms"]
    assert "trace_id" not in request


def test_batches_are_no_lines_unless_asked_for(service_process: Process) -> None:
    httpx.post(f"{service_process.url}/v1/evaluate", json=REQUEST, headers={"X-Request-ID": "few"})
    wait_until(lambda: any('"few"' in line for line in service_process.lines))
    assert {"batch"}.isdisjoint(event["event"] for event in service_process.events)


def test_a_body_that_is_no_http_does_not_stop_the_service(service_process: Process) -> None:
    import socket  # noqa: PLC0415 - only here

    host, port = service_process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in connection.recv(4096)
    assert httpx.get(f"{service_process.url}/health/ready").is_success


def test_sigterm_answers_what_is_in_flight_and_takes_no_more(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(24, 4, 256, 256)).astype(np.float32)
    target = rng.integers(0, 4, (24, 256, 256)).astype(np.uint8)
    body = safetensors({"losses": ["dice_ce", "focal"]}, {"logits": logits, "target": target})
    headers = {"Content-Type": SAFETENSORS}
    answers: list[httpx.Response] = []

    def send(url: str) -> None:
        answers.append(httpx.post(f"{url}/v1/evaluate", content=body, headers=headers, timeout=60))

    with process(tmp_path) as leaving:
        threads = [threading.Thread(target=send, args=(leaving.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        probe = httpx.get(f"{leaving.url}/metrics")
        until = time.monotonic() + 30
        nothing = 'lossd_received_bytes_total{key="anonymous"} 0.0'
        while nothing in probe.text and time.monotonic() < until:
            probe = httpx.get(f"{leaving.url}/metrics")  # until one has arrived
        leaving.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("Shutting down" in line for line in leaving.lines))
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{leaving.url}/health/live")
        for thread in threads:
            thread.join()
        assert leaving.process.wait(30) == 0
        wait_until(lambda: any('"drained"' in line for line in leaving.lines))
        assert next(e for e in leaving.events if e["event"] == "drained")["complete"] is True
    assert [answer.status_code for answer in answers] == [200] * 4


# -- settings and commands ------------------------------------------------------------------------


def test_a_process_whose_engine_fails_ends_for_its_supervisor(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "lossd", "serve", "--kernels", "compiled", "--port", "0"]
    done = subprocess.run(  # noqa: S603 - our own
        [*command, "--cache-dir", str(tmp_path / "file" / "below")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (failed,) = [line for line in done.stderr.splitlines() if "engine_failed" in line]
    assert "NotADirectoryError" in json.loads(failed)["exception"]


def test_every_setting_is_described() -> None:
    for name, setting in Settings.model_fields.items():
        assert setting.description, name
        assert setting.description.endswith("."), name


def test_every_setting_has_a_flag_with_its_description() -> None:
    told = lossd("serve", "--help")
    assert told.status == 0
    text = " ".join(told.stdout.split())
    for name, setting in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join((setting.description or "").split())[:40] in text


EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is to be refused
OTHER_VALUES: dict[str, Any] = {
    "host": "::1",
    "threads": 200,
    "port": 1234,
    "keys_file": Path("keys.json"),
    "allow_anonymous": True,
    "key_requests_per_minute": 600,
    "key_samples_per_minute": 7,
    "key_mib_per_minute": 8,
    "key_concurrent_requests": 9,
    "device": "cuda:1",
    "kernels": "eager",
    "cache_dir": Path("elsewhere"),
    "cache_seed_dir": Path("seeds"),
    "grpc_port": 8001,
    "shared_memory": "on",
    "log_level": "warning",
    "log_format": "console",
    "tracing": "otlp",
}


def test_every_setting_has_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSD_CACHE_DIR", raising=False)
    plain = Settings()
    for name in Settings.model_fields:
        default = getattr(plain, name)
        other = OTHER_VALUES[name] if name in OTHER_VALUES else default + 8192
        assert other != default
        with monkeypatch.context() as patch:
            patch.setenv(f"LOSSD_{name.upper()}", str(other))
            assert getattr(Settings(), name) == other


def test_a_flag_beats_the_environment(tmp_path: Path) -> None:
    with process(
        tmp_path, "--max-classes", "3", LOSSD_MAX_CLASSES="4", LOSSD_MAX_REQUEST_SAMPLES="5"
    ) as running:
        limits = httpx.get(f"{running.url}/v1/limits").json()
        assert (limits["classes"], limits["samples"]) == (3, 5)
        assert running.stop() == 0


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1


def test_a_bad_setting_is_named_without_a_traceback() -> None:
    for result in (
        lossd("serve", "--port", "many"),
        lossd("serve", LOSSD_PORT="-1"),
        lossd("serve", "--device", "tpu"),
    ):
        assert result.status == 2
        assert "Traceback" not in result.stderr
        assert "port" in result.stderr or "device" in result.stderr
    assert lossd("serve", "--colour", "red").status == 2


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.1", "example.org", ""])
def test_nobody_listens_to_the_world_by_accident(host: str) -> None:
    refused = lossd("serve", "--host", host, "--port", "0")
    assert refused.status == 2
    assert "--allow-anonymous" in refused.stderr


def test_whoever_says_so_may_listen_to_the_world(tmp_path: Path) -> None:
    with process(tmp_path, "--host", EVERYWHERE, "--allow-anonymous") as running:
        assert running.stop() == 0


def test_the_command_lists_the_losses() -> None:
    listed = lossd("losses")
    assert listed.status == 0
    for name in LOSSES:
        assert name in listed.stdout


def test_the_command_describes_a_loss() -> None:
    told = lossd("losses", "iou")
    assert told.status == 0
    assert told.stdout.startswith("jaccard")
    assert "smooth_nr" in told.stdout
    assert "https://" in told.stdout


def test_the_command_does_not_know_every_loss() -> None:
    told = lossd("losses", "dicee")
    assert told.status == 1
    assert "did you mean dice" in told.stderr
    assert lossd("losses", "dice", "--colour").status == 2


def test_the_command_has_a_version() -> None:
    assert lossd("--version").stdout == f"lossd {__version__}\n"


def test_log_lines_for_people_are_no_json(tmp_path: Path) -> None:
    with process(tmp_path, "--log-format", "console") as running:
        httpx.get(f"{running.url}/v1/limits", headers={"X-Request-ID": "seen"})
        assert running.stop() == 0
        wait_until(lambda: any("drained" in line for line in running.lines))
        assert any("request " in line and "request_id=seen" in line for line in running.lines)
        for line in running.lines:
            with pytest.raises(json.JSONDecodeError):
                json.loads(line)
