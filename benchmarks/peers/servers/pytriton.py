"""The job behind NVIDIA Triton, through PyTriton, which brings a whole Triton server."""

from __future__ import annotations

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.frame import Array, Sample
from benchmarks.peers.servers import settings
from benchmarks.peers.servers.job import open_core

compute = open_core()


@batch
def evaluate(logits: Array, target: Array) -> dict[str, Array]:
    """Answers of a batch, which Triton makes of requests of one size only."""
    (answer,) = compute([Sample(logits, target)])
    return {
        "cross_entropy": answer.cross_entropy[:, None],
        "dice": answer.dice[:, None],
        "gradient": answer.gradient,
    }


if __name__ == "__main__":
    port = settings.port()
    config = TritonConfig(
        http_address=settings.LOOPBACK,
        http_port=port,
        allow_grpc=False,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="losses",
            infer_func=evaluate,
            inputs=[
                Tensor(name="logits", dtype=np.float16, shape=(-1, -1, -1)),
                Tensor(name="target", dtype=np.uint8, shape=(-1, -1)),
            ],
            outputs=[
                Tensor(name="cross_entropy", dtype=np.float32, shape=(1,)),
                Tensor(name="dice", dtype=np.float32, shape=(1,)),
                Tensor(name="gradient", dtype=np.float16, shape=(-1, -1, -1)),
            ],
            config=ModelConfig(
                max_batch_size=settings.MAX_BATCH_SAMPLES,
                batcher=DynamicBatcher(max_queue_delay_microseconds=settings.MAX_DELAY_MS * 1000),
            ),
            strict=False,
        )
        triton.serve()
