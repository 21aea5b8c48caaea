"""Predictions: where they are, what they are, and what is wrong with them."""

import mmap
import os
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from lossd_client.qa.archives import PlacedFile
from lossd_client.qa.arrays import ArrayFile
from lossd_client.qa.predictions import (
    Kind,
    PredictionSource,
    Values,
    _range,
    check_values,
    choose_kind,
    read_predictions,
)
from lossd_client.qa.problems import DataError

LOGITS = np.array([[[2.0, -1.0]], [[0.5, 3.0]], [[0.0, 0.0]]], np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=0)


def archive(path: Path, arrays: dict[str, Values]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, values in arrays.items():
            # With an extra field, as numpy writes members.
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values)


def one(folder: Path, values: Values) -> PredictionSource:
    np.save(folder / "a.npy", values)
    return read_predictions(folder)


def test_a_folder_and_an_archive_hold_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "street").mkdir(parents=True)
    np.save(folder / "street" / "a.npy", LOGITS.astype(np.float16))
    archive(tmp_path / "all.npz", {"street/a": LOGITS.astype(np.float16)})
    for source in (read_predictions(folder), read_predictions(tmp_path / "all.npz")):
        (entry,) = source
        assert (entry.name, entry.shape, entry.holds) == ("street/a", (3, 1, 2), "floats")
        assert (entry.size, entry.class_count) == ((1, 2), 3)
        assert entry.read().dtype == np.float16
        assert (entry.read() == LOGITS).all()


def test_threads_have_their_own_places_in_a_file(tmp_path: Path) -> None:
    """What `zipfile` does in CPython 3.12 and 3.13: it seeks from where it read last."""
    (tmp_path / "a").write_bytes(bytes(range(200)))
    with (
        PlacedFile(os.open(tmp_path / "a", os.O_RDONLY)) as file,
        ThreadPoolExecutor(1) as pool,
    ):
        assert (file.seek(10), file.read(2)) == (10, bytes([10, 11]))
        assert pool.submit(file.tell).result() == 0
        pool.submit(file.seek, 100).result()
        assert pool.submit(file.read, 3).result() == bytes([100, 101, 102])
        assert (file.seek(3, os.SEEK_CUR), file.read(1)) == (15, bytes([15]))
        assert (file.seek(-1, os.SEEK_END), file.read()) == (199, bytes([199]))
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="-1 lies before the start"):
            file.seek(-1)


def test_an_archive_is_read_by_threads(tmp_path: Path) -> None:
    arrays: dict[str, Values] = {
        f"n{number}": np.full((3, 64, 64), number, np.float32) for number in range(40)
    }
    archive(tmp_path / "all.npz", arrays)
    source = read_predictions(tmp_path / "all.npz")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            found = pool.map(lambda entry: float(entry.read().max()), source)
            assert sorted(found) == list(range(40))


def test_one_member_at_a_time_is_read(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez_compressed(path, a=LOGITS, b=LOGITS, c=LOGITS)
    # b's data is broken; the others can be read all the same.
    with zipfile.ZipFile(path) as file:
        place = file.getinfo("b.npy").header_offset
    data = bytearray(path.read_bytes())
    data[place + 60 : place + 70] = bytes(10)
    path.write_bytes(data)
    source = read_predictions(path)
    assert [entry.name for entry in source] == ["a", "c"]
    assert all((entry.read() == LOGITS).all() for entry in source)
    (problem,) = source.problems
    assert (problem.kind, problem.file) == ("unreadable", f"{path}:b.npy")


def test_pictures_and_integers_are_labels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2]], np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.array([[1, 0]]))
    source = read_predictions(tmp_path)
    assert [entry.class_count for entry in source] == [None, None]
    assert [entry.size for entry in source] == [(1, 2), (1, 2)]
    assert [entry.read().tolist() for entry in source] == [[[0, 2]], [[1, 0]]]
    assert choose_kind(source).kind == "labels"


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        (LOGITS, "logits", "lies in [-1, 3]"),
        (SOFTMAX, "probabilities", "adds up to 1 over its classes"),
        (SOFTMAX.astype(np.float16), "probabilities", "adds up to 1 over its classes"),
        (np.array([[0.25, 0.5]]), "probabilities", "lies in [0.25, 0.5]"),
        (np.array([[[0.25, 0.5]]]), "probabilities", "lies in [0.25, 0.5]"),
        (np.array([[-0.25, 0.5]]), "logits", "lies in [-0.25, 0.5]"),
        (np.array([[0.0, 3.0]]), "labels", "whole numbers up to 3"),
        (np.array([[0.5, 3.0]]), "logits", "lies in [0.5, 3]"),
        (np.array([[True, False]]), "labels", "holds integers"),
    ],
)
def test_auto_says_its_choice_and_why(
    tmp_path: Path, values: Values, kind: Kind, reason: str
) -> None:
    choice = choose_kind(one(tmp_path, values))
    assert choice.kind == kind
    assert reason in choice.reason


def test_auto_does_not_guess(tmp_path: Path) -> None:
    source = one(tmp_path, np.array([[[0.9, 0.1]], [[0.9, 0.2]]]))
    with pytest.raises(DataError, match=r"adds up to 0\.3 to 1\.8 .*; say --prediction-kind"):
        choose_kind(source)
    assert choose_kind(source, "logits").kind == "logits"
    np.save(tmp_path / "b.npy", LOGITS)
    np.save(tmp_path / "a.npy", SOFTMAX)
    with pytest.raises(DataError, match=r"differ: .*Say --prediction-kind"):
        choose_kind(read_predictions(tmp_path))
    with pytest.raises(DataError, match="no prediction that can be read"):
        choose_kind(PredictionSource("p", ()))


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        (LOGITS, "probabilities", "has probabilities -1.0 to 3.0; allowed are 0 to 1"),
        (np.array([[0, 3]]), "labels", "predicts labels 0 to 3; allowed are 0 to 2"),
        (np.array([[-1, 2]]), "labels", "predicts labels -1 to 2"),
        (np.array([[0.5, 2]]), "labels", "no whole numbers"),
        (LOGITS, "labels", r"the shape \[3, 1, 2\]; predicted labels are \[H, W\]"),
        (np.array([[0, 1]]), "logits", "holds int64; logits are floats"),
        (np.array([[0.0, np.nan, np.inf]]), "logits", "2 values are not finite"),
        (np.zeros((3, 0, 2)), "logits", "without a value"),
    ],
)
def test_values_that_are_not_of_their_kind_are_told(values: Values, kind: Kind, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_values(values, kind, 3, "a.npy")


def test_files_that_cannot_be_read_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "fine.npy", LOGITS)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "line.npy", np.zeros(3))
    np.save(tmp_path / "stack.npy", np.zeros((2, 3, 4), int))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    (tmp_path / "huge.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999, 99)}".ljust(117)
        + b"\n"
    )
    source = read_predictions(tmp_path)
    assert [entry.name for entry in source] == ["fine"]
    told = "\n".join(map(str, source.problems))
    assert len(source.problems) == 5
    for piece in (
        "text.npy: holds <U1",
        "line.npy: has the shape [3]; wanted is [C, H, W] or [H, W]",
        "stack.npy: has the shape [2, 3, 4]; wanted is [H, W]",
        "broken.npz: cannot be read as an archive of arrays",
        "huge.npy: cannot be read as an array: its header asks for",
    ):
        assert piece in told


def test_a_member_that_stands_there_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, a=LOGITS)
    data = zipfile.ZipFile(path).read("a.npy")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("a.npy", data)
    (problem,) = read_predictions(path).problems
    assert (problem.kind, problem.detail) == ("duplicate", "has the member 'a.npy' twice")


def test_a_member_that_claims_more_than_the_archive_can_hold_is_told(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez_compressed(path, a=LOGITS)
    with zipfile.ZipFile(path) as file:
        size_bytes = file.getinfo("a.npy").file_size
    # The directory at the end of the archive repeats the size, and is what readers believe.
    front, _, back = path.read_bytes().rpartition(struct.pack("<I", size_bytes))
    path.write_bytes(front + struct.pack("<I", 2**31) + back)
    (problem,) = read_predictions(path).problems
    assert "2147483648 bytes cannot come out of an archive of this size" in problem.detail


def test_an_array_of_the_second_version_is_read_and_of_no_later(tmp_path: Path) -> None:
    for version in ((2, 0), (3, 0)):
        with (tmp_path / f"v{version[0]}.npy").open("wb") as file:
            np.lib.format.write_array(file, LOGITS, version=version)
    source = read_predictions(tmp_path)
    assert [entry.read().tolist() for entry in source] == [LOGITS.tolist()]
    (problem,) = source.problems
    assert "version (3, 0) of the format; read are 1.0 and 2.0" in problem.detail


def test_a_member_that_is_packed_otherwise_is_told(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array(member, LOGITS)
    (problem,) = read_predictions(path).problems
    assert "packed in a way that numpy does not write" in problem.detail


def test_a_member_that_leads_elsewhere_is_told(tmp_path: Path) -> None:
    archive(tmp_path / "all.npz", {"../a": LOGITS})
    (problem,) = read_predictions(tmp_path / "all.npz").problems
    assert "no name of a file below the folder" in problem.detail


def test_a_place_without_predictions_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            DataError, match=r"holds no predictions\. Looked for: a folder of \.npy"
        ):
            read_predictions(place)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4"])
def test_what_is_sent_is_what_is_read(tmp_path: Path, dtype: str, order: Literal["C", "F"]) -> None:
    values = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", np.array(values, order=order))
    np.savez(tmp_path / "b.npz", a=values)
    (entry,) = read_predictions(tmp_path / "a.npy")
    (member,) = read_predictions(tmp_path / "b.npz")
    np.testing.assert_array_equal(entry.mapped(), entry.read())
    np.testing.assert_array_equal(member.mapped(), values)
    owner: Any = entry.mapped()
    while isinstance(owner, np.ndarray):
        owner = owner.base
    is_mapped = isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap)
    assert is_mapped == (order == "C" and dtype != ">f4")


def test_a_file_that_was_cut_off_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 4), np.float32))
    (entry,) = read_predictions(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read as an array"):
        entry.mapped()


def test_threads_read_headers_of_arrays_one_after_the_other(
    tmp_path: Path, headers_at_a_time: list[int]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), ">f4"))  # not the usual header
    (entry,) = read_predictions(tmp_path / "a.npy")
    headers_at_a_time.clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: entry.read(), range(8)))
    assert headers_at_a_time == [1] * 8
    assert {array.shape for array in found} == {(2, 3, 4)}


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "|u1", "<i2", "|b1", ">f4"])
@pytest.mark.parametrize("shape", [(4,), (2, 0), (3, 4), (2, 3, 4), ()])
@pytest.mark.parametrize("order", ["C", "F"])
def test_headers_say_what_numpy_reads_in_them(
    dtype: str, shape: tuple[int, ...], order: Literal["C", "F"], tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(shape, dtype, order))
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        expected = np.lib.format.read_array_header_1_0(file)
    array = ArrayFile(path)
    assert array.header() == (expected[0], expected[2])
    assert sum(piece.size for piece in array.blocks()) == np.prod(shape, dtype=int)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (01,), }",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)",
    ],
)
def test_headers_that_numpy_does_not_write_are_refused_as_it_refuses_them(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + f"{text}\n".encode())
    with path.open("ab") as file:
        file.write(bytes(4))
    with pytest.raises(DataError, match="cannot be read as an array"):
        ArrayFile(path).header()


def test_an_array_that_becomes_shorter_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(1 << 20, np.float32))
    pieces = ArrayFile(path).blocks()
    assert next(pieces).size == 1 << 18
    with path.open("r+b") as file:
        file.truncate(3 << 20)
    with pytest.raises(DataError, match="cannot be read as an array"):
        list(pieces)


HALVES = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40)


@given(HALVES)
@example([0x7C01])  # NaN that signals
@example([0x8000])
def test_the_range_of_halves_is_that_of_their_values(bits: list[int]) -> None:
    values = np.array(bits, np.uint16).view(np.float16)
    low, high = _range(values)
    if np.isnan(values).any():
        assert np.isnan(low) or np.isnan(high)
    else:
        assert (low, high) == (values.min(), values.max())
        assert not (low == 0 and np.signbit(low))


def test_the_kind_is_told_by_all_blocks(tmp_path: Path) -> None:
    values = np.zeros((2, 600, 600), np.float16)
    values[0] = 1
    assert choose_kind(one(tmp_path, values)).kind == "probabilities"
    values[1, -1, -1] = 1.5
    choice = choose_kind(one(tmp_path, values))
    assert choice.kind == "logits"
    assert choice.reason.endswith("lies in [0, 1.5]")
    values[1, -1, -2:] = np.nan, np.inf
    with pytest.raises(DataError, match="2 values are not finite"):
        choose_kind(one(tmp_path, values))
