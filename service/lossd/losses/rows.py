"""Sums over the elements of one row of a table, equal in every bit whatever the other rows are.

A library sum may split its work by the number of rows; a running sum does not.
"""

from __future__ import annotations

from torch import Tensor


def row_sum(values: Tensor) -> Tensor:
    """Sum of each row's elements, `[B]` from `[B, …]`, added in their order.

    Example:
        >>> import torch
        >>> row_sum(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
        tensor([3., 7.], dtype=torch.float64)
    """
    return values.reshape(len(values), -1).cumsum(-1)[:, -1]


def row_mean(values: Tensor) -> Tensor:
    """Mean of each row's elements, `[B]` from `[B, …]`.

    Example:
        >>> import torch
        >>> row_mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
        tensor([1.5000, 3.5000], dtype=torch.float64)
    """
    flat = values.reshape(len(values), -1)
    return row_sum(flat) / flat.shape[1]
