"""Who may ask: the keys file, the command that writes it, the door, and what never leaks."""

import hashlib
import hmac
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from lossd.access import Access, shown_key
from lossd.callers import Allowance
from lossd.engine import Engine
from lossd.keys import KeyFile, Keys, KeysError, Owners, add_key, read_keys, revoke_key
from lossd.loopback import is_loopback
from lossd.settings import Settings
from lossd.spans import SpanTracing
from lossd_client import AsyncClient, Client
from lossd_client.errors import UnauthorizedError
from lossd_client.wire import JSON
from service_fixture import (
    Served,
    environment,
    lossd,
    problem,
    process,
    serving,
    tensor,
    wait_until,
)

REQUEST = {
    "losses": ["dice"],
    "inputs": {
        "logits": tensor(np.zeros((1, 2, 2, 2), np.float32)),
        "target": tensor(np.zeros((1, 2, 2), np.uint8)),
    },
}
KEY = re.compile(r"lossd_[0-9a-f]{8}_[A-Za-z0-9_-]{43}")
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what keys are for


def who(owners: Owners, shown: str) -> str | None:
    caller = owners.owner(shown)
    return None if caller is None else caller.name


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def secret_of(key: str) -> str:
    return key.split("_", 2)[2]


# -- the file and the command ---------------------------------------------------------------------


def test_a_key_is_printed_once_and_alone_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    added = lossd("keys", "add", "lab-a", "--keys-file", str(path))
    assert added.status == 0
    key = added.stdout.removesuffix("\n")
    assert KEY.fullmatch(key)
    assert secret_of(key) not in added.stderr
    text = path.read_text()
    assert secret_of(key) not in text
    (kept,) = json.loads(text)["keys"]
    assert kept["name"] == "lab-a"
    assert key.split("_")[1] == kept["id"]
    assert kept["sha256"] == hashlib.sha256(secret_of(key).encode()).hexdigest()
    listed = lossd("keys", "list", "--keys-file", str(path))
    assert (listed.status, listed.stderr) == (0, "")
    assert listed.stdout.split() == [
        *("name", "id", "created", "allowance"),
        *("lab-a", kept["id"], kept["created"], "default"),
    ]


def test_no_two_keys_are_alike(tmp_path: Path) -> None:
    keys = [add_key(tmp_path / "keys", f"n{number}") for number in range(20)]
    assert len({secret_of(key) for key in keys}) == 20
    assert len({key.split("_")[1] for key in keys}) == 20


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_key_is_revoked_by_its_name_or_id(tmp_path: Path, by: str) -> None:
    path = tmp_path / "keys"
    gone, stays = add_key(path, "gone"), add_key(path, "stays")
    called = {"name": "gone", "id": gone.split("_")[1]}[by]
    assert lossd("keys", "revoke", called, LOSSD_KEYS_FILE=str(path)).status == 0
    owners = Owners(read_keys(path))
    assert (who(owners, gone), who(owners, stays)) == (None, "stays")
    again = add_key(path, "gone")
    assert who(Owners(read_keys(path)), again) == "gone"


def test_what_a_key_may_use_is_said_when_it_is_made_and_changed_later(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def run(*arguments: str) -> str:
        done = lossd("keys", *arguments, LOSSD_KEYS_FILE=str(path))
        assert done.status == 0, done.stderr
        return done.stdout + done.stderr

    def allowances() -> list[Allowance]:
        return [key.allowance for key in read_keys(path).keys]

    run("add", "a", "--weight", "2.5", "--requests-per-minute", "100", "--tensor-mib", "0")
    run("add", "b")
    given = Allowance(weight=2.5, requests_per_minute=100, tensor_mib=0)
    assert allowances() == [given, Allowance()]
    assert "weight 2.5, requests_per_minute 100, tensor_mib 0" in run("list")
    key_id = read_keys(path).keys[0].id
    said = run("limit", key_id, "--requests-per-minute", "default", "--concurrent-requests", "4")
    assert f"a ({key_id}) may use: weight 2.5, concurrent_requests 4, tensor_mib 0" in said
    assert allowances() == [
        Allowance(weight=2.5, concurrent_requests=4, tensor_mib=0),
        Allowance(),
    ]
    run("limit", "b", "--samples-per-minute", "5", "--mib-per-minute", "6")
    run("limit", "a", "--weight", "default", "--tensor-mib", "default")
    assert allowances() == [
        Allowance(concurrent_requests=4),
        Allowance(samples_per_minute=5, mib_per_minute=6),
    ]
    shown = add_key(path, "c", Allowance(weight=3))
    caller = Owners(read_keys(path)).owner(shown)
    assert caller is not None
    assert caller.allowance == Allowance(weight=3)


def test_every_part_of_an_allowance_is_an_option_that_says_what_it_is() -> None:
    for action in ("add", "limit"):
        help_text = " ".join(lossd("keys", action, "--help").stdout.split())
        for name, field in Allowance.model_fields.items():
            assert f"--{name.replace('_', '-')}" in help_text
            assert field.description
            assert field.description in help_text


def test_a_file_without_allowances_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(json.dumps({"keys": [ENTRY]}))
    assert read_keys(path).keys[0].allowance == Allowance()
    revoke_key(path, "a")
    assert read_keys(path) == Keys()


def test_the_file_is_its_owners_alone_whatever_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o644)
    link = tmp_path / "link"
    link.symlink_to(path)
    add_key(link, "a")
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    add_key(path, "b")
    assert [key.name for key in read_keys(path).keys] == ["a", "b"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"keys", "link", "keys.lock"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_the_file_to_the_service(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch()
    os.chown(path, 10001, 10002)
    add_key(path, "a")
    assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10002)


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    add_key(path, "a")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused = lossd("keys", "add", "b", "--keys-file", str(path))
    assert (refused.status, refused.stdout) == (1, "")
    assert "No space left" in refused.stderr
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"keys", "keys.lock"}


def test_two_commands_at_once_lose_nothing_and_readers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, "first")
    code = (
        "import sys; from pathlib import Path; from lossd.keys import add_key\n"
        "for number in range(10): add_key(Path(sys.argv[1]), f'{sys.argv[2]}-{number}')"
    )
    writers = [
        subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-c", code, str(path), name], env=environment(tmp_path)
        )
        for name in ("a", "b")
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(len(read_keys(path).keys))  # raises if it is half a file
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    names = {key.name for key in read_keys(path).keys}
    assert names == {"first"} | {f"{who}-{number}" for who in "ab" for number in range(10)}
    assert min(seen) >= 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["add", "Lab"], 2, "a-z, 0-9"),
        (["add", "a" * 41], 2, "at most 40|1 to 40"),
        (["add", "a\n"], 2, "a-z, 0-9"),
        (["add", "taken"], 1, "taken is taken"),
        (["add", "anonymous"], 1, "anonymous is taken"),
        (["revoke", "nobody"], 1, "no key called nobody"),
        (["limit", "nobody", "--weight", "1"], 1, "no key called nobody"),
        (["limit", "taken", "--weight", "0"], 2, "--weight: .* 0.01, got '0'"),
        (["limit", "taken", "--weight", "nan"], 2, "--weight"),
        (["add", "a", "--requests-per-minute", "0"], 2, "--requests-per-minute: .* 1, got '0'"),
        (["add", "a", "--mib-per-minute", "1.5"], 2, "--mib-per-minute"),
        (["add", "a", "--concurrent-requests", "many"], 2, "--concurrent-requests"),
        (["list", "--colour"], 2, "--colour"),
        (["rename", "taken"], 2, "rename"),
        ([], 2, "action"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    path = tmp_path / "keys"
    add_key(path, "taken")
    before = path.read_bytes()
    refused = lossd("keys", *arguments, LOSSD_KEYS_FILE=str(path))
    assert (refused.status, refused.stdout) == (status, "")
    assert re.search(message, refused.stderr)
    assert "Traceback" not in refused.stderr
    assert path.read_bytes() == before


def test_the_command_needs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSD_KEYS_FILE", raising=False)
    assert lossd("keys", "list").status == 2
    for path in (tmp_path / "absent", tmp_path):
        assert lossd("keys", "list", "--keys-file", str(path)).status == 1
    assert lossd("keys", "add", "a", "--keys-file", str(tmp_path / "no" / "keys")).status == 1


ENTRY = {"id": "0123abcd", "name": "a", "sha256": "0" * 64, "created": "2026-11-25"}
BROKEN: dict[str, str] = {
    "no JSON": "{",
    "a list": "[]",
    "half an entry": json.dumps({"keys": [{"id": "0123abcd"}]}),
    "a name of capitals": json.dumps({"keys": [ENTRY | {"name": "A"}]}),
    "a name with a line's end": json.dumps({"keys": [ENTRY | {"name": "a\n"}]}),
    "the secret itself": json.dumps({"keys": [ENTRY | {"sha256": "s3cret" * 7}]}),
    "a secret as a field": json.dumps({"keys": [ENTRY | {"s3crets3cret": 1}]}),
    "a name twice": json.dumps({"keys": [ENTRY, ENTRY | {"id": "00000000"}]}),
    "an id twice": json.dumps({"keys": [ENTRY, ENTRY | {"name": "b"}]}),
    "an id as a name": json.dumps({"keys": [ENTRY | {"name": "0123abcd"}]}),
    "an allowance of nothing": json.dumps({"keys": [ENTRY | {"allowance": {"weight": 0}}]}),
    "a secret as an allowance": json.dumps({"keys": [ENTRY | {"allowance": {"s3cret": 1}}]}),
    "a key of nobody": json.dumps({"keys": [ENTRY | {"name": "anonymous"}]}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_without_showing_it(tmp_path: Path, what: str) -> None:
    path = tmp_path / "keys"
    path.write_text(BROKEN[what])
    with pytest.raises(KeysError) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert lossd("keys", "add", "b", "--keys-file", str(path)).status == 1
    assert path.read_text() == BROKEN[what]


@pytest.mark.parametrize("text", ["", "\n", "{}", '{"keys": []}'])
def test_an_empty_file_is_valid_and_knows_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    assert read_keys(path) == Keys()
    assert who(Owners(read_keys(path)), "") is None


def test_a_digest_is_shown_nowhere(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "a")
    keys = read_keys(tmp_path / "keys")
    assert keys.keys[0].sha256 not in repr(keys)


# -- whose a key is -------------------------------------------------------------------------------


def test_every_key_that_is_shown_is_compared_once_and_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "a")
    _, key_id, secret = key.split("_", 2)
    owners = Owners(read_keys(path))
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    wrong = [
        "",
        "lossd",
        secret,
        f"lossd_{key_id}",
        f"lossd_{key_id}_",
        f"lossd_00000000_{secret}",
        f"lossd_{key_id}_{secret[:-1]}",
        f"lossd_{key_id}_{secret}=",
        f"LOSSD_{key_id}_{secret}",
        f"lossd_{key_id.upper()}x_{secret}",
        "lossd_\xff_\xff",
        "lossd__",
    ]
    assert [who(owners, text) for text in [*wrong, key]] == [None] * len(wrong) + ["a"]
    assert compared == [(32, 32)] * (len(wrong) + 1)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Accept": "*/*"}, None),
        ({"Authorization": "Bearer k"}, "k"),
        ({"authorization": "bearer  k "}, "k"),
        ({"X-API-Key": "k"}, "k"),
        ({"Authorization": "Bearer k", "X-API-Key": "k"}, "k"),
        ({"Authorization": "Bearer k", "X-API-Key": "other"}, ""),
        ({"Authorization": "Basic k", "X-API-Key": "k"}, ""),
        ({"Authorization": "k"}, ""),
        ({"Authorization": "Bearer"}, ""),
        ({"Authorization": ""}, ""),
        ({"X-API-Key": ""}, ""),
    ],
)
def test_a_key_is_shown_in_either_header_and_never_two(
    headers: dict[str, str], expected: str | None
) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    assert shown_key(raw) == expected


def test_two_headers_of_one_name_must_agree() -> None:
    assert shown_key([(b"x-api-key", b"a"), (b"x-api-key", b"b")]) == ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


# -- a file that changes --------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    first = add_key(path, "first")
    file = KeyFile(path, clock)
    second = add_key(path, "second")
    revoke_key(path, "first")
    clock.now_s = 0.9
    assert (who(file.owners(), first), who(file.owners(), second)) == ("first", None)
    clock.now_s = 1.0
    assert (who(file.owners(), first), who(file.owners(), second)) == (None, "second")


def test_the_last_good_keys_stay_and_each_change_is_logged_once(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    key = add_key(path, "a")
    good = path.read_bytes()
    file = KeyFile(path, clock)

    def events() -> list[str]:
        with capture_logs() as logs:
            for _ in range(3):
                clock.now_s += 1.0
                assert who(file.owners(), key) == "a"
        return [f"{entry['log_level']} {entry['event']}" for entry in logs]

    assert events() == []
    path.write_text("{")
    assert events() == ["error keys_unreadable"]
    path.write_text("half")
    assert events() == ["error keys_unreadable"]
    path.unlink()
    assert events() == ["error keys_unreadable"]
    path.write_bytes(good)
    assert events() == ["info keys_read"]


def test_a_file_that_becomes_readable_without_changing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, "a")
    file = KeyFile(path, clock)
    key = add_key(path, "b")

    def forbidden(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", forbidden)
        clock.now_s += 1.0
        assert who(file.owners(), key) is None
    clock.now_s += 1.0
    assert who(file.owners(), key) == "b"


# -- the service ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(keys_path: Path) -> str:
    return add_key(keys_path, "lab-a")


@pytest.fixture(scope="module")
def guarded(
    keys_path: Path, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    assert key
    with serving(keys_file=keys_path, cache_dir=tmp_path_factory.mktemp("lossd")) as running:
        yield running


def refused(answer: httpx.Response) -> httpx.Response:
    told = problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert told["detail"] == UnauthorizedError.title()  # the same, whatever was wrong
    return answer


PATHS = ["/", "/v1/losses", "/v1/losses/dice", "/v1/limits", "/docs/", "/openapi.json", "/nowhere"]


@pytest.mark.parametrize("path", [*PATHS, "/health/live/", "/health", "//health/live"])
def test_every_address_needs_a_key(guarded: Served, key: str, path: str) -> None:
    answer = refused(guarded.client.get(path))
    assert "connection" not in answer.headers
    assert guarded.client.get(path, headers=bearer(key)).status_code != 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_probes_need_none_and_may_show_anything(guarded: Served, path: str) -> None:
    assert guarded.client.get(path).is_success
    assert guarded.client.get(path, headers=bearer("wrong")).is_success


@pytest.mark.parametrize("header", ["bearer", "x-api-key"])
def test_a_key_opens(guarded: Served, key: str, header: str) -> None:
    headers = bearer(key) if header == "bearer" else {"X-API-Key": key}
    guarded.client.evaluate(REQUEST, headers=headers).raise_for_status()


def test_what_is_wrong_with_a_key_is_not_told(guarded: Served, keys_path: Path, key: str) -> None:
    revoked = add_key(keys_path, "revoked")
    revoke_key(keys_path, "revoked")
    for headers in (
        {},
        bearer(revoked),
        bearer(key[:-1]),
        bearer("lossd_00000000_" + secret_of(key)),
        {"Authorization": f"Basic {key}"},
        {"Authorization": key},
        {"X-API-Key": ""},
        {**bearer(key), "X-API-Key": revoked},
    ):
        answer = refused(guarded.client.evaluate(REQUEST, headers=headers))
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_body_is_neither_waited_for_nor_taken_for_a_request(
    guarded: Served, framing: str
) -> None:
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\n{framing}\r\n\r\n"
    address = guarded.client.base_url.host, guarded.client.base_url.port or 0
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode())  # and nothing of the body
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 401")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer.lower()


def test_the_keys_name_is_counted_and_logged(guarded: Served, key: str) -> None:
    shown = {"mine-1": key, "mine-2": "wrong", "mine-3": key}

    def mine() -> list[Any]:  # an earlier test's last line may come late
        return [entry for entry in logs if entry.get("request_id") in shown]

    with capture_logs(processors=[merge_contextvars]) as logs:
        for number, secret in shown.items():
            guarded.client.evaluate(REQUEST, headers={**bearer(secret), "X-Request-ID": number})
        wait_until(lambda: sum(entry["event"] == "request" for entry in mine()) == len(shown))
    lines = [(entry["code"], entry["key"]) for entry in mine() if entry["event"] == "request"]
    assert lines == [("ok", "lab-a"), ("unauthorized", "anonymous"), ("ok", "lab-a")]
    page = guarded.client.get("/metrics").text
    for series in (
        'lossd_samples_total{key="lab-a"}',
        'lossd_received_bytes_total{key="lab-a"}',
        'lossd_sent_bytes_total{key="lab-a"}',
        'lossd_requests_total{code="ok",key="lab-a",route="/v1/evaluate",status="200"}',
        'lossd_requests_total{code="unauthorized",key="anonymous",route="unknown",status="401"}',
    ):
        assert series in page


def test_metrics_are_open_to_this_machine_alone(guarded: Served, key: str) -> None:
    client = guarded.client
    assert client.get("/metrics").is_success
    refused(client.get("/metrics", headers=bearer("wrong")))
    # uvicorn believes a proxy on this machine; whatever it says, it speaks for somebody else.
    for forwarded in ({"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}):
        refused(client.get("/metrics", headers=forwarded))
        assert client.get("/metrics", headers={**forwarded, **bearer(key)}).is_success


@pytest.mark.parametrize("peer", [("192.0.2.1", 1), None])
def test_metrics_need_a_key_from_elsewhere(keys_path: Path, key: str, peer: Any) -> None:
    assert key
    asked: list[Any] = []

    async def app(scope: Any, _: Any, __: Any) -> None:
        asked.append(scope["state"]["caller"].name)

    access = Access(app, KeyFile(keys_path), "refused")
    scope = {"type": "http", "path": "/metrics", "client": peer, "headers": [], "state": {}}
    with pytest.raises(UnauthorizedError):
        access(scope, None, None).send(None)  # type: ignore[arg-type]
    shown = {**scope, "headers": [(b"x-api-key", key.encode())]}
    with pytest.raises(StopIteration):
        access(shown, None, None).send(None)  # type: ignore[arg-type]
    assert asked == ["lab-a"]


def test_where_anonymous_callers_are_allowed_a_wrong_key_is_still_refused(
    tmp_path: Path, keys_path: Path, key: str
) -> None:
    with (
        serving(keys_file=keys_path, allow_anonymous=True, cache_dir=tmp_path) as mixed,
        capture_logs() as logs,
    ):
        mixed.client.evaluate(REQUEST).raise_for_status()
        mixed.client.evaluate(REQUEST, headers=bearer(key)).raise_for_status()
        for wrong in (bearer("wrong"), {"X-API-Key": ""}, {"Authorization": f"Basic {key}"}):
            refused(mixed.client.evaluate(REQUEST, headers=wrong))
        wait_until(lambda: sum(entry["event"] == "request" for entry in logs) == 5)
    lines = [(entry["status"], entry["key"]) for entry in logs if entry["event"] == "request"]
    assert lines == [(200, "anonymous"), (200, "lab-a"), *[(401, "anonymous")] * 3]


def test_no_trace_shows_a_key(tmp_path: Path, keys_path: Path, key: str) -> None:
    exporter = InMemorySpanExporter()
    spans = SpanTracing(SimpleSpanProcessor(exporter))
    engine = Engine(Settings(kernels="eager", threads=2), spans)
    with serving(engine=engine, keys_file=keys_path, cache_dir=tmp_path) as traced:
        traced.client.evaluate(REQUEST, headers=bearer(key)).raise_for_status()
        refused(traced.client.evaluate(REQUEST, headers=bearer("wr0ng")))
    written = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert '"lossd.code": "unauthorized"' in written
    assert secret_of(key) not in written
    assert "wr0ng" not in written


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch()
    with serving(keys_file=path, cache_dir=tmp_path, ready=False) as closed:
        refused(closed.client.get("/v1/limits"))
        refused(closed.client.get("/v1/limits", headers=bearer("lossd__")))


def test_the_clients_say_it_with_their_class(guarded: Served, key: str) -> None:
    url = str(guarded.client.base_url)
    with Client(url, api_key=key) as client:
        assert client.limits()["samples"] == Settings().max_request_samples
    for wrong in (None, "wrong"):
        with Client(url, api_key=wrong) as client, pytest.raises(UnauthorizedError) as caught:
            client.limits()
        assert "wrong" not in str(caught.value)
    assert key not in repr(AsyncClient(url, api_key=key)) + repr(vars(Client(url, api_key=key)))


def test_no_client_takes_a_key_from_the_environment(
    guarded: Served, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOSSD_API_KEY", key)
    with Client(str(guarded.client.base_url)) as client, pytest.raises(UnauthorizedError):
        client.limits()


def test_a_large_body_with_a_wrong_key_is_told_so(guarded: Served) -> None:
    with Client(str(guarded.client.base_url), api_key="wrong", retries=0) as client:
        logits = np.zeros((32, 4, 256, 256), np.float32)
        with pytest.raises(UnauthorizedError):
            client.evaluate("dice", logits=logits, target=np.zeros((32, 256, 256), np.uint8))


# -- a real process -------------------------------------------------------------------------------


def test_keys_come_and_go_without_a_restart_and_no_secret_is_ever_written(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch()
    flags = ("--host", EVERYWHERE, "--keys-file", str(path), "--log-level", "debug")
    with process(tmp_path, *flags) as running:
        url = running.url.replace(EVERYWHERE, "127.0.0.1")
        shown = [add_key(path, "lab-a"), "lossd_00000000_" + "w" * 43, "wr0ng-in-every-way"]

        def status() -> int:
            return httpx.get(f"{url}/v1/limits", headers=bearer(shown[0])).status_code

        wait_until(lambda: status() == 200)
        for wrong in shown[1:]:
            for headers in (bearer(wrong), {"X-API-Key": wrong}, {"Authorization": wrong}):
                answer = refused(httpx.post(f"{url}/v1/evaluate", json=REQUEST, headers=headers))
                assert wrong not in answer.text + repr(answer.headers)
        httpx.post(f"{url}/v1/evaluate", json=REQUEST, headers=bearer(shown[0])).raise_for_status()
        path.write_text(f'{{"keys": [{{"{secret_of(shown[0])}": 1}}]}}')
        wait_until(lambda: status() and any("keys_unreadable" in x for x in running.lines))
        assert status() == 200
        path.write_text("")
        wait_until(lambda: status() == 401)
        page = httpx.get(f"{url}/metrics").text
        assert running.stop() == 0
    written = page + "\n".join(running.lines)
    assert '"key":"lab-a"' in written
    for key in shown:
        assert key not in written
        assert key.split("_")[-1] not in written
        assert hashlib.sha256(key.split("_")[-1].encode()).hexdigest() not in written


@pytest.mark.parametrize("what", ["absent", "broken", "folder"])
def test_the_service_does_not_start_without_its_keys(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "broken":
        path.write_text("{")
    elif what == "folder":
        path.mkdir()
    refusal = lossd("serve", "--kernels", "eager", "--port", "0", LOSSD_KEYS_FILE=str(path))
    assert refusal.status == 2
    assert f"--keys-file (LOSSD_KEYS_FILE): {path}" in refusal.stderr
    assert "Traceback" not in refusal.stderr


def test_the_real_process_refuses_with_status_2(tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", "lossd", "serve", "--keys-file", str(tmp_path / "absent")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("absent: No such file or directory")
