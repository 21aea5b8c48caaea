"""Ways to a service: addresses, TLS, Unix sockets, proxies."""

import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from client_peer import (
    ANSWER,
    LOGITS,
    Arrived,
    Evaluate,
    answer_all,
    both,
    head,
    is_right,
    listening,
    peer,
    read_request,
)
from lossd_client import errors
from lossd_client._address import Address, Route, checked_address
from lossd_client.qa.arrays import ArrayFile

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def arrived() -> list[Arrived]:
    return []


def noting(arrived: list[Arrived], connection: socket.socket) -> None:
    while request := read_request(connection):
        arrived.append(request)
        connection.sendall(head(len(ANSWER)) + ANSWER)


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_host_and_path_prefix_arrive(evaluate: Evaluate, arrived: list[Arrived], host: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("no IPv6 here")
    with peer(lambda connection: noting(arrived, connection), host=host) as url:
        assert is_right(evaluate(url + "/behind+a/proxü/", {}, logits=LOGITS))
    assert arrived[0].line == "POST /behind+a/prox%C3%BC/v1/evaluate HTTP/1.1"
    assert arrived[0].headers["host"] == url.removeprefix("http://")


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Host", Address("http", "host", 80, "host", "")),
        ("https://host/", Address("https", "host", 443, "host", "")),
        ("https://host:8443/a/b//", Address("https", "host", 8443, "host:8443", "/a/b")),
        ("http://[::1]", Address("http", "::1", 80, "[::1]", "")),
        (
            "http://münchen.example",
            Address("http", "xn--mnchen-3ya.example", 80, "xn--mnchen-3ya.example", ""),
        ),
    ],
)
def test_an_address_is_read_as_browsers_read_it(url: str, expected: Address) -> None:
    assert checked_address(url, timeout_s=1.0, retries=0) == expected


@pytest.mark.parametrize(
    "url",
    ["http://host/?a=b", "http://host/#a", "http://ho\r\nst", "http://a b", "http://host/\r\nX: y"],
)
def test_an_address_holds_no_more_than_a_place(url: str) -> None:
    with pytest.raises(ValueError, match="url must be"):
        checked_address(url, timeout_s=1.0, retries=0)


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody signed, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=lossd",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    both_in_one = folder / "both.pem"
    both_in_one.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both_in_one


@pytest.fixture
def tls_url(certificate: Path, arrived: list[Arrived]) -> Iterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def behave(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            noting(arrived, wrapped)

    with peer(behave) as url:
        yield url.replace("http", "https")


@both
def test_a_certificate_of_ones_own_is_trusted_by_a_context_of_ones_own(
    evaluate: Evaluate, tls_url: str, certificate: Path, arrived: list[Arrived]
) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    logits = np.random.default_rng(0).normal(size=(1, 1, 1024, 1024)).astype(np.float32)
    assert is_right(evaluate(tls_url, {"ssl_context": context}, logits=logits))
    assert arrived[0].body[-logits.nbytes :] == logits.tobytes()


@both
def test_a_file_goes_through_tls(
    evaluate: Evaluate, tls_url: str, certificate: Path, arrived: list[Arrived], tmp_path: Path
) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 1, 1024, 1024)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    settings = {"ssl_context": ssl.create_default_context(cafile=str(certificate))}
    assert is_right(evaluate(tls_url, settings, logits=ArrayFile(tmp_path / "logits.npy").mapped()))
    assert arrived[0].body[-logits.nbytes :] == logits.tobytes()


@both
def test_an_unknown_certificate_is_refused_and_not_tried_again(
    evaluate: Evaluate, tls_url: str, arrived: list[Arrived]
) -> None:
    with pytest.raises(errors.UnreachableError, match="SSLCertVerificationError"):
        evaluate(tls_url, {"retries": 5}, logits=LOGITS)
    assert arrived == []


@both
def test_an_early_refusal_is_heard_through_tls(evaluate: Evaluate, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    over = threading.Event()

    def refuse(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1 << 10)
            body = b'{"code": "too_large", "detail": "at most 1 MiB"}'
            status = "413 Too Large"
            wrapped.sendall(head(len(body), "Connection: close", status=status) + body)
            over.wait(10)

    settings = {"ssl_context": ssl.create_default_context(cafile=str(certificate)), "retries": 0}
    with peer(refuse) as url:
        with pytest.raises(errors.TooLargeError):
            evaluate(url.replace("http", "https"), settings, logits=np.zeros((1, 1, 2048, 2048)))
        over.set()


# -- Unix sockets --------------------------------------------------------------------------------


@both
def test_a_unix_socket_leads_to_the_service(evaluate: Evaluate, arrived: list[Arrived]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # its path is short, as a socket's must be
        path = Path(folder) / "lossd"
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen()
        with listening(server, lambda connection: noting(arrived, connection)):
            assert is_right(evaluate("http://lossd", {"unix_socket": path}, logits=LOGITS))
    assert arrived[0].headers["host"] == "lossd"


@both
def test_a_unix_socket_that_is_not_there_is_unreachable(evaluate: Evaluate) -> None:
    settings = {"unix_socket": "/nonexistent/lossd", "retries": 0}
    with pytest.raises(errors.UnreachableError, match="FileNotFoundError"):
        evaluate("http://lossd", settings, logits=LOGITS)


# -- proxies -------------------------------------------------------------------------------------


@both
def test_the_environments_proxy_is_asked(
    evaluate: Evaluate, arrived: list[Arrived], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(lambda connection: noting(arrived, connection)) as url:
        monkeypatch.setenv("http_proxy", url.replace("://", "://me:p%40ss@"))
        assert is_right(evaluate("http://lossd.test/a", {}, logits=LOGITS))
    assert arrived[0].line == "POST http://lossd.test/a/v1/evaluate HTTP/1.1"
    assert arrived[0].headers["host"] == "lossd.test"
    assert arrived[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="


@both
def test_hosts_without_proxy_are_asked_themselves(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with peer(answer_all) as url:
        assert is_right(evaluate(url, {"retries": 0}, logits=LOGITS))


@both
def test_tls_goes_through_a_proxys_tunnel(
    evaluate: Evaluate,
    tls_url: str,
    certificate: Path,
    arrived: list[Arrived],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Arrived] = []

    def tunnel(connection: socket.socket) -> None:
        request = read_request(connection)
        assert request is not None
        asked.append(request)
        host, _, port = request.line.split()[1].rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(there, connection))
            back.start()
            _pump(connection, there)
            back.join()

    settings = {"ssl_context": ssl.create_default_context(cafile=str(certificate))}
    with peer(tunnel) as url:
        monkeypatch.setenv("https_proxy", url.replace("://", "://me:secret@"))
        assert is_right(evaluate(tls_url, settings, logits=LOGITS))
    assert asked[0].line.startswith("CONNECT 127.0.0.1:")
    assert asked[0].headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert "proxy-authorization" not in arrived[0].headers
    assert arrived[0].line == "POST /v1/evaluate HTTP/1.1"


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_proxy_that_is_not_plain_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:hidden@127.0.0.1:1080")
    address = checked_address("http://lossd.test", timeout_s=1.0, retries=0)
    with pytest.raises(ValueError, match="not http://, socks5") as caught:
        address.route()
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "lossd.test")
    assert address.route() == Route()
