"""Callers that send one request after the other as fast as they are answered, in a process."""

from __future__ import annotations

import http.client
import os
import threading
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from typing import Any, Self

LEAST_PRIORITY = 19


@dataclass(frozen=True)
class Sender:
    """A request, and where it goes."""

    port: int
    key: str
    body: bytes
    content_type: str
    accept: str

    def connect(self) -> http.client.HTTPConnection:
        """A connection that `send` uses again and again."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120.0)

    def send(self, connection: http.client.HTTPConnection) -> int:
        """Sends the request and reads its answer; the status."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": self.content_type,
            "Accept": self.accept,
        }
        connection.request("POST", "/v1/evaluate", self.body, headers)
        with connection.getresponse() as response:
            response.read()
            return response.status


@dataclass(frozen=True)
class _Shared:
    """What a process of callers and its owner tell each other; they run while `running` is set."""

    running: Any
    ended: Any
    answered: Any
    refused: Any


class Flood:
    """A process of such callers, which rests until it is told to run; ends with the context.

    Args:
        context: makes processes.
        sender: what every one of them sends.
        connections: how many they are.
    """

    def __init__(self, context: SpawnContext, sender: Sender, connections: int) -> None:
        self._shared = _Shared(
            running=context.Event(),
            ended=context.Event(),
            answered=context.Value("q", 0),
            refused=context.Value("q", 0),
        )
        self._process = context.Process(
            target=_send_for_ever, args=(sender, connections, self._shared)
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.ended.set()
        self._shared.running.set()
        self._process.join()

    def run(self) -> None:
        """Lets them send."""
        self._shared.running.set()

    def rest(self) -> None:
        """Lets them send nothing more."""
        self._shared.running.clear()

    @property
    def answered(self) -> int:
        """Requests that were answered 200 so far."""
        return int(self._shared.answered.value)

    @property
    def refused(self) -> int:
        """Requests that were answered otherwise, or cut off, so far."""
        return int(self._shared.refused.value)


def _send_for_ever(sender: Sender, connections: int, shared: _Shared) -> None:
    os.nice(LEAST_PRIORITY)

    def send() -> None:
        connection = sender.connect()
        while not shared.ended.is_set():
            shared.running.wait()
            if shared.ended.is_set():
                break
            try:
                answered = sender.send(connection) == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                # Closed while it rested, or after a refusal before all was sent.
                connection.close()
                answered = False
            counter = shared.answered if answered else shared.refused
            with counter.get_lock():
                counter.value += 1
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
