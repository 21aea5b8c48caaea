"""Losses of other libraries in an environment of their own, one round at a time.

Run with that environment's interpreter, never imported by the product or by a benchmark. Reads a
command a line and answers a line of JSON:

    {"open": {"logits": PATH, "target": PATH}}   inputs from two `.npy` files
    {"run": [library, [loss, …]]}                one round -> {"seconds": s, "values": {loss: v}}

A round is what a training step does with several losses: each of them from the logits, one backward
pass each, the gradients added up, in the logits' dtype. Losses are float32 inside.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import monai.losses  # type: ignore[import-not-found]
import numpy as np
import segmentation_models_pytorch.losses as smp  # type: ignore[import-not-found]
import torch
from torch import Tensor
from torch.nn import functional

DISTRIBUTIONS = ("monai", "segmentation-models-pytorch", "torch", "torchvision")

LossCall = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of float32 logits `[B, C, *S]` and int64 labels `[B, *S]`."""


def _monai(loss: Callable[[Tensor, Tensor], Tensor]) -> LossCall:
    return lambda logits, labels: loss(logits, labels[:, None])


def tables() -> Mapping[str, Mapping[str, LossCall]]:
    """Losses by library and by the name that they have in the catalogue.

    Those of the ten that a library has with the same formula. MONAI leaves cross entropy to torch.
    """
    softmax: dict[str, Any] = {"softmax": True, "to_onehot_y": True}
    return {
        "monai": {
            "cross_entropy": functional.cross_entropy,
            "focal": _monai(monai.losses.FocalLoss(use_softmax=True, to_onehot_y=True)),
            "dice": _monai(monai.losses.DiceLoss(**softmax)),
            "dice_squared": _monai(monai.losses.DiceLoss(**softmax, squared_pred=True)),
            "jaccard": _monai(monai.losses.DiceLoss(**softmax, jaccard=True)),
            "tversky": _monai(monai.losses.TverskyLoss(**softmax)),
            "generalized_dice": _monai(monai.losses.GeneralizedDiceLoss(**softmax)),
            "matthews": _monai(monai.losses.MCCLoss(**softmax)),
        },
        "smp": {
            "cross_entropy": smp.SoftCrossEntropyLoss(smooth_factor=0.0),
            "dice": smp.DiceLoss("multiclass"),
            "jaccard": smp.JaccardLoss("multiclass"),
            "tversky": smp.TverskyLoss("multiclass"),
        },
    }


class Worker:
    """The inputs that are open and the losses."""

    def __init__(self) -> None:
        self._losses = tables()
        self._logits = torch.empty(0)
        self._labels = torch.empty(0)

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """What one command is answered."""
        if "open" in command:
            paths = command["open"]
            self._logits = torch.from_numpy(np.load(paths["logits"]))
            self._labels = torch.from_numpy(np.load(paths["target"]))
            return {}
        library, names = command["run"]
        return self._round(self._losses[library], names)

    def _round(self, losses: Mapping[str, LossCall], names: Sequence[str]) -> dict[str, Any]:
        started = time.perf_counter()
        leaf = self._logits.detach().requires_grad_()
        labels = self._labels.long()
        values = {}
        for name in names:
            value = losses[name](leaf.float(), labels)
            value.backward()
            values[name] = value.detach()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "values": {name: float(one) for name, one in values.items()}}


def main() -> None:
    """Says what there is, then answers until its input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    worker = Worker()
    hello = {
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "losses": {library: list(losses) for library, losses in tables().items()},
    }
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
