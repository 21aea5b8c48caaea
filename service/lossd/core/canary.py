"""A small job whose answer is known, to show that the engine computes and computes right."""

from __future__ import annotations

import torch

from lossd.core.job import Job, LossCall, Outcome, Part
from lossd.losses import find_loss
from lossd_client.errors import LossdError

# Four pixels of three classes; the value is in float64 with pencil and paper:
# -(ln .7 + ln .8 + ln .5 + ln .4) / 4.
_PROBABILITIES = ((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.3, 0.5), (0.4, 0.5, 0.1))
_LABELS = (0, 1, 2, 0)
_CROSS_ENTROPY = 0.547314
_TOLERANCE = 1e-5


def canary_job() -> Job:
    """Cross entropy and its gradient of four pixels."""
    probabilities = torch.tensor(_PROBABILITIES, dtype=torch.float32)
    logits = probabilities.log().T[None].contiguous()  # [1, 3, 4]
    part = Part(
        logits=logits,
        target=torch.tensor([_LABELS], dtype=torch.int8),
        weight_map=None,
        shape=tuple(logits.shape),
        valid_pixels=(len(_LABELS),),
    )
    loss = find_loss("cross_entropy")
    options = loss.read_options({}, task="multiclass", channels=3, loc=())
    return Job(
        parts=(part,),
        task="multiclass",
        family="softmax_labels",
        dtype=torch.float32,
        calls=(LossCall("cross_entropy", loss, options, 1.0),),
        gradient="total",
    )


def check_canary(outcome: Outcome | LossdError) -> None:
    """Raises if the canary's answer is not the known one.

    Raises:
        RuntimeError: it is not; the device or the code is broken.
    """
    if isinstance(outcome, LossdError):
        raise outcome
    value = float(outcome.tensors["loss/cross_entropy"][0])
    drift = abs(float(outcome.tensors["gradient/logits"].sum()))
    if abs(value - _CROSS_ENTROPY) > _TOLERANCE or drift > _TOLERANCE:
        msg = f"the canary answered {value} (gradient sum {drift}), expected {_CROSS_ENTROPY}"
        raise RuntimeError(msg)
