"""The job behind Ray Serve."""

from __future__ import annotations

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.frame import Answer, Sample, decode_request, encode_answer
from benchmarks.peers.servers import settings
from benchmarks.peers.servers.job import open_core

_OBJECT_STORE_BYTES = 200 << 20


class Losses:
    """Computes a batch."""

    def __init__(self) -> None:
        self._compute = open_core()

    @serve.batch(
        max_batch_size=settings.MAX_BATCH_SAMPLES,
        batch_wait_timeout_s=settings.MAX_DELAY_MS / 1e3,
    )
    async def evaluate(self, samples: list[Sample]) -> list[Answer]:
        """Answers of a batch."""
        return self._compute(samples)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        answer = await self.evaluate(decode_request(await request.body()))
        return Response(encode_answer(answer), media_type="application/octet-stream")


if __name__ == "__main__":
    deployment = serve.deployment(
        num_replicas=1,
        max_ongoing_requests=4 * settings.MAX_BATCH_SAMPLES,
        ray_actor_options={"num_cpus": 1},
    )(Losses)
    ray.init(
        # One for the proxy, one for the replica, whatever the machine has.
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=settings.LOOPBACK,
    )
    serve.start(
        http_options={"host": settings.LOOPBACK, "port": settings.port()},
        # A line for every request would be its loss, not ours.
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(deployment.bind(), route_prefix="/predict", blocking=True)
