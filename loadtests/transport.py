"""Requests that no HTTP client sends: a wrong length, half a body, nobody who waits.

On sockets of the standard library; where Locust has replaced those, they yield to its other users.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from contextlib import closing
from urllib.parse import urlsplit

from loadtests.answers import Case, NobodyWaits, Reply

PATH = "/v1/evaluate"
TIMEOUT_S = 60.0


def send_as_told(url: str, case: Case, headers: Mapping[str, str]) -> Reply | None:
    """The reply to a case sent as its delivery says, on a connection of its own.

    Args:
        url: of the service, without the path.
        case: body and delivery.
        headers: beside `Host` and `Content-Length`.

    Returns:
        None where the case hangs up.

    Raises:
        OSError: the connection failed.
        http.client.HTTPException: what came back is not HTTP, or nothing came.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    connection.connect()
    try:
        # Head and body in one piece: a server then sees at once that they do not fit together,
        # and answers the same every time.
        connection.sock.sendall(_head(parts.netloc, parts.path, case, headers) + _sent(case))
        if isinstance(case.answer, NobodyWaits):
            return None
        with closing(http.client.HTTPResponse(connection.sock, method="POST")) as response:
            response.begin()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, lower, response.read())
    finally:
        connection.close()


def _sent(case: Case) -> bytes:
    return case.body[: round(len(case.body) * case.delivery.sent_share)]


def _head(host: str, path: str, case: Case, headers: Mapping[str, str]) -> bytes:
    announced = case.delivery.announced_bytes
    every = {
        "Host": host,
        **headers,
        "Content-Length": str(len(case.body) if announced is None else announced),
    }
    lines = [f"POST {path.rstrip('/')}{PATH} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in every.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii")
