"""The losses of a request with validated parameters, those of a preset included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossd.core.job import LossCall
from lossd.losses import Loss, Task
from lossd.presets import PRESETS, preset_aggregate, preset_parameters
from lossd_client.wire import Aggregate, EvaluateRequest


@dataclass(frozen=True)
class Calls:
    """Rows of a request, ready to compute, and what a preset had to do with them."""

    rows: tuple[LossCall[Loss], ...]
    aggregate: Aggregate
    preset: dict[str, Any] | None = field(default=None)
    """What the answer says of the preset; None where there is none."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Rows that the preset's library has no loss for, or not for this task."""
        return tuple(self._without_convention())

    def _without_convention(self) -> Iterator[str]:
        if self.preset is None:
            return
        name, filled = self.preset["name"], self.preset["filled"]
        for row in self.rows:
            if row.label not in filled:
                reason = PRESETS[name].absent.get(row.loss.name)
                told = f"; {reason}" if reason else ""
                yield f"{row.label}: preset {name} fills nothing for this loss and task{told}"


def read_calls(
    request: EvaluateRequest, losses: Sequence[Loss], *, task: Task, channels: int
) -> Calls:
    """Every loss of the request with its parameters; an explicit one wins over the preset's.

    Args:
        request: whose losses they are.
        losses: the losses it names, in its order.
        task: of the inputs.
        channels: of the logits; 0 for kinds without.

    Raises:
        InvalidParameterError: a parameter is unknown or out of range.
    """
    rows: list[LossCall[Loss]] = []
    filled: dict[str, dict[str, Any]] = {}
    for index, (choice, loss) in enumerate(zip(request.losses, losses, strict=True)):
        given = choice.params
        if request.preset is not None:
            of_preset = preset_parameters(request.preset, loss.name, task=task, channels=channels)
            if of_preset is not None:
                filled[choice.row] = {
                    name: value for name, value in of_preset.items() if name not in given
                }
                given = {**of_preset, **given}
        options = loss.read_options(given, task=task, channels=channels, loc=("losses", index))
        rows.append(LossCall(choice.row, loss, options, choice.weight))
    aggregate = request.aggregate
    if request.preset is None:
        return Calls(tuple(rows), aggregate)
    # Tables have no regions to sum.
    pooled = preset_aggregate(request.preset) if losses[0].kind == "pixel" else None
    told: dict[str, Any] = {"name": request.preset, "filled": filled}
    if pooled is not None and "aggregate" not in request.model_fields_set:
        aggregate = pooled
        told["aggregate"] = pooled
    return Calls(tuple(rows), aggregate, told)
