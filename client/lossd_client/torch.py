"""A loss for training loops: values and gradients from the service, as part of torch's graph.

The only module of the client that needs torch: `pip install lossd-client[torch]`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from lossd_client._client import Client
from lossd_client._protocol import Losses, Tensor
from lossd_client._result import Result
from lossd_client.wire import Array, GradientDtype, Preset, Task

Reduction = Literal["mean", "sum", "none"]

# Inputs that belong to all samples; their gradient is a sum over the samples.
_SHARED_INPUTS = ("centers", "weights")


class RemoteLoss(torch.nn.Module):
    """Losses of a lossd service, as a module whose `backward()` uses the service's gradient.

    Every forward pass is one request. The gradient is asked for with it if a tensor requires one,
    and waits in main memory until `backward()`. It cannot be differentiated again.

    Args:
        client: the service's client, or its URL.
        losses: one loss or several, as for `Client.evaluate`; their `total` is the value.
        reduction: `mean` or `sum` over the samples, or `none`: one value per sample.
        task: as for `Client.evaluate`, like all that follow.
        ignore_index: label that removes a pixel from every sum and mean.
        spacing: physical size of a pixel along each spatial axis.
        preset: library whose conventions hold where a loss is given no parameter; samples are
            valued one by one in any case.
        gradient_dtype: dtype in which gradients travel.
        timeout_ms: deadline on the service, in milliseconds.

    Raises:
        ValueError: `reduction` has no meaning.

    Example:
        >>> criterion = RemoteLoss("http://127.0.0.1:8000", ["dice", "focal"], ignore_index=255)
        >>> criterion
        RemoteLoss(Client('http://127.0.0.1:8000'), ['dice', 'focal'], reduction='mean')
        >>> logits = model(images)  # doctest: +SKIP
        >>> criterion(logits, target).backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        client: Client | str,
        losses: Losses,
        *,
        reduction: Reduction = "mean",
        task: Task | None = None,
        ignore_index: int | None = None,
        spacing: Sequence[float] | None = None,
        preset: Preset | None = None,
        gradient_dtype: GradientDtype | None = None,
        timeout_ms: float | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
        self.reduction: Reduction = reduction
        self._client = Client(client) if isinstance(client, str) else client
        self._losses = losses
        self._options: dict[str, Any] = {
            "task": task,
            "ignore_index": ignore_index,
            "spacing": spacing,
            "preset": preset,
            "aggregate": "sample",  # which a preset would change
            "gradient_dtype": gradient_dtype,
            "timeout_ms": timeout_ms,
        }

    def __repr__(self) -> str:
        return f"RemoteLoss({self._client!r}, {self._losses!r}, reduction={self.reduction!r})"

    def forward(
        self, logits: Tensor | None = None, target: Tensor | None = None, **tensors: Tensor
    ) -> torch.Tensor:
        """Weighted total of the losses, reduced over the samples.

        Args:
            logits: as for `Client.evaluate`, on any device; so are the others.
            target: labels or masks, or anything else that stands for a tensor there.
            **tensors: further inputs: `mask`, `weight_map`, `probabilities`, `prediction`, …

        Returns:
            A scalar, or `[B]` with `reduction="none"`: float64 if an input that requires a gradient
            is, else float32; on that input's device, or on the first tensor's.

        Raises:
            ValueError: a tensor requires a gradient that the service does not give, or one that
                is a sum over the samples with `reduction="none"`.
            LossdError: as for `Client.evaluate`.
        """
        inputs = {"logits": logits, "target": target, **tensors}
        names = [name for name, value in inputs.items() if _is_differentiable(value)]
        if self.reduction == "none" and not set(names).isdisjoint(_SHARED_INPUTS):
            raise ValueError(f"reduction='none' has no gradient for {', '.join(_SHARED_INPUTS)}")
        arguments: dict[str, Any] = {**inputs, **self._options}
        evaluate = partial(self._client.evaluate, self._losses, **arguments)
        if not names:
            return _reduced(_placed(evaluate(), _first_tensor(inputs.values())), self.reduction)
        apply: Callable[..., torch.Tensor] = _Total.apply
        return _reduced(apply(evaluate, names, *(inputs[n] for n in names)), self.reduction)


class _Total(torch.autograd.Function):
    """The total of every sample; its derivative was computed with it."""

    @staticmethod
    def forward(
        ctx: Any, evaluate: Callable[..., Result], names: Sequence[str], *inputs: torch.Tensor
    ) -> torch.Tensor:
        result = evaluate(gradient="total")
        missing = [name for name in names if name not in result.gradient]
        if missing:
            raise ValueError(f"{missing[0]} requires a gradient, and there is none: detach it")
        ctx.names = names
        ctx.gradients = [_tensor(result.gradient[name]) for name in names]
        ctx.inputs = [(each.device, each.dtype) for each in inputs]
        return _placed(result, inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = [
            _scaled(name, gradient.to(device), slope.to(device)).to(dtype)
            for name, gradient, (device, dtype) in zip(
                ctx.names, ctx.gradients, ctx.inputs, strict=True
            )
        ]
        return (None, None, *found)


def _scaled(name: str, gradient: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The gradient times the slope `[B]` of what was made of the samples' totals."""
    factor = slope.to(gradient.dtype)
    if name in _SHARED_INPUTS:
        return gradient * factor[0]  # mean and sum give all samples the same slope
    return gradient * factor.reshape(-1, *(1,) * (gradient.ndim - 1))


def _placed(result: Result, beside: torch.Tensor | None) -> torch.Tensor:
    """The totals in the dtype and on the device that go with a tensor."""
    total = _tensor(result.total)
    if beside is None:
        return total.float()
    dtype = torch.float64 if beside.dtype == torch.float64 else torch.float32
    return total.to(beside.device, dtype)


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _reduced(total: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    if reduction == "mean":
        return total.mean()
    return total.sum() if reduction == "sum" else total


def _is_differentiable(value: object) -> bool:
    return torch.is_grad_enabled() and isinstance(value, torch.Tensor) and value.requires_grad


def _first_tensor(values: Iterable[object]) -> torch.Tensor | None:
    return next((value for value in values if isinstance(value, torch.Tensor)), None)
