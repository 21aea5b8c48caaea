"""The wire format: what goes in comes out, as with the safetensors library, and nothing else."""

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from lossd_client.errors import MalformedBodyError
from lossd_client.wire import (
    NUMPY_DTYPES,
    SAFETENSORS_CODES,
    Array,
    EvaluateRequest,
    decode_safetensors,
    decode_tensor,
    dtype_name,
    encode_safetensors,
    encode_tensor,
    numbered,
    split_numbered,
)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    name = draw(st.sampled_from(sorted(NUMPY_DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    dtype = NUMPY_DTYPES[name]
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count))
    if name == "bool":
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return draw(st.sampled_from([array, array.transpose(), np.flip(array)]))


tables = st.dictionaries(st.text("abc/_01é", min_size=1, max_size=6), arrays(), max_size=5)


def same_bits(first: Array, second: Array) -> bool:
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and first.tobytes() == second.tobytes()


def torch_tensor(array: Array) -> torch.Tensor:
    dtype: torch.dtype = vars(torch)[dtype_name(array)]
    if array.size == 0:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.tobytes()), dtype=dtype).reshape(array.shape)


def body_of(tensors: dict[str, Array], metadata: dict[str, str] | None = None) -> bytes:
    return b"".join(encode_safetensors(tensors, metadata or {}))


def body_with(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}


@given(arrays())
def test_a_tensor_survives_json(array: Array) -> None:
    document = json.loads(json.dumps(encode_tensor(array)))
    assert same_bits(decode_tensor(document), array)


@given(tables, st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_tables_survive_safetensors(tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    decoded, found = decode_safetensors(body_of(tensors, metadata))
    assert found == metadata
    assert list(decoded) == list(tensors)
    assert all(same_bits(decoded[name], tensors[name]) for name in tensors)


@given(tables)
def test_the_library_reads_what_is_written_here(tensors: dict[str, Array]) -> None:
    loaded = safetensors.torch.load(body_of(tensors, {"request": "{}"}))
    assert set(loaded) == set(tensors)
    for name, tensor in loaded.items():
        assert tuple(tensor.shape) == tensors[name].shape
        assert str(tensor.dtype) == f"torch.{dtype_name(tensors[name])}"
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert raw.numpy().tobytes() == tensors[name].tobytes()


@given(tables)
def test_what_the_library_writes_is_read_here(tensors: dict[str, Array]) -> None:
    body = safetensors.torch.save(
        {name: torch_tensor(array) for name, array in tensors.items()}, metadata={"a": "b"}
    )
    decoded, metadata = decode_safetensors(body)
    assert metadata == {"a": "b"}
    assert set(decoded) == set(tensors)
    assert all(same_bits(decoded[name], tensors[name]) for name in tensors)


def test_tensor_data_starts_on_a_cache_line() -> None:
    (header, view) = encode_safetensors({"x": np.zeros(3, np.float32)}, {})
    assert len(header) % 64 == 0
    assert len(view) == 12


def test_big_endian_arrays_travel_little_endian() -> None:
    decoded, _ = decode_safetensors(body_of({"x": np.array([1.0, 2.0], ">f4")}))
    assert decoded["x"].tolist() == [1.0, 2.0]


def test_nothing_is_copied_either_way() -> None:
    array = np.zeros(8, np.uint8)
    (_, view) = encode_safetensors({"x": array}, {})
    array[0] = 7
    assert view[0] == 7
    body = bytearray(body_of({"x": array}))
    decoded, _ = decode_safetensors(body)
    body[-8] = 9
    assert decoded["x"][0] == 9


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "complex64", "U4", "O", "M8[s]"])
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        dtype_name(np.empty(1, dtype))


def test_every_code_is_one_the_library_knows() -> None:
    for name, code in SAFETENSORS_CODES.items():
        size = NUMPY_DTYPES[name].itemsize
        header = {"x": entry(dtype=code, shape=[1], data_offsets=[0, size])}
        assert list(safetensors.torch.load(body_with(header, bytes(size)))) == ["x"]


ATTACKS: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\x01\x00\x00",
    "a length beyond the body": struct.pack("<Q", 100) + b"{}",
    "a length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "a header that is no JSON": body_with(b"{nope"),
    "a header that is no UTF-8": body_with(b'{"\xff\xfe": 1}'),
    "a header that is a list": body_with([]),
    "a header nested without end": body_with(b"[" * 100_000),
    "a number without end": body_with(b'{"x": ' + b"9" * 10_000 + b"}"),
    "metadata that is null": body_with({"__metadata__": None}),
    "metadata that is not text": body_with({"__metadata__": {"request": 1}}),
    "an entry that is a list": body_with({"x": []}),
    "an entry that is null": body_with({"x": None}),
    "an empty entry": body_with({"x": {}}, b"1234"),
    "an unknown dtype": body_with({"x": entry(dtype="F8_E4M3")}, b"1234"),
    "a dtype that is a list": body_with({"x": entry(dtype=[])}, b"1234"),
    "a dtype in lower case": body_with({"x": entry(dtype="u8")}, b"1234"),
    "a negative size": body_with({"x": entry(shape=[-4])}, b"1234"),
    "two negative sizes": body_with({"x": entry(shape=[-2, -2])}, b"1234"),
    "a size that is a fraction": body_with({"x": entry(shape=[4.0])}, b"1234"),
    "a size that is true": body_with({"x": entry(shape=[True, 4])}, b"1234"),
    "a shape that is text": body_with({"x": entry(shape="4")}, b"1234"),
    "a shape of nine axes": body_with({"x": entry(shape=[1] * 8 + [4])}, b"1234"),
    "a shape that overflows": body_with({"x": entry(shape=[2**40, 2**40])}, b"1234"),
    "an empty shape that overflows": body_with(
        {"x": entry(shape=[0, 2**47, 2**47], data_offsets=[0, 0])}
    ),
    "a shape that needs more bytes": body_with({"x": entry(shape=[5])}, b"1234"),
    "a shape that needs fewer bytes": body_with({"x": entry(shape=[3])}, b"1234"),
    "offsets that are one number": body_with({"x": entry(data_offsets=[0])}, b"1234"),
    "offsets that are text": body_with({"x": entry(data_offsets="04")}, b"1234"),
    "offsets that run backwards": body_with({"x": entry(data_offsets=[4, 0])}, b"1234"),
    "negative offsets": body_with({"x": entry(data_offsets=[-4, 0])}, b"1234"),
    "offsets beyond the body": body_with({"x": entry(data_offsets=[4, 8])}, b"1234"),
    "data that is cut short": body_of({"x": np.zeros(4, np.float32)})[:-1],
    "data after the last tensor": body_of({"x": np.zeros(4, np.float32)}) + b"!",
    "a hole between tensors": body_with(
        {"x": entry(), "y": entry(data_offsets=[5, 9])}, b"123456789"
    ),
    "two tensors in one place": body_with({"x": entry(), "y": entry()}, b"12345678"),
    "tensors that overlap": body_with({"x": entry(), "y": entry(data_offsets=[2, 6])}, b"12345678"),
    "one name twice": body_with(
        b'{"x":%b,"x":%b}'
        % (json.dumps(entry()).encode(), json.dumps(entry(data_offsets=[4, 8])).encode()),
        b"12345678",
    ),
}


@pytest.mark.parametrize("body", ATTACKS.values(), ids=ATTACKS)
def test_attacks_are_malformed_bodies(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        decode_safetensors(body)


@given(st.data())
def test_one_changed_byte_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(body_of({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.uint8)}))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    with suppress(MalformedBodyError):
        decode_safetensors(body)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        decode_safetensors(noise + b"\xff")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"dtype": "uint8", "shape": [1]},
        {"dtype": "uint8", "shape": [2], "base64": "AQ=="},
        {"dtype": "uint8", "shape": [1], "base64": "A"},
        {"dtype": "uint8", "shape": [1], "base64": "A?=="},
        {"dtype": "uint8", "shape": [1], "base64": 1},
        {"dtype": "uint16", "shape": [1], "base64": "AQI="},
        {"dtype": ["uint8"], "shape": [1], "base64": "AQ=="},
        {"dtype": "uint8", "shape": 1, "base64": "AQ=="},
    ],
)
def test_malformed_json_tensors_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedBodyError):
        decode_tensor(document)


def test_numbers_in_names_lead_to_their_objects() -> None:
    one = np.zeros(1)
    names = [numbered(index, name, 2) for index in range(2) for name in ("logits", "target")]
    objects = split_numbered(dict.fromkeys(names, one))
    assert [sorted(each) for each in objects] == [["logits", "target"]] * 2
    assert split_numbered({"gradient/logits": one}) == [{"gradient/logits": one}]


@pytest.mark.parametrize("names", [["0/x", "x"], ["0/x", "2/x"], ["1/x"], ["7777777/x", "0/x"]])
def test_gaps_between_numbers_are_refused(names: list[str]) -> None:
    with pytest.raises(MalformedBodyError):
        split_numbered(dict.fromkeys(names, np.zeros(1)))


def test_a_request_survives_json() -> None:
    request = EvaluateRequest.model_validate(
        {"losses": ["dice", {"name": "dice", "label": "again", "params": {"smooth_nr": 1}}]}
    )
    text = request.model_dump_json(exclude_defaults=True)
    assert EvaluateRequest.model_validate_json(text) == request
    assert [loss.row for loss in request.losses] == ["dice", "again"]


@pytest.mark.parametrize(
    "document",
    [
        {"losses": []},
        {"losses": ["dice", "dice"]},
        {"losses": [{"name": "dice", "label": "a/b"}]},
        {"losses": ["dice"], "gradient": "sum"},
        {"losses": ["dice"], "timeout_ms": 0},
        {"losses": ["dice"], "colour": "red"},
        {"losses": [{"name": "dice", "weight": float("nan")}]},
    ],
)
def test_malformed_requests_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EvaluateRequest.model_validate(document)
