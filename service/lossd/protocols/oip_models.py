"""The models of the Open Inference Protocol: `evaluate`, and one for every loss."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from lossd.catalogue import describe
from lossd.losses import LOSSES, find_loss
from lossd.losses.kinds import ACTIVATION_INPUTS, KINDS, PIXEL_INPUTS, SHARED_INPUTS
from lossd_client.errors import MalformedBodyError, NotFoundError, UnknownLossError

EVALUATE: Final = "evaluate"
"""The model whose losses are named by the request."""
VERSION: Final = "1"
PLATFORM: Final = "lossd"

STATISTICS: Final = (
    *("soft_tp", "soft_fp", "soft_fn", "soft_tn"),
    *("hard_tp", "hard_fp", "hard_fn", "hard_tn", "pixels"),
)
"""Tables `statistics/…` of an answer about pixels."""

_ANY_INPUTS: Final = frozenset(PIXEL_INPUTS).union(
    one.name for inputs in KINDS.values() for one in inputs
)
_FLOATS: Final = "FP16,BF16,FP32,FP64"
_NUMBERS: Final = f"{_FLOATS},BOOL,UINT8,UINT16,UINT32,UINT64,INT8,INT16,INT32,INT64"
_LABELS: Final = "BOOL,UINT8,UINT16,UINT32,UINT64,INT8,INT16,INT32,INT64"
# Axes of any number, as images have them: the protocol knows a size of any length, but no shape.
_SPATIAL: Final = {"*S": ["-1", "-1"], "…": ["-1"]}


@dataclass(frozen=True)
class ModelTensor:
    """An input or output of a model.

    `shape` is that of the most usual form, -1 for any size: of images for pixels. `axes` is what it
    may be, in the catalogue's words.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    axes: str = ""
    datatypes: str = ""
    required: bool = True

    def metadata(self) -> dict[str, Any]:
        """The tensor as model metadata has it."""
        entry: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
        }
        if self.axes:
            entry["parameters"] = {
                "axes": self.axes,
                "datatypes": self.datatypes,
                "optional": not self.required,
            }
        return entry


@dataclass(frozen=True)
class Model:
    """What can be asked by name."""

    name: str
    loss: str | None
    """The one loss that it evaluates; None where the request says."""
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]

    @property
    def accepted(self) -> frozenset[str]:
        """Names of inputs that may come."""
        if self.loss is None:
            return _ANY_INPUTS
        return frozenset(one.name for one in self.inputs)

    @property
    def has_batch_axis(self) -> bool:
        """Whether the first axis of every input counts the samples."""
        return not any(one.name in SHARED_INPUTS for one in self.inputs)

    def metadata(self) -> dict[str, Any]:
        """The answer of `GET /v2/models/{name}`."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": [one.metadata() for one in self.inputs],
            "outputs": [one.metadata() for one in self.outputs],
        }

    def config(self, max_samples: int) -> dict[str, Any]:
        """The answer of `GET /v2/models/{name}/config`."""
        skipped = int(self.has_batch_axis)
        inputs = [
            {
                "name": one.name,
                "data_type": f"TYPE_{one.datatype}",
                "format": "FORMAT_NONE",
                "dims": list(one.shape[skipped:]),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": not one.required,
            }
            for one in self.inputs
        ]
        outputs = [
            {
                "name": one.name,
                "data_type": f"TYPE_{one.datatype}",
                "dims": list(one.shape[skipped:]),
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for one in self.outputs
        ]
        return {
            "name": self.name,
            "platform": "",
            "backend": PLATFORM,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": max_samples if skipped else 0,
            "input": inputs,
            "output": outputs,
            "dynamic_batching": {"max_queue_delay_microseconds": 0},
        }


def find_model(name: str, version: str | None = None) -> Model:
    """Model of a name; a loss's alias names its model, too.

    Raises:
        NotFoundError: there is none, or not in this version.
        MalformedBodyError: the version is no number.
    """
    if version is not None and not re.fullmatch(r"[0-9]{1,18}", version):
        msg = f"failed to get model version from specified version string '{version[:40]}'"
        raise MalformedBodyError(msg)
    try:
        loss = None if name == EVALUATE else find_loss(name).name
    except UnknownLossError as error:
        msg = f"Request for unknown model: '{name[:80]}' is not found"
        raise NotFoundError(msg) from error
    if version is not None and version != VERSION:
        msg = f"Request for unknown model: '{name[:80]}' version {version} is not found"
        raise NotFoundError(msg)
    return _model(loss)


def model_names() -> tuple[str, ...]:
    """Every model, in alphabetical order."""
    return tuple(sorted((EVALUATE, *LOSSES)))


@functools.cache
def _model(loss: str | None) -> Model:
    if loss is not None:
        return Model(loss, loss, tuple(_inputs(loss)), tuple(_outputs(loss)))
    pixel = [name for name in sorted(LOSSES) if LOSSES[name].kind == "pixel"]
    widest = next(name for name in pixel if "maps" in LOSSES[name].returns)
    outputs = [one for one in _outputs(widest) if one.name.startswith(("total", "gradient"))]
    values = [ModelTensor(f"loss/{name}", "FP64", (-1,)) for name in pixel]
    return Model(EVALUATE, None, tuple(_inputs(widest)), (*values, *outputs))


def _inputs(loss: str) -> Iterator[ModelTensor]:
    entry = describe(loss)
    for one in entry["inputs"]:
        labels = one["values"].startswith("integer")  # of pixels, they may be numbers, too
        datatypes = _LABELS if labels and entry["kind"] != "pixel" else _NUMBERS
        if one["name"] in ACTIVATION_INPUTS:
            datatypes = _FLOATS
        yield ModelTensor(
            name=one["name"],
            datatype="UINT8" if labels or one["name"] in ("mask", "similar") else "FP32",
            shape=_shape(one["axes"]),
            axes=one["axes"],
            datatypes=datatypes,
            required=one["required"],
        )


def _outputs(loss: str) -> Iterator[ModelTensor]:
    entry, returns = describe(loss), LOSSES[loss].returns
    yield ModelTensor(f"loss/{loss}", "FP64", (-1,))
    yield ModelTensor("total", "FP64", (-1,))
    for one in entry["inputs"]:
        if one["differentiable"]:
            yield ModelTensor(f"gradient/{one['name']}", "FP32", _shape(one["axes"]))
            yield ModelTensor(f"gradient_scale/{one['name']}", "FP32", (-1,))
    if "maps" in returns:
        yield ModelTensor(f"map/{loss}", "FP32", _shape("B *S"))
    if "per_class" in returns:
        yield ModelTensor(f"per_class/{loss}", "FP64", (-1, -1))
    if "statistics" in returns:
        for name in STATISTICS:
            yield ModelTensor(f"statistics/{name}", "FP64", (-1, -1))


def _shape(axes: str) -> tuple[int, ...]:
    """Shape of the first form of some axes.

    Example:
        >>> _shape("B *S or B C *S"), _shape("B 4")
        ((-1, -1, -1), (-1, 4))
    """
    first = axes.partition(" or ")[0].split()
    steps = [size for axis in first for size in _SPATIAL.get(axis, [axis])]
    return tuple(int(step) if step.lstrip("-").isdecimal() else -1 for step in steps)
