"""Decoders of single files: right on good bytes, and no worse than a 4xx on any others."""

import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.files import (
    READERS,
    Budget,
    read_class_rles,
    read_npy,
    read_npz,
    read_png,
    read_rle,
)
from lossd.protocols.json_body import Sources, read_json
from lossd.protocols.multipart_body import read_multipart, split_parts
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd_client.errors import (
    InvalidInputError,
    LossdError,
    MalformedBodyError,
    TooLargeError,
)
from service_fixture import npy, npz, png, runs, safetensors

MIB = 1 << 20


def budget() -> Budget:
    return Budget(MIB)


masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32)).map(
    lambda drawn: (np.random.default_rng(drawn[2]).random(drawn[:2]) < 0.5).astype(np.uint8)
)


@given(masks)
def test_an_rle_decodes_as_coco_does(mask: Any) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    compressed = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(read_rle(compressed, "m", budget()), mask)
    np.testing.assert_array_equal(read_rle(runs(mask), "m", budget()), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # COCO's
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12).filter(lambda r: sum(r) > 0))
def test_long_runs_decode_as_coco_does(counts: list[int]) -> None:
    size = [sum(counts), 1]
    # COCO's encoder takes no empty run but the first, so compare what it makes of these.
    encoded = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
    text = {"size": size, "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(read_rle(text, "m", budget()), coco_mask.decode(encoded))
    listed = {"size": size, "counts": counts}
    np.testing.assert_array_equal(read_rle(listed, "m", budget()), coco_mask.decode(encoded))


def test_an_rle_runs_down_the_columns() -> None:
    mask = read_rle({"size": [2, 3], "counts": [1, 2, 3]}, "m", budget())
    assert mask.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"size": [2, 2]},
        {"size": 4, "counts": [4]},
        {"size": [2], "counts": [2]},
        {"size": [2, 2, 1], "counts": [4]},
        {"size": [2.0, 2], "counts": [4]},
        {"size": [0, 4], "counts": [0]},
        {"size": [-2, -2], "counts": [4]},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": 4},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": []},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": ["4"]},
        {"size": [2, 2], "counts": [4.0]},
        {"size": [2, 2], "counts": [float("inf")]},
        {"size": [2, 2], "counts": [1 << 70]},
        {"size": [2, 2], "counts": [1 << 62] * 4 + [4]},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "4\x00"},
        {"size": [2, 2], "counts": "ä"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "o" * 50 + "0"},
        {"size": [2, 2], "counts": "5O"},
    ],
)
def test_an_rle_that_does_not_add_up_is_malformed(document: Any) -> None:
    with pytest.raises(MalformedBodyError, match=r"^m: "):
        read_rle(document, "m", budget())


def test_an_rle_bomb_is_refused_before_it_is_unrolled() -> None:
    with pytest.raises(TooLargeError, match="unfolds to 1000000000000 bytes"):
        read_rle({"size": [10**6, 10**6], "counts": [10**12]}, "m", budget())


def test_many_small_masks_share_one_budget() -> None:
    half = {"size": [MIB // 2, 1], "counts": [MIB // 2]}
    document = {"losses": ["dice"], "inputs": {"target": {"rle": [half, half, half]}}}
    with pytest.raises(TooLargeError, match="left"):
        read_json(json.dumps(document).encode(), Sources(budget()))
    with pytest.raises(TooLargeError, match="left"):
        read_class_rles(
            [{"size": [1000, 100], "counts": [100000]}] * 60, [1] * 60, 0, "m", budget()
        )


def test_later_classes_overwrite_earlier_ones() -> None:
    first, second = np.array([[1, 1, 0]], np.uint8), np.array([[0, 1, 0]], np.uint8)
    painted = read_class_rles([runs(first), runs(second)], [3, 5], 9, "m", budget())
    assert painted.tolist() == [[3, 5, 9]]


@pytest.mark.parametrize(
    ("labels", "background", "error"),
    [
        ([], 0, MalformedBodyError),
        ([1, 2], 0, MalformedBodyError),
        (["1"], 0, MalformedBodyError),
        ([True], 0, MalformedBodyError),
        ([1], "0", MalformedBodyError),
        ([1 << 40], 0, InvalidInputError),
        ([1], -(1 << 40), InvalidInputError),
    ],
)
def test_class_labels_are_one_small_integer_per_mask(
    labels: Any, background: Any, error: type[LossdError]
) -> None:
    with pytest.raises(error):
        read_class_rles([runs(np.ones((1, 2)))], labels, background, "m", budget())


def test_masks_of_one_sample_have_one_size() -> None:
    with pytest.raises(InvalidInputError, match="sizes"):
        read_class_rles([runs(np.ones((1, 2))), runs(np.ones((2, 1)))], [1, 2], 0, "m", budget())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [2_000, 10_000, 14_000, 2**31 - 1])
def test_a_png_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(TooLargeError):
        read_png(png_claiming(side, side), "m", budget())


def test_a_picture_with_colours_is_no_mask() -> None:
    from PIL import Image  # noqa: PLC0415 - only here

    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    with pytest.raises(InvalidInputError, match="RGB"):
        read_png(stream.getvalue(), "m", budget())


def test_a_truncated_png_is_malformed() -> None:
    whole = png(np.arange(64).reshape(8, 8))
    for length in range(len(whole) - 24):  # the end of the last two chunks holds no pixels
        with pytest.raises(MalformedBodyError):
            read_png(whole[:length], "m", budget())


def npy_claiming(header: str) -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_an_npy_bomb_is_refused_by_its_header() -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"
    with pytest.raises(TooLargeError):
        read_npy(npy_claiming(header), "m", budget())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00\x00\x00",
        npy_claiming("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        npy_claiming("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
        npy_claiming("{'descr': '<f4', 'fortran_order': False, 'shape': " + str((1,) * 33) + "}"),
        npy_claiming("{'descr': '<f4', 'fortran_order': False}"),
        npy_claiming("{'descr': 'nonsense', 'fortran_order': False, 'shape': ()}"),
        npy_claiming("(" * 5000),
        npy_claiming("-" * 9000 + "1"),
        npy_claiming("{'descr': '<f4', '"),
        npy_claiming("{'a': " + "[" * 9000),
        npy(np.arange(10.0))[:-1],
    ],
)
def test_a_bad_npy_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        read_npy(data, "m", budget())


def test_a_pickled_npy_is_refused() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(MalformedBodyError, match="pickled"):
        read_npy(stream.getvalue(), "m", budget())


def archive(data: bytes, method: int, times: int = 1) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for number in range(times):
            file.writestr(f"{number}.npy", data)
    return stream.getvalue()


def test_an_npz_bomb_is_refused_by_its_directory() -> None:
    with pytest.raises(TooLargeError):
        read_npz(npz(np.zeros(MIB, np.float64)), "m", budget())


def test_an_npz_that_lies_about_its_size_unfolds_to_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    largest = 0
    real = zlib.decompressobj

    class Watched:
        def __init__(self, *arguments: Any) -> None:
            self._real = real(*arguments)

        def decompress(self, data: bytes, limit: int = 0) -> bytes:
            nonlocal largest
            unfolded: bytes = self._real.decompress(data, limit)
            largest = max(largest, len(unfolded))
            return unfolded

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    bomb = bytearray(archive(b"\0" * (8 * MIB), zipfile.ZIP_DEFLATED))
    claimed = struct.pack("<I", 8 * MIB)
    while claimed in bomb:
        at = bomb.index(claimed)
        bomb[at : at + 4] = struct.pack("<I", 100)
    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(MalformedBodyError):
        read_npz(bytes(bomb), "m", budget())
    assert 0 < largest < MIB


@pytest.mark.parametrize(
    "data",
    [
        archive(npy(np.ones(2)), zipfile.ZIP_LZMA),
        archive(npy(np.ones(2)), zipfile.ZIP_BZIP2),
        archive(npy(np.ones(2)), zipfile.ZIP_STORED, times=2),
        archive(b"not an array", zipfile.ZIP_STORED),
        archive(npy(np.ones(2)), zipfile.ZIP_STORED)[:-30],
        lzma.compress(b"x"),
    ],
)
def test_a_bad_npz_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        read_npz(data, "m", budget())


# -- hostile bytes --------------------------------------------------------------------------------

LOGITS, LABELS = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 3, 4), np.uint8)
FORM_TYPE = "multipart/form-data; boundary=edge"


def form(*parts: tuple[str, bytes]) -> bytes:
    head = '--edge\r\nContent-Disposition: form-data; name="{0}"; filename="{0}"\r\n\r\n'
    lines = [head.format(name).encode() + data + b"\r\n" for name, data in parts]
    return b"".join(lines) + b"--edge--\r\n"


def tiff(array: Any) -> bytes:
    import tifffile  # noqa: PLC0415 - only here

    stream = io.BytesIO()
    tifffile.imwrite(stream, array)
    return stream.getvalue()


GOOD_FILES = {
    ".png": png(np.arange(12).reshape(3, 4)),
    ".tif": tiff(np.arange(12, dtype=np.uint8).reshape(3, 4)),
    ".npy": npy(LOGITS),
    ".npz": npz(LOGITS),
    ".safetensors": safetensors({}, {"a": LABELS}),
}
GOOD_JSON = json.dumps(
    {
        "losses": ["dice", {"name": "focal", "params": {"gamma": 1.0}}],
        "inputs": {
            "logits": LOGITS.tolist(),
            "target": {"rle": [[{"size": [3, 4], "counts": [2, 10]}]], "labels": [[1]]},
        },
    }
).encode()
GOOD_FILE = safetensors({"losses": ["dice"]}, {"logits": LOGITS, "target": LABELS})
GOOD_FORM = form(
    ("request", b'{"losses": ["dice"]}'),
    ("logits", npy(LOGITS[0])),
    ("target", png(LABELS[0])),
)


@st.composite
def damaged(draw: Callable[..., Any], good: bytes) -> bytes:
    """Good bytes with some overwritten, cut out or put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 8))
        data[at : at + length] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def survives(read: Callable[[], Any]) -> None:
    try:
        read()
    except LossdError as error:
        assert 400 <= error.status < 500  # noqa: PT017 - not raising at all is fine as well


hostile = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("ending", GOOD_FILES)
@hostile
@given(data=st.data())
def test_no_file_breaks_its_reader(ending: str, data: st.DataObject) -> None:
    body = data.draw(st.one_of(damaged(GOOD_FILES[ending]), st.binary(max_size=200)))
    survives(lambda: READERS[ending](body, "m", budget()))


def admit(document: dict[str, Any], inputs: Any) -> None:
    build_job(read_request(document), inputs, RequestLimits(16, 16))


@hostile
@given(st.one_of(damaged(GOOD_JSON), st.binary(max_size=100)))
def test_no_json_body_breaks_the_service(body: bytes) -> None:
    survives(lambda: admit(*read_json(body, Sources(budget()))))


@hostile
@given(st.one_of(damaged(GOOD_FILE), st.binary(max_size=100)))
def test_no_safetensors_body_breaks_the_service(body: bytes) -> None:
    survives(lambda: admit(*read_safetensors_body(body, Sources(budget()))))


@hostile
@given(st.one_of(damaged(GOOD_FORM), st.binary(max_size=100)))
def test_no_form_breaks_the_service(body: bytes) -> None:
    survives(lambda: admit(*read_multipart(body, FORM_TYPE, Sources(budget()))))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["dice", "focal", "float32", "iVBORw0KGgo=", "AAAA"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "logits",
                    "target",
                    "mask",
                    "weight_map",
                    "dtype",
                    "shape",
                    "base64",
                    "png",
                    "npy",
                    "rle",
                    "labels",
                    "size",
                    "counts",
                    "name",
                    "params",
                    "label",
                    "weight",
                    "gamma",
                    "alpha",
                    "classes",
                    "class_weights",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
documents = st.fixed_dictionaries(
    {"losses": st.just(["dice"]) | json_values, "inputs": json_values},
    optional=dict.fromkeys(("task", "ignore_index", "gradient", "maps", "timeout_ms"), json_values),
)


@hostile
@given(documents)
@example({"losses": ["dice"], "inputs": {"logits": [["x" * 1000, 1]], "target": [[1 << 63]]}})
@example({"losses": ["dice"], "inputs": {"logits": [[[[]]]], "target": [[[]]]}})
def test_no_document_breaks_the_service(document: Any) -> None:
    body = json.dumps(document).encode("utf-8", "surrogatepass")
    survives(lambda: admit(*read_json(body, Sources(budget()))))


ARRAYS = [
    npy(np.ones(shape, dtype) if dtype != "V4" else np.zeros(shape, dtype))
    for dtype in ("U3", "S2", "c8", "M8[s]", "?", "f2", "f8", ">f8", "u2", "u8", "V4", "g", "i1")
    for shape in ((1, 1, 1, 1), (1, 1, 1), ())
]


@hostile
@given(
    st.sampled_from(ARRAYS),
    st.sampled_from(ARRAYS),
    st.sampled_from([None, *ARRAYS]),
    st.sampled_from([None, *ARRAYS]),
    st.sampled_from(["", "binary", "multilabel"]),
    st.sampled_from(["", "255", "-1", "99999999999999999999999"]),
    st.booleans(),
)
def test_no_dtype_breaks_the_service(  # noqa: PLR0917 - drawn
    logits: bytes,
    target: bytes,
    mask: bytes | None,
    weight_map: bytes | None,
    task: str,
    ignore_index: str,
    sample_axis: bool,  # noqa: FBT001 - drawn
) -> None:
    parts = [("logits", logits), ("target", target)]
    parts += [(n, d) for n, d in (("mask", mask), ("weight_map", weight_map)) if d is not None]
    document: dict[str, Any] = {"losses": ["dice"], **({"task": task} if task else {})}
    if ignore_index:
        document["ignore_index"] = int(ignore_index)
    body = form(("request", json.dumps(document).encode()), *parts, *parts)
    field = b'--edge\r\nContent-Disposition: form-data; name="sample_axis"\r\n\r\ntrue\r\n'
    survives(
        lambda: admit(
            *read_multipart((field if sample_axis else b"") + body, FORM_TYPE, Sources(budget()))
        )
    )


def test_the_parts_of_a_form_are_views_of_the_body() -> None:
    body = bytearray(form(("a", b"\r\n--edg" * 3 + b"\r\r\n-"), ("b", b"payload")))
    first, second = split_parts(body, FORM_TYPE)
    assert bytes(first.data) == b"\r\n--edg" * 3 + b"\r\r\n-"
    assert second.data.obj is body
    assert (second.name, second.filename, bytes(second.data)) == ("b", "b", b"payload")


@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"e", b"\r\n--")), max_size=5))
def test_a_form_gives_back_what_was_put_in(payloads: list[bytes]) -> None:
    body = form(*((f"n{number}", payload) for number, payload in enumerate(payloads)))
    if payloads:
        assert [bytes(part.data) for part in split_parts(body, FORM_TYPE)] == payloads


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=other", GOOD_FORM),
        (FORM_TYPE, b""),
        (FORM_TYPE, GOOD_FORM[:-8]),
        (FORM_TYPE, b"--edge\r\n\r\nno header\r\n--edge--\r\n"),
        (FORM_TYPE, form(("a", b"")).replace(b"name=", b"gnome=").replace(b"filename", b"f")),
    ],
)
def test_a_bad_form_is_malformed(content_type: str, body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        split_parts(body, content_type)


def test_a_form_has_a_limit_of_parts() -> None:
    with pytest.raises(MalformedBodyError, match="at most"):
        split_parts(form(*[("a", b"")] * 9000), FORM_TYPE)


def test_threads_read_headers_of_arrays_one_after_the_other(headers_at_a_time: list[int]) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float32))
    data = file.getvalue()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: read_npy(data, "a", Budget(1 << 20)), range(8)))
    assert headers_at_a_time == [1] * 8
    assert {array.shape for array in found} == {(3,)}
