"""A data set on disk whose wrong annotations are known, and ways to disturb a run over it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lossd_client import Client
from lossd_client._address import checked_address
from lossd_client._protocol import Reply, Request
from lossd_client._transport import Cancellation, SocketTransport
from lossd_client.qa_wire import CONTEXTS_PATH, SCORE_PATH
from lossd_client.wire import Array, decode_safetensors, parse_json

CLASSES = ("ground", "house", "tree")
SIZES = ((40, 56), (33, 64), (64, 47), (48, 48))
IGNORED = 255
_MISTAKEN_SHARE = 0.02
"""Of predicted labels."""

Form = Literal["logits", "probabilities", "labels", "binary"]


@dataclass
class DataSet:
    """Photos, masks and predictions; every fourth mask has a house that is not there."""

    root: Path
    names: list[str]
    wrong: list[str]
    masks: dict[str, Array]
    """As they should be."""

    def path(self, part: str, name: str) -> Path:
        suffix = ".npy" if part == "predictions" else ".png"
        return self.root / part / f"{name}{suffix}"

    def arguments(self, out: Path, *more: str) -> list[str]:
        return [
            *("qa", "--images", str(self.root / "images")),
            *("--annotations", str(self.root / "annotations")),
            *("--predictions", str(self.root / "predictions")),
            *("--classes", str(self.root / "classes.txt"), "--ignore-index", str(IGNORED)),
            *("--progress", "none", "--out", str(out), *more),
        ]

    def score_options(self, **more: Any) -> dict[str, Any]:
        options = {
            "images": self.root / "images",
            "annotations": self.root / "annotations",
            "predictions": self.root / "predictions",
            "classes": self.root / "classes.txt",
            "ignore_index": IGNORED,
            "progress": "none",
            "overlays": 0,
            "views": "none",
        }
        return {**options, **more}


def make(
    root: Path,
    *,
    count: int = 12,
    form: Form = "logits",
    dtype: str = "float16",
    sizes: Sequence[tuple[int, int]] = SIZES,
    classes: Sequence[str] = CLASSES,
) -> DataSet:
    for part in ("images", "annotations", "predictions"):
        (root / part).mkdir(parents=True)
    names = classes[:2] if form == "binary" else classes
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    data = DataSet(root, [], [], {})
    for place in range(count):
        random = np.random.default_rng(place)
        name, size = f"street-{place:02d}", sizes[place % len(sizes)]
        truth = _truth(random, size, len(names))
        mask = truth.copy()
        if place % 4 == 1:
            mask[3:15, 5:20] = np.where(truth[3:15, 5:20] == 1, 0, 1)
            data.wrong.append(name)
        mask[-2:, :] = IGNORED
        data.names.append(name)
        data.masks[name] = np.where(mask == IGNORED, IGNORED, truth).astype(np.uint8)
        Image.fromarray(mask).save(data.path("annotations", name))
        photo = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(photo).save(data.path("images", name))
        np.save(data.path("predictions", name), _prediction(random, truth, len(names), form, dtype))
    return data


def _truth(random: np.random.Generator, size: tuple[int, int], classes: int) -> Array:
    truth = np.zeros(size, np.uint8)
    for label in range(1, classes):
        top, left = random.integers(8, size[0] - 12), random.integers(8, size[1] - 12)
        truth[top : top + 9, left : left + 10] = label
    return truth


def _prediction(
    random: np.random.Generator, truth: Array, classes: int, form: Form, dtype: str
) -> Array:
    if form == "labels":
        other = random.integers(0, classes, truth.shape, dtype=np.uint8)
        return np.where(random.random(truth.shape) < _MISTAKEN_SHARE, other, truth)
    logits: Any = random.normal(0, 1, (classes, *truth.shape)).astype(np.float32)
    own = random.normal(5, 1, (1, *truth.shape))
    np.put_along_axis(logits, truth[None].astype(np.int64), own, 0)
    if form == "binary":
        logits = logits[1] - logits[0]
    if form == "probabilities":
        exponents = np.exp(logits - logits.max(axis=0))
        logits = exponents / exponents.sum(axis=0)
    values: Array = logits.astype(dtype)
    return values


@dataclass
class Watched:
    """A transport that notes every request, and may do something before each."""

    inner: SocketTransport
    before: Callable[[Request, "Watched"], Reply | None] = lambda _request, _self: None
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def exchange(self, request: Request, *, timeout_s: float, cancellation: Cancellation) -> Reply:
        with self.lock:
            instead = self.before(request, self)
            self.requests.append(request)
        if instead is not None:
            return instead
        return self.inner.exchange(request, timeout_s=timeout_s, cancellation=cancellation)

    def close(self) -> None:
        self.inner.close()

    def bodies(self) -> list[tuple[dict[str, Any], dict[str, Array]]]:
        """Documents and tensors of the requests for scores, in the order they were sent."""
        found = []
        for request in self.requests:
            if request.path == SCORE_PATH:
                tensors, metadata = decode_safetensors(b"".join(request.parts))
                found.append((parse_json(metadata["request"], "a request"), tensors))
        return found

    def forget_contexts(self) -> None:
        for request in list(self.requests):
            if request.path.startswith(CONTEXTS_PATH):
                self.send(Request("DELETE", request.path))

    def send(self, request: Request) -> Reply:
        """Sends a request of the test's own."""
        return self.inner.exchange(request, timeout_s=10, cancellation=Cancellation())


def watched(url: str, before: Callable[[Request, Watched], Reply | None] | None = None) -> Watched:
    inner = SocketTransport(checked_address(url, timeout_s=30.0, retries=0))
    return Watched(inner, before) if before is not None else Watched(inner)


def client_of(transport: Watched) -> Client:
    return Client("http://127.0.0.1", transport=transport, retries=0)
