"""The job behind LitServe, which reads annotations, so that they are no strings here."""

import litserve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.frame import Answer, Sample, decode_request, encode_answer
from benchmarks.peers.servers import settings
from benchmarks.peers.servers.job import open_core


class Losses(litserve.LitAPI):
    """Computes a batch."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the library's signature
        """Makes the worker ready."""
        self._compute = open_core()

    def decode_request(self, request: Request) -> Sample:
        """A sample from a form, which the library has read by then."""
        return decode_request(request["frame"].file.read())

    def batch(self, inputs: list[Sample]) -> list[Sample]:
        """As it is; the library would stack arrays."""
        return inputs

    def predict(self, x: list[Sample]) -> list[Answer]:
        """Answers of a batch."""
        return self._compute(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """As it is."""
        return output

    def encode_response(self, output: Answer) -> Response:
        """An answer's bytes, past the library's JSON."""
        return Response(encode_answer(output), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Losses(
        max_batch_size=settings.MAX_BATCH_SAMPLES, batch_timeout=settings.MAX_DELAY_MS / 1e3
    )
    litserve.LitServer(api, accelerator="cpu", timeout=settings.TIMEOUT_S).run(
        host=settings.LOOPBACK,
        port=settings.port(),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
    )
