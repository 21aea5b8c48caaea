"""Whatever holds numbers becomes an array of the wire, or is refused by name."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from lossd_client._tensors import to_array
from lossd_client.wire import NUMPY_DTYPES


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_torch_tensors_keep_their_bits(name: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(vars(torch)[name])
    array = to_array(tensor, "logits")
    assert array.dtype == NUMPY_DTYPES[name]
    assert array.astype(float).tolist() == tensor.double().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_tensors_with_history_are_read(dtype: torch.dtype) -> None:
    tensor = torch.arange(6, dtype=dtype).reshape(2, 3).requires_grad_()
    array = to_array(tensor.t()[::2], "logits")
    assert array.astype(float).tolist() == [[0, 3], [2, 5]]


def test_numpy_and_torch_are_not_copied() -> None:
    array = np.zeros(3, np.float32)
    assert to_array(array, "logits") is array
    tensor = torch.zeros(3)
    to_array(tensor, "logits")[0] = 5
    assert tensor[0] == 5


class OnCpu:
    """Like jax: `__array__` beside DLPack that numpy cannot read."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones(2, ml_dtypes.bfloat16)

    def __dlpack__(self, **_: object) -> Any:
        raise BufferError("no bfloat16")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class OnDevice:
    """Like cupy: `__array__` refuses, DLPack fetches from the device."""

    def __array__(self) -> Any:
        raise TypeError("implicit conversion")

    def __dlpack__(self, **options: Any) -> Any:
        assert options["dl_device"] == (1, 0)
        return np.arange(3.0).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def test_other_libraries_are_read_where_their_data_lies() -> None:
    assert to_array(OnCpu(), "logits").dtype == ml_dtypes.bfloat16
    assert to_array(OnDevice(), "logits").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1.5, "float64"), ([1, 2], "int64"), ([True], "bool"), (np.float16(1), "float16")],
)
def test_lists_and_numbers_follow_numpy(value: Any, dtype: str) -> None:
    assert to_array(value, "target").dtype == dtype


@pytest.mark.parametrize(
    "value",
    [np.zeros(1, np.uint16), torch.zeros(1, dtype=torch.complex64), ["a"], [object()], None],
)
def test_other_dtypes_name_their_input(value: Any) -> None:
    with pytest.raises(TypeError, match="input '1/target': dtype"):
        to_array(value, "1/target")


def test_ragged_lists_name_their_input() -> None:
    with pytest.raises(ValueError, match="input 'target'"):
        to_array([[1], [2, 3]], "target")


def test_the_client_never_imports_torch() -> None:
    code = "import sys, lossd_client; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - a fixed command


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_on_a_gpu_are_fetched(dtype: torch.dtype) -> None:
    tensor = torch.arange(4, dtype=dtype, device="cuda")
    assert to_array(tensor, "logits").astype(float).tolist() == [0, 1, 2, 3]
