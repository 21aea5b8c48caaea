"""The job behind BentoML: a gateway that takes bytes, and the batched worker behind it.

Its own tensor input is JSON or pickle, so the gateway is an ASGI app, as its documentation offers.
How long the worker waits for company is learned and cannot be set; `max_latency_ms` bounds a whole
request, queue included, and 2 ms would refuse nearly all of them.
"""

from __future__ import annotations

from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.frame import Answer, Sample, decode_request, encode_answer
from benchmarks.peers.servers import settings
from benchmarks.peers.servers.job import open_core


@bentoml.service(workers=1, traffic={"timeout": settings.TIMEOUT_S})
class Losses:
    """Computes a batch, in a process of its own."""

    def __init__(self) -> None:
        self._compute = open_core()

    @bentoml.api(
        batchable=True,
        max_batch_size=settings.MAX_BATCH_SAMPLES,
        max_latency_ms=settings.TIMEOUT_S * 1000,
    )
    def evaluate(self, samples: list[Any]) -> list[Any]:
        """Answers of a batch; on the way here and back they become plain tuples."""
        return self._compute([Sample(*sample) for sample in samples])


app = Starlette()


@bentoml.service(workers=1, traffic={"timeout": settings.TIMEOUT_S})
@bentoml.asgi_app(app, path="/")
class Gateway:
    """Bytes to arrays and back."""

    losses = bentoml.depends(Losses)

    def __init__(self) -> None:
        app.routes.append(Route("/predict", self._predict, methods=["POST"]))

    async def _predict(self, request: Request) -> Response:
        sample = decode_request(await request.body())
        (answer,) = await self.losses.to_async.evaluate([sample])
        return Response(encode_answer(Answer(*answer)), media_type="application/octet-stream")
