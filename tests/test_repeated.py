"""What repeats is read once, and nothing passes or fails for having been read before."""

import struct

import numpy as np
import pytest
from starlette.types import Message

from lossd.losses import LOSSES
from lossd.protocols.admission import read_request
from lossd.sending import PartsResponse
from lossd_client.errors import InvalidInputError, InvalidParameterError, MalformedBodyError
from lossd_client.wire import decode_safetensors, encode_safetensors


def test_an_equal_document_is_the_same_request() -> None:
    first = read_request({"losses": ["dice"], "task": "binary"})
    assert read_request({"losses": ["dice"], "task": "binary"}) is first
    assert read_request({"losses": ["dice"]}) is not first


def test_a_document_that_is_wrong_is_wrong_each_time() -> None:
    for _ in range(3):
        with pytest.raises(InvalidInputError, match=r"losses"):
            read_request({"losses": []})


def test_what_json_has_no_word_for_is_refused_as_what_it_is() -> None:
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"finite number, got nan"):
            read_request({"losses": [{"name": "dice", "weight": float("nan")}]})


def test_parameters_are_kept_by_loss_task_and_channels() -> None:
    dice = LOSSES["dice"]

    def read(channels: int, **given: object) -> object:
        return dice.read_options(given, task="multiclass", channels=channels, loc=("losses", 0))

    assert read(3, smooth_nr=1.0) is read(3, smooth_nr=1.0)
    assert read(3, smooth_nr=1.0) is not read(3, smooth_nr=2.0)
    read(3, classes=[2])
    for _ in range(2):  # two channels have no class 2, whatever was right for three
        with pytest.raises(InvalidParameterError, match=r"ids must lie in 0 … 1"):
            read(2, classes=[2])
    assert read(3, smooth_nr=1) == read(3, smooth_nr=1.0)
    with pytest.raises(InvalidParameterError):
        read(3, smooth_nr=True)


def test_a_header_that_was_right_is_looked_at_again_for_another_body() -> None:
    parts = encode_safetensors({"target": np.arange(6, dtype=np.uint8)}, {"request": "{}"})
    body = b"".join(parts)
    for _ in range(2):
        tensors, metadata = decode_safetensors(body)
        assert tensors["target"].tolist() == [0, 1, 2, 3, 4, 5]
        metadata["request"] = "spoilt"  # the caller's own copy
    assert decode_safetensors(body)[1] == {"request": "{}"}
    for wrong in (body[:-1], body + b"\0"):
        with pytest.raises(MalformedBodyError):
            decode_safetensors(wrong)
    (length,) = struct.unpack_from("<Q", body)
    other = body[: 8 + length] + bytes(range(6, 12))
    assert decode_safetensors(other)[0]["target"].tolist() == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("sizes", [(), (5,), (5, 7, 9), (70_000,), (5, 70_000, 7, 9, 66_000)])
@pytest.mark.anyio
async def test_small_parts_leave_as_one_and_large_ones_as_they_are(sizes: tuple[int, ...]) -> None:
    parts = [memoryview(bytes([number]) * size) for number, size in enumerate(sizes)]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await PartsResponse(parts, "text/plain", {})({}, receive, send)
    bodies = [message["body"] for message in sent[1:]]
    assert b"".join(bodies) == b"".join(parts)
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(bodies) - 1) + [False]
    whole = [body.obj for body in bodies if isinstance(body, memoryview)]
    assert all(part.obj in whole for part in parts if part.nbytes > 65_536)
    assert len(bodies) == {(): 1, (5,): 1, (5, 7, 9): 1, (70_000,): 1}.get(sizes, 4)
