"""Bodies that lie in files: the system sends them, and what arrives is what was mapped."""

import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from lossd_client._files import MappedFile, file_part
from lossd_client._transport import Wire
from lossd_client.qa.arrays import ArrayFile

VALUES = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)

pytestmark = pytest.mark.skipif(not hasattr(os, "sendfile"), reason="the system has no sendfile")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "values.npy"
    np.save(path, VALUES)
    return path


@pytest.fixture
def sent_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What `sendfile` sent, call by call."""
    counts: list[int] = []
    true_sendfile = os.sendfile

    def sendfile(to: int, of: int, offset: int, count: int) -> int:
        counts.append(true_sendfile(to, of, offset, count))
        return counts[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    return counts


def mapped(path: Path) -> memoryview:
    return ArrayFile(path).mapped().data


def arrived(parts: Sequence[bytes | memoryview]) -> bytes:
    """What the other side of a connection reads, which is slow at first."""
    here, there = socket.socketpair()
    with there, ThreadPoolExecutor(1) as pool, descriptors_stay(), closing(Wire(here)) as wire:
        reading = pool.submit(read_to_the_end, there)
        wire.begin(time.monotonic() + 20)
        assert wire.send(parts)
        wire.close()
        return reading.result()


def read_to_the_end(connection: socket.socket) -> bytes:
    time.sleep(0.05)
    got = bytearray()
    while piece := connection.recv(1 << 16):
        got += piece
    return bytes(got)


@contextmanager
def descriptors_stay() -> Iterator[None]:
    folder = Path("/proc/self/fd")
    before = set(folder.iterdir()) if folder.exists() else set()
    yield
    after = set(folder.iterdir()) if folder.exists() else set()
    assert not {fd for fd in after - before if fd.exists() and fd.resolve().suffix == ".npy"}


def test_a_file_leaves_between_what_is_in_memory(path: Path, sent_bytes: list[int]) -> None:
    whole = mapped(path)
    memory = bytes(300_000)
    parts: list[bytes | memoryview] = [
        b"head",
        whole,
        memory,
        whole[700_001:1_700_001],
        b"",
        b"end",
        whole[:10],
    ]
    assert arrived(parts) == b"".join(bytes(part) for part in parts)
    assert sum(sent_bytes) == len(VALUES) + 1_000_000  # ten bytes are not worth a call
    assert len(sent_bytes) > 2  # the other side did not take it at once


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_was_mapped_is_sent_whatever_its_path_leads_to(
    path: Path, sent_bytes: list[int], change: str
) -> None:
    whole = mapped(path)
    path.unlink()
    if change == "replaced":
        np.save(path, VALUES[::-1])
    assert arrived([whole]) == VALUES.tobytes()
    assert sent_bytes == []


def test_a_system_that_cannot_send_files_sends_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EINVAL, "not this file")

    monkeypatch.setattr(os, "sendfile", refuse)
    assert arrived([b"head", mapped(path), b"end"]) == b"head" + VALUES.tobytes() + b"end"


def test_a_file_that_became_shorter_is_told(path: Path) -> None:
    whole = mapped(path)
    with path.open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(OSError, match="became shorter while it was sent"):
        arrived([whole])


def test_only_what_lies_in_a_mapped_file_does(path: Path, tmp_path: Path) -> None:
    part = file_part(mapped(path)[5:])
    assert part is not None
    assert part.begin_bytes == path.stat().st_size - len(VALUES) + 5
    assert file_part(memoryview(bytes(10))) is None
    assert file_part(VALUES.data) is None
    turned = ArrayFile(path).mapped().reshape(2, -1).T
    assert file_part(np.ascontiguousarray(turned).data.cast("B")) is None  # a copy
    with (tmp_path / "none").open("w+b") as file, pytest.raises(ValueError, match="empty"):
        MappedFile.of(file)
