"""Conventions of other libraries, as parameters of the losses here.

For people who move over and want the numbers they know: a request's `preset` fills in what its
caller did not give. The tables are data. Every entry was compared with the library itself, see
`tools/peers/write_values.py` and `tests/data/peer_values.json`; what a library computes by another
formula is not filled in but named in `absent`, with the reason.

An entry claims that the mean over samples of the values here, or the one value of the batch where
regions are summed over it, is what the library returns with `reduction="mean"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lossd.losses.sums import Task
from lossd.presets.convention import ONE_OVER_CLASSES, Convention, Preset
from lossd.presets.monai import MONAI
from lossd.presets.nnunet import NNUNET
from lossd.presets.pytorch import TORCH
from lossd.presets.segmentation_models import SMP

__all__ = ["PRESETS", "Convention", "Preset", "preset_aggregate", "preset_parameters"]

PRESETS: Mapping[str, Preset] = {"monai": MONAI, "smp": SMP, "nnunet": NNUNET, "torch": TORCH}
"""Every preset by its name on the wire."""


def preset_parameters(
    preset: str, loss: str, *, task: Task, channels: int
) -> dict[str, Any] | None:
    """Parameters that give a library's number of a loss; None where it has no such loss.

    Args:
        preset: a name of `PRESETS`.
        loss: wire name.
        task: of the inputs; not looked at for losses without a task.
        channels: of the logits.

    Example:
        >>> preset_parameters("monai", "focal", task="multiclass", channels=4)["class_weights"]
        [0.25, 0.25, 0.25, 0.25]
        >>> preset_parameters("torch", "dice", task="binary", channels=1) is None
        True
    """
    for convention in PRESETS[preset].losses.get(loss, ()):
        if not convention.tasks or task in convention.tasks:
            return {
                name: [1.0 / channels] * channels if value == ONE_OVER_CLASSES else value
                for name, value in convention.parameters.items()
            }
    return None


def preset_aggregate(preset: str) -> Literal["sample", "batch"] | None:
    """How a preset's library sums regions; None where it leaves that to the request.

    Example:
        >>> preset_aggregate("smp")
        'batch'
    """
    return PRESETS[preset].aggregate
