"""The job behind Mosec."""

from __future__ import annotations

import sys

from mosec import Server, Worker

from benchmarks.peers.frame import Answer, Sample, decode_request, encode_answer
from benchmarks.peers.servers import settings
from benchmarks.peers.servers.job import open_core


class Losses(Worker):
    """Computes a batch."""

    def __init__(self) -> None:
        super().__init__()
        self._compute = open_core()

    def deserialize(self, data: bytes) -> Sample:
        """A sample from a request's body."""
        return decode_request(data)

    def forward(self, data: list[Sample]) -> list[Answer]:
        """Answers of a batch."""
        return self._compute(data)

    def serialize(self, data: Answer) -> bytes:
        """The body of an answer."""
        return encode_answer(data)


if __name__ == "__main__":
    # Its server reads its settings from the command line alone.
    sys.argv += ["--address", settings.LOOPBACK, "--port", str(settings.port())]
    sys.argv += ["--timeout", str(settings.TIMEOUT_S * 1000)]
    sys.argv += ["--max-request-size", str(settings.MAX_BODY_BYTES)]
    server = Server()
    server.append_worker(
        Losses,
        max_batch_size=settings.MAX_BATCH_SAMPLES,
        max_wait_time=settings.MAX_DELAY_MS,
        timeout=settings.TIMEOUT_S,
    )
    server.run()
