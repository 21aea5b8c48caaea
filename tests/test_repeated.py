"""What repeats is read once, and nothing passes or fails for having been read before."""

import gc
import struct
from typing import Any

import numpy as np
import pytest
from starlette.types import Message

from lossd.core.job import Job, Part
from lossd.losses import LOSSES
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.repeated import Remembered
from lossd.sending import PartsResponse
from lossd_client.errors import (
    InvalidInputError,
    InvalidParameterError,
    LabelOutOfRangeError,
    MalformedBodyError,
)
from lossd_client.wire import EvaluateRequest, decode_safetensors, encode_safetensors


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


LIMITS = RequestLimits(samples=8, classes=8)


def pixels(seed: int, **more: Any) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((2, 3, 4, 5), dtype=np.float32)
    return {"logits": logits, "target": generator.integers(0, 3, (2, 4, 5), np.uint8), **more}


def read_job(request: EvaluateRequest, inputs: dict[str, Any]) -> Job:
    job = build_job(request, [inputs], LIMITS)
    assert isinstance(job, Job)
    return job


def facts(job: Job) -> dict[str, Any]:
    """Everything that a job says, worked out anew but for what is kept in it."""
    names = ("channels", "exponents", "group", "nbytes", "samples", "tiles", "workload")
    return {
        **{name: value for name, value in vars(job).items() if name not in ("parts", *names)},
        **{name: getattr(job, name) for name in names},
        "parts": [part_facts(part) for part in job.parts],
    }


def part_facts(part: Part) -> list[Any]:
    tensors = (part.logits, part.target, part.weight_map, part.whole_target)
    values = [None if one is None else (one.dtype, one.tolist()) for one in tensors]
    return [*values, part.shape, part.valid_pixels]


@pytest.mark.parametrize(
    "document",
    [
        {"losses": ["cross_entropy", "dice"], "gradient": "total", "gradient_dtype": "float16"},
        {"losses": ["hausdorff_dt", "dice"], "spacing": [1.0, 2.0], "preset": "monai"},
        {"losses": ["dice"], "ignore_index": 1, "maps": False},
    ],
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"mask": np.tile(np.array([1, 0, 1, 1, 1], np.uint8), (2, 4, 1))},
        {"weight_map": np.ones((2, 4, 5), np.float32)},
    ],
    ids=["plain", "mask", "weights"],
)
def test_a_job_that_was_planned_before_is_the_job_of_its_own_values(
    document: dict[str, Any], more: dict[str, Any]
) -> None:
    kept = read_request(document)
    read_job(kept, pixels(1, **more))
    again = read_job(kept, pixels(2, **more))
    anew = read_job(EvaluateRequest.model_validate(document), pixels(2, **more))
    assert facts(again) == facts(anew)


def test_other_shapes_dtypes_and_limits_are_checked_though_the_request_is_known() -> None:
    request = read_request({"losses": ["dice"]})
    read_job(request, pixels(1))
    for wrong in (
        pixels(1, target=np.zeros((2, 4, 6), np.uint8)),
        pixels(1, target=np.zeros((2, 4, 5), np.float32)),
        pixels(1, logits=np.zeros((2, 3, 4, 5), np.int8)),
        pixels(1, unknown=np.zeros(3)),
    ):
        with pytest.raises(InvalidInputError):
            read_job(request, wrong)
    with pytest.raises(InvalidInputError, match="2 samples, one request takes at most 1"):
        build_job(request, [pixels(1)], RequestLimits(samples=1, classes=8))


def test_values_are_checked_though_their_shapes_were_right_before() -> None:
    request = read_request({"losses": ["dice"]})
    masked = {"mask": np.ones((2, 4, 5), np.float32)}
    read_job(request, pixels(1))
    read_job(request, pixels(1, **masked))
    spoilt = pixels(2)
    spoilt["target"][1, 2, 3] = 7
    with pytest.raises(LabelOutOfRangeError, match=r"label 7 at target\[1, 2, 3\]"):
        read_job(request, spoilt)
    masked["mask"][0, 0, 0] = np.nan
    with pytest.raises(InvalidInputError, match="holds NaN"):
        read_job(request, pixels(1, **masked))


def test_a_task_that_the_values_told_is_told_by_them_again() -> None:
    request = read_request({"losses": ["dice"]})
    one_hot = np.moveaxis(np.eye(3, dtype=np.uint8)[pixels(1)["target"]], -1, 1)
    assert read_job(request, pixels(1, target=one_hot)).task == "multiclass"
    with pytest.raises(InvalidInputError, match="do not sum to 1"):
        read_job(request, pixels(1, target=np.ones_like(one_hot)))


def test_what_is_remembered_goes_with_its_object() -> None:
    remembered, owner = Remembered[int](), {1, 2}
    for number in range(40):
        remembered.keep(owner, number, number)
    assert remembered.get(owner, 39) == 39
    assert remembered.get(owner, 0) is None
    assert [number for number in range(40) if remembered.get(owner, number)] == [*range(24, 40)]
    del owner
    gc.collect()
    assert not vars(remembered)["_values"]
