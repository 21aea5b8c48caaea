"""Hostile bodies end as a job or a 4xx; what the fuzz has found stays found."""

import io
import json
import lzma
import struct
import tracemalloc
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from fuzz.bodies import KINDS_OF_BODY, body, deflated
from fuzz.walk import Body, outcome
from lossd.protocols.files import Budget, read_npz, read_tiff
from lossd_client.errors import MalformedBodyError
from lossd_client.wire import JSON, MULTIPART, SAFETENSORS
from service_fixture import b64, npy

SEED = 20
BODIES = 300 * len(KINDS_OF_BODY)
MIB = 1 << 20


def test_every_body_ends_as_a_job_or_a_4xx() -> None:
    found: Counter[tuple[str, str]] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they are about to refuse
        for number in range(BODIES):
            one = body(SEED, number)
            try:
                found[one.kind, outcome(one)] += 1
            except Exception as error:
                reproducer = Path("build/fuzz") / f"{SEED}-{number}.body"
                reproducer.parent.mkdir(parents=True, exist_ok=True)
                reproducer.write_bytes(one.data)
                msg = f"python -m fuzz --seed {SEED} --replay {number}; saved as {reproducer}"
                raise AssertionError(msg) from error
    for kind in KINDS_OF_BODY:
        # A fuzz whose bodies all fail at the door, or all pass, tests nothing.
        assert found[kind, "job"] > 30, found
        assert found[kind, "malformed_body"] > 30, found


def test_the_same_seed_makes_the_same_bodies() -> None:
    assert [body(SEED, number) for number in range(40)] == [body(SEED, n) for n in range(40)]


def answer(document: Any) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return outcome(Body(JSON, JSON, data))


@pytest.mark.parametrize("depth", [900, 1000, 1020, 100_000])
@pytest.mark.parametrize(
    "form",
    [
        b'{"dtype": "uint8", "shape": %s, "base64": ""}',
        b'{"rle": {"size": %s, "counts": [1]}}',
        b'{"rle": [[{"size": [1, 1], "counts": [1]}]], "labels": [[%s]]}',
        b'{"npy": %s}',
        b"%s",
    ],
)
def test_deep_lists_where_a_tensor_says_something_are_malformed(depth: int, form: bytes) -> None:
    nested = form % (b"[" * depth + b"]" * depth)
    assert answer(b'{"losses": ["l1"], "inputs": {"target": %s}}' % nested) == "malformed_body"


@pytest.mark.parametrize(
    "dtypes", [("M8[s]", "f4"), ("f4,f4", "i4,i4"), ("S9", "u1"), ("u1", "f8")]
)
def test_samples_of_different_dtypes_are_refused(dtypes: tuple[str, str]) -> None:
    files = [b64(npy(np.zeros((2, 2), dtype))) for dtype in dtypes]
    assert answer({"losses": ["dice"], "inputs": {"t": {"npy": files}}}) == "invalid_input"


def test_files_of_records_with_other_fields_are_refused() -> None:
    head = b'--e\r\nContent-Disposition: form-data; name="t"; filename="a.npy"\r\n\r\n'
    data = b"".join(
        head + npy(np.zeros(2, [(name, "f4"), ("b", "f4")])) + b"\r\n" for name in ("a", "c")
    )
    assert outcome(Body(MULTIPART, f"{MULTIPART}; boundary=e", data + b"--e--\r\n")) == (
        "invalid_input"
    )


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("n" * 10**6, {"dtype": "U8", "shape": [1], "data_offsets": [0, 9]}),
        ("n", {"dtype": "U8", "shape": [1] * 10**5, "data_offsets": [0, 0]}),
        ("n", {"dtype": "U" * 10**5, "shape": [1], "data_offsets": [0, 0]}),
    ],
)
def test_a_refusal_does_not_repeat_a_whole_header(name: str, entry: dict[str, Any]) -> None:
    header = json.dumps({name: entry}).encode()
    data = struct.pack("<Q", len(header)) + header
    assert outcome(Body(SAFETENSORS, SAFETENSORS, data)) == "malformed_body"


def tiff(pages: int, *, compression: int = 1, strip: bytes = b"\x01", then: int = 0) -> bytes:
    """Pages of 16 by 16 bytes in one strip; the last one points on to `then`."""
    file = bytearray(b"II*\x00" + struct.pack("<I", 8 + len(strip)) + strip)
    for page in range(pages):
        entries = [
            (256, 16), (257, 16), (258, 8), (259, compression), (262, 1),
            (273, 8), (277, 1), (278, 16), (279, len(strip)),
        ]  # fmt: skip
        end = len(file) + 2 + 12 * len(entries) + 4
        file += struct.pack("<H", len(entries))
        file += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        file += struct.pack("<I", end if page < pages - 1 else then)
    return bytes(file)


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def test_a_tiff_whose_pages_form_a_circle_is_malformed() -> None:
    circle = tiff(200, strip=bytes(256), then=8 + 256)
    with pytest.raises(MalformedBodyError, match="circle"):
        read_tiff(circle, "m", Budget(MIB))


def test_a_tiff_strip_that_unfolds_to_more_than_its_pixels_is_malformed() -> None:
    bomb = tiff(1, compression=8, strip=deflated(64 * MIB))
    with peak_below(4 * MIB), pytest.raises(MalformedBodyError, match="unfolds to more than"):
        read_tiff(bomb, "m", Budget(MIB))


def test_a_deflated_tiff_is_read() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    good = tiff(1, compression=8, strip=zlib.compress(mask.tobytes()))
    np.testing.assert_array_equal(read_tiff(good, "m", Budget(MIB)), mask)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
        {"imagej": True},
        {"ome": True, "compression": "zlib"},
        {"bigtiff": True, "byteorder": ">", "rowsperstrip": 3},
        {"metadata": None, "contiguous": False},
    ],
)
def test_a_stack_of_pages_is_read_however_it_was_written(options: dict[str, Any]) -> None:
    stack = np.arange(5 * 20 * 30, dtype=np.uint16).reshape(5, 20, 30)
    stream = io.BytesIO()
    tifffile.imwrite(stream, stack, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_tiff(stream.getvalue(), "m", Budget(MIB)), stack)


def test_a_tiff_in_packbits_is_read() -> None:
    rows = b"".join(bytes([256 - 15, row]) for row in range(16))
    mask = read_tiff(tiff(1, compression=32773, strip=rows), "m", Budget(MIB))
    assert mask.tolist() == [[row] * 16 for row in range(16)]


def test_a_tiff_in_lzma_is_malformed() -> None:
    bomb = tiff(1, compression=34925, strip=lzma.compress(bytes(4 * MIB)))
    with peak_below(MIB), pytest.raises(MalformedBodyError, match="compression 34925"):
        read_tiff(bomb, "m", Budget(MIB))


def test_an_npz_with_a_long_directory_is_refused_before_it_is_read() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", b"")
    data = stream.getvalue()
    begin, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    directory = data[begin:end] * 20_000
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), begin, 0)
    bomb = data[:begin] + directory + tail
    with peak_below(MIB), pytest.raises(MalformedBodyError, match="many files"):
        read_npz(bomb, "m", Budget(MIB))


class Payload:
    """Writes a file if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.path, "unpickled")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(trace)], dtype=object), allow_pickle=True)
    assert answer({"losses": ["l1"], "inputs": {"t": {"npy": b64(stream.getvalue())}}}) == (
        "malformed_body"
    )
    assert not trace.exists()
    stream.seek(0)
    np.load(stream, allow_pickle=True)  # that the payload works
    assert trace.exists()


@pytest.mark.parametrize("counts", [[2**62], "o" * 7, [2**63, 2**63]])
def test_a_huge_rle_is_refused_before_it_is_unrolled(counts: Any) -> None:
    mask = {"rle": {"size": [2**31, 2**31], "counts": counts}}
    with peak_below(MIB):
        assert answer({"losses": ["dice"], "inputs": {"target": mask}}) == "too_large"


def test_the_memory_of_many_bodies_is_given_back() -> None:
    def some() -> None:
        for number in range(80):
            outcome(body(SEED, number))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some()
        tracemalloc.start()
        try:
            some()
            before = tracemalloc.get_traced_memory()[0]
            some()
            assert tracemalloc.get_traced_memory()[0] - before < MIB
        finally:
            tracemalloc.stop()


FORM_HEAD = b'--e\r\nContent-Disposition: form-data; name="t"; filename="a.npy"\r\n\r\n'


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        (MULTIPART, FORM_HEAD + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=", FORM_HEAD + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary={'e' * 500}", FORM_HEAD + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=e; charset=utf-7", FORM_HEAD + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary*=utf-8''e", FORM_HEAD + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=e", FORM_HEAD * 20_000 + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=e", (FORM_HEAD + b"\r\n") * 20_000 + b"--e--\r\n"),
        (f"{MULTIPART}; boundary=e", FORM_HEAD + b"\r\n--" * 100_000 + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=e", FORM_HEAD + FORM_HEAD[3:] + b"\r\n--e--\r\n"),
        (f"{MULTIPART}; boundary=e", b'--e\r\nContent-Disposition: \xff; name="\xff"\r\n\r\n'),
    ],
)
def test_a_form_that_is_odd_all_over_is_malformed(content_type: str, data: bytes) -> None:
    with peak_below(32 * MIB):
        assert outcome(Body(MULTIPART, content_type, data)) == "malformed_body"


def test_a_refusal_does_not_repeat_a_long_key() -> None:
    assert answer({"losses": ["l1"], "inputs": {"t": {"k" * 10**5: 1}}}) == "malformed_body"
