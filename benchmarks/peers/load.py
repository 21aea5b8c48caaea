"""Closed-loop load from ready-made requests; a script of the standard library alone, one process.

    python load.py HOST PORT FOLDER --connections 8 --seconds 3

It sends the bytes of `FOLDER/*.request` in turn over keep-alive connections, each of which asks
again when it is answered, and reads answers into one buffer that nobody looks at: whatever answers,
a byte costs the same here. It prints one JSON object: when each answer 200 was asked for and had
arrived whole, what else came, and the processor time that this process took.

With `--each` it sends every request once, each on a connection of its own, and writes the answers
beside them: `NAME.head`, `NAME.body`.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

_READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_PATIENCE_S = 60.0
_PAUSE_S = 0.01  # after an error, so that a server that refuses is not hammered
_OK = 200
_SHOWN_BYTES = 300
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_READ = selectors.EVENT_READ
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


class AnswerError(Exception):
    """What came is no answer that this reads."""


@dataclass
class Log:
    """What happened."""

    spans_s: list[tuple[float, float]] = field(default_factory=list)
    """Of each answer 200: when it was asked for and when it had arrived."""
    errors: Counter[str] = field(default_factory=Counter)
    first_error: str = ""

    def fail(self, what: str, detail: str = "") -> None:
        """Notes anything but an answer 200."""
        self.first_error = self.first_error or f"{what} {detail}".strip()
        self.errors[what] += 1


class Connection:
    """One connection: a request that leaves, then an answer that arrives."""

    def __init__(
        self, address: tuple[str, int], scratch: memoryview, *, keep: bool = False
    ) -> None:
        self._address = address
        self._scratch = scratch
        self._keep = keep
        self._unsent = memoryview(b"")
        self.socket: socket.socket | None = None
        self.begin(b"")

    def begin(self, request: bytes) -> None:
        """Starts a request; `send` sends it."""
        self.started_s = time.perf_counter()
        self.head = bytearray()
        self.body = bytearray()
        self._missing: int | None = None
        self._unsent = memoryview(request)

    def fileno(self) -> int:
        """The open socket's descriptor, for a selector."""
        if self.socket is None:
            self.socket = socket.create_connection(self._address, timeout=_PATIENCE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.setblocking(False)
        return self.socket.fileno()

    def close(self) -> None:
        """Closes the socket; the next request opens another."""
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def send(self) -> bool:
        """Sends what fits; whether all has left."""
        if self.socket is None:
            raise AnswerError("not connected")
        sent = self.socket.send(self._unsent)
        self._unsent = self._unsent[sent:]
        return not self._unsent

    def receive(self) -> bool:
        """Reads what is there; whether the answer is whole.

        Raises:
            AnswerError: the connection ended, or the answer has no `Content-Length`.
        """
        if self.socket is None:
            raise AnswerError("not connected")
        count = self.socket.recv_into(self._scratch)
        if not count:
            raise AnswerError("connection closed by the server")
        if self._missing is None:
            self._read_head(count)
        else:
            self._read_body(self._scratch[:count])
        return self._missing == 0

    @property
    def status(self) -> int:
        """Status of the answer; its head has arrived."""
        return int(self.head[9:12])

    @property
    def last(self) -> bool:
        """Whether the server closes after this answer."""
        return _CLOSE.search(self.head) is not None

    def _read_head(self, count: int) -> None:
        self.head += self._scratch[:count]
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            if len(self.head) > _HEAD_BYTES:
                raise AnswerError("a head without an end")
            return
        body = memoryview(bytes(self.head[end + 4 :]))
        del self.head[end:]
        length = _LENGTH.search(self.head)
        if length is None:
            raise AnswerError("no Content-Length")
        self._missing = int(length[1])
        self._read_body(body)

    def _read_body(self, piece: memoryview) -> None:
        self._missing = (self._missing or 0) - len(piece)
        if self._keep or self.status != _OK:
            self.body += piece
        if self._missing < 0:
            raise AnswerError("more than Content-Length says")


def load(
    address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float
) -> Log:
    """Asks for so many seconds, waits for what is still under way."""
    log = Log()
    scratch = memoryview(bytearray(_READ_BYTES))
    following = cycle(requests)
    until_s = time.perf_counter() + seconds

    def next_request(_: Connection) -> bytes | None:
        return next(following) if time.perf_counter() < until_s else None

    _Loop(next_request, log).run([Connection(address, scratch) for _ in range(connections)])
    return log


def ask_each(address: tuple[str, int], requests: Sequence[bytes]) -> tuple[Log, list[Connection]]:
    """Each request once, all at a time; the connections have the answers."""
    log = Log()
    scratch = memoryview(bytearray(_READ_BYTES))
    connections = [Connection(address, scratch, keep=True) for _ in requests]
    unsent = dict(zip(connections, requests, strict=True))
    _Loop(lambda connection: unsent.pop(connection, None), log).run(connections)
    return log, connections


NextRequest = Callable[[Connection], bytes | None]


class _Loop:
    """Keeps every connection asking until there is nothing left to ask."""

    def __init__(self, next_request: NextRequest, log: Log) -> None:
        self._selector = selectors.DefaultSelector()
        self._next_request = next_request
        self._log = log

    def run(self, connections: Sequence[Connection]) -> None:
        with self._selector:
            for connection in connections:
                self._ask(connection)
            while waiting := self._selector.get_map():
                events = self._selector.select(_PATIENCE_S)
                if not events:
                    for key in list(waiting.values()):
                        self._give_up(key.data, TimeoutError(f"{_PATIENCE_S:g} s without a byte"))
                for key, mask in events:
                    self._go_on(key.data, mask)

    def _ask(self, connection: Connection) -> None:
        """Starts the next request on a connection; without one, lets it go."""
        while (request := self._next_request(connection)) is not None:
            connection.begin(request)
            try:
                if connection.socket is None:
                    self._selector.register(connection, _READ, connection)
                if not connection.send():
                    self._selector.modify(connection, _BOTH, connection)
            except OSError as error:
                self._give_up(connection, error)
            else:
                return
        self._release(connection)

    def _go_on(self, connection: Connection, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE and connection.send():
                self._selector.modify(connection, _READ, connection)
            if mask & selectors.EVENT_READ and connection.receive():
                self._note(connection)
                self._ask(connection)
        except (OSError, AnswerError) as error:
            self._give_up(connection, error)
            self._ask(connection)

    def _note(self, connection: Connection) -> None:
        ended_s = time.perf_counter()
        if connection.status == _OK:
            self._log.spans_s.append((connection.started_s, ended_s))
        else:
            shown = bytes(connection.body[:_SHOWN_BYTES]).decode(errors="replace")
            self._log.fail(str(connection.status), shown)
            time.sleep(_PAUSE_S)
        if connection.last or connection.status != _OK:
            self._release(connection)

    def _give_up(self, connection: Connection, error: Exception) -> None:
        self._log.fail(type(error).__name__, str(error))
        self._release(connection)
        time.sleep(_PAUSE_S)

    def _release(self, connection: Connection) -> None:
        if connection.socket is not None:
            self._selector.unregister(connection)
            connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; always 0, errors are in what is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args(arguments)
    files = sorted(options.folder.glob("*.request"))
    requests = [file.read_bytes() for file in files]
    address = (options.host, options.port)
    before_s = time.process_time()
    if options.each:
        log, answered = ask_each(address, requests)
        for file, connection in zip(files, answered, strict=True):
            file.with_suffix(".head").write_bytes(connection.head)
            file.with_suffix(".body").write_bytes(connection.body)
    else:
        log = load(address, requests, options.connections, options.seconds)
    found = {
        "spans_s": log.spans_s,
        "errors": log.errors,
        "first_error": log.first_error,
        "processor_s": time.process_time() - before_s,
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
