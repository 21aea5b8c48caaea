"""A caller who hangs up in the middle of an answer costs the process that serves nothing."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

from lossd_client.wire import SAFETENSORS, Array, encode_safetensors
from service_fixture import process

_SHAPE = (1, 4, 1024, 1024)  # 16 MiB back: more than a socket takes at once


def test_an_answer_that_nobody_reads_to_its_end_does_not_end_the_process(tmp_path: Path) -> None:
    inputs: dict[str, Array] = {
        "logits": np.zeros(_SHAPE, np.float32),
        "target": np.zeros((_SHAPE[0], *_SHAPE[2:]), np.uint8),
    }
    request = json.dumps({"losses": ["dice"], "gradient": "total"})
    body = b"".join(encode_safetensors(inputs, {"request": request}))
    head = (
        "POST /v1/evaluate HTTP/1.1\r\nHost: a\r\n"
        f"Content-Type: {SAFETENSORS}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with process(tmp_path) as running:
        address = urlsplit(running.url)
        for _ in range(3):
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(head.encode() + body)
                assert connection.recv(12) == b"HTTP/1.1 200"
            time.sleep(0.3)  # the service goes on writing
            assert running.process.poll() is None
        assert httpx.get(f"{running.url}/health/live").is_success
        assert running.stop() == 0
