"""Cross entropy, Dice and their gradient in float32 behind Triton, and how long they took.

What computes is lossd's own core in the server's process, so that ways to a server are compared.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

import lossd
from benchmarks.peers.frame import Array
from benchmarks.peers.servers import settings


@batch
def evaluate(logits: Array, target: Array) -> dict[str, Array]:
    """Answers of a batch."""
    started_s = time.perf_counter()
    result = lossd.evaluate(
        ["cross_entropy", "dice"],
        logits=logits,
        target=target,
        task="multiclass",
        gradient="total",
    )
    spent_s = time.perf_counter() - started_s
    return {
        "cross_entropy": result["cross_entropy"][:, None],
        "dice": result["dice"][:, None],
        "gradient": result.gradient["logits"],
        "compute_s": np.full((len(logits), 1), spent_s),
    }


if __name__ == "__main__":
    torch.set_num_threads(settings.threads())
    config = TritonConfig(
        http_address=settings.LOOPBACK,
        http_port=settings.port(),
        allow_grpc=False,
        allow_metrics=False,
    )
    # Registering shared memory would need a token that only this process knows.
    unguarded = TritonSecurityConfig(restricted_endpoints=[])
    with Triton(config=config, security_config=unguarded) as triton:
        triton.bind(
            model_name="losses",
            infer_func=evaluate,
            inputs=[
                Tensor(name="logits", dtype=np.float32, shape=(-1, -1, -1)),
                Tensor(name="target", dtype=np.uint8, shape=(-1, -1)),
            ],
            outputs=[
                Tensor(name="cross_entropy", dtype=np.float64, shape=(1,)),
                Tensor(name="dice", dtype=np.float64, shape=(1,)),
                Tensor(name="gradient", dtype=np.float32, shape=(-1, -1, -1)),
                Tensor(name="compute_s", dtype=np.float64, shape=(1,)),
            ],
            config=ModelConfig(
                max_batch_size=settings.MAX_BATCH_SAMPLES,
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
            strict=False,
        )
        triton.serve()
