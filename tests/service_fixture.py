"""Starts services for the tests, and writes the bodies that they send."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from lossd.__main__ import main
from lossd.app import create_app
from lossd.engine import Engine
from lossd.http_protocol import HttpServer, http_config
from lossd.settings import Settings
from lossd_client.wire import SAFETENSORS, Array, decode_safetensors, encode_safetensors

ROOT = Path(__file__).parent.parent
Json = dict[str, Any]
Answer = httpx.Response


@dataclass
class Process:
    """A running `lossd serve`."""

    process: "subprocess.Popen[str]"
    url: str = ""
    lines: list[str] = field(default_factory=list)
    """What it wrote to standard error so far."""

    @property
    def events(self) -> list[Json]:
        return [json.loads(line) for line in self.lines]

    def stop(self, timeout_s: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def watch(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("LOSSD_")},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "service"), str(ROOT / "client")]),
        "LOSSD_CACHE_DIR": str(folder),
        **more,
    }


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


def lossd(*arguments: str, **more: str) -> Ended:
    """A command that ends by itself, run in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": "200", "OMP_WAIT_POLICY": "PASSIVE", **more}.items():
            patch.setenv(name, value)
        with redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                status = main(list(arguments))
            except SystemExit as ended:
                status = int(ended.code or 0)
    return Ended(status, stdout.getvalue(), stderr.getvalue())


@contextmanager
def process(folder: Path, *flags: str, **more: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "lossd", "serve", "--kernels", "eager", "--port", "0", *flags]
    with subprocess.Popen(  # noqa: S603 - our own
        command, env=environment(folder, **more), stderr=subprocess.PIPE, text=True
    ) as started:
        running = Process(started)
        watcher = threading.Thread(target=running.watch)
        watcher.start()
        try:
            wait_until(lambda: _find_url(running), 60)
            wait_until(lambda: httpx.get(f"{running.url}/health/ready").is_success, 60)
            yield running
        finally:
            started.kill()
            watcher.join()


def _find_url(running: Process) -> bool:
    assert running.process.poll() is None, running.lines
    for line in running.lines:
        _, found, rest = line.partition("running on ")
        if found:
            running.url = rest.split()[0]
            return True
    return False


def wait_until(holds: Any, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


class Caller(httpx.Client):
    """A client that knows the one address most tests need."""

    def evaluate(self, document: Json, **more: Any) -> Answer:
        return self.post("/v1/evaluate", json=document, **more)

    def evaluate_bytes(self, body: Any, content_type: str, **headers: str) -> Answer:
        every = {"Content-Type": content_type, **headers}
        return self.post("/v1/evaluate", content=body, headers=every)

    def evaluate_form(self, files: list[tuple[str, Any]], **fields: Any) -> Answer:
        return self.post("/v1/evaluate", files=files, data=fields)


@dataclass
class Served:
    """A service of this process."""

    client: Caller
    engine: Engine
    settings: Settings
    server: uvicorn.Server


@contextmanager
def serving(*, engine: Engine | None = None, ready: bool = True, **values: Any) -> Iterator[Served]:
    settings = Settings(**{"kernels": "eager", "threads": 2, "port": 0, "drain_s": 5.0, **values})
    engine = engine or Engine(settings)
    server = HttpServer(http_config(create_app(settings, engine), settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        if ready:
            wait_until(engine.is_ready)
        with Caller(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Served(client, engine, settings, server)
    finally:
        server.should_exit = True
        thread.join()


def problem(answer: Answer, status: int, code: str) -> Json:
    """The problem document of an answer that must be one."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    document: Json = answer.json()
    keys = ["type", "title", "status", "detail", "code", "errors", "request_id"]
    assert list(document) == keys
    assert document["status"] == status
    assert document["type"] == f"urn:lossd:problem:{code}"
    assert document["request_id"] == answer.headers["x-request-id"]
    return document


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(array: Array) -> Json:
    raw = np.ascontiguousarray(array).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": b64(raw)}


def npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(array: Array) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, array)
    return stream.getvalue()


def png(array: Array, mode: str = "L") -> bytes:
    """A picture `[H, W]` as an indexed PNG."""
    if mode == "P":
        picture = Image.fromarray(array.astype(np.uint8), "L").convert("P")
        picture = Image.frombytes("P", picture.size, array.astype(np.uint8).tobytes())
        picture.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    elif mode == "16":
        picture = Image.fromarray(array.astype(np.uint16))
    elif mode == "1":
        picture = Image.fromarray(array.astype(np.uint8) * 255).convert("1")
    else:
        picture = Image.fromarray(array.astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def runs(mask: Array) -> Json:
    """A mask `[H, W]` as an uncompressed COCO RLE, from the format's definition."""
    counts, current, length = [], 0, 0
    for value in mask.T.reshape(-1).tolist():
        if value != current:
            counts.append(length)
            current, length = value, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def safetensors(document: Mapping[str, Any], tensors: Mapping[str, Array]) -> bytes:
    return b"".join(encode_safetensors(tensors, {"request": json.dumps(document)}))


def read_answer(answer: Answer) -> tuple[Json, dict[str, Array]]:
    """Document and tensors of an answer in either form, under the names of safetensors."""
    assert answer.status_code == 200, answer.text[:500]
    if answer.headers["content-type"] == SAFETENSORS:
        tensors, metadata = decode_safetensors(answer.content)
        return json.loads(metadata["response"]), tensors
    document = answer.json()
    tensors = {f"loss/{label}": np.array(row) for label, row in document["losses"].items()}
    tensors["total"] = np.array(document["total"])
    return document, tensors
