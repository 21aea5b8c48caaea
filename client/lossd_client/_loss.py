"""What every loss of `lossd_client.losses` has in common: a value that becomes a `LossChoice`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from lossd_client.wire import LossChoice

_COMMON_FIELDS = ("total_weight", "label")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Choice of one loss; the subclasses' fields are its parameters.

    Attributes:
        total_weight: factor of this loss in `total` and in the gradient of the total. Not called
            `weight`, since some losses have a parameter of that name.
        label: name of this loss in the answer; the loss's name if empty. Needed where one loss
            occurs twice in a request.
    """

    name: ClassVar[str]
    total_weight: float = 1.0
    label: str = ""

    def choice(self) -> LossChoice:
        """This loss as the request says it: only parameters that differ from their default.

        Example:
            >>> from lossd_client import losses
            >>> losses.Tversky(fn_weight=0.9, label="recall").choice()
            LossChoice(name='tversky', params={'fn_weight': 0.9}, weight=1.0, label='recall')
        """
        values = {key: plain_json(value) for key, value in vars(self).items()}
        params = {
            field.name: values[field.name]
            for field in fields(self)
            if field.name not in _COMMON_FIELDS and values[field.name] != plain_json(field.default)
        }
        return LossChoice(name=self.name, params=params, weight=self.total_weight, label=self.label)


LossLike = str | Loss | LossChoice | Mapping[str, Any]
"""A loss as callers may write it; a mapping has the keys `name`, `params`, `weight`, `label`."""


def loss_choice(loss: LossLike) -> LossChoice:
    """The `LossChoice` a caller means.

    Raises:
        ValueError: a mapping has other keys, or values of other types, than `LossChoice`.

    Example:
        >>> loss_choice({"name": "focal", "params": {"gamma": 1}})
        LossChoice(name='focal', params={'gamma': 1}, weight=1.0, label='')
    """
    if isinstance(loss, Loss):
        return loss.choice()
    choice = LossChoice.model_validate(loss)
    return choice.model_copy(
        update={"params": {key: plain_json(value) for key, value in choice.params.items()}}
    )


def plain_json(value: object) -> object:
    """The value with arrays, numpy scalars and tuples as the lists and numbers JSON knows.

    Example:
        >>> plain_json((np.float32(0.5), 1))
        [0.5, 1]
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain_json(item) for item in value]
    return value
