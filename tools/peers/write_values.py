"""Writes `tests/data/peer_values.json`: small cases computed by the libraries of the presets.

The libraries need an environment of their own, never that of the service: `make peers`.

Every case is a call of a library, written as text and run as it stands, on inputs of a fixed seed.
The tests ask the service for the same inputs with the preset and compare value and gradient.
Nothing of the service is imported here.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import monai.losses  # type: ignore[import-not-found]
import numpy as np
import segmentation_models_pytorch.losses  # type: ignore[import-not-found]
import torch
import torchvision.ops  # type: ignore[import-not-found]
from nnunetv2.training.loss import (  # type: ignore[import-not-found]
    compound_losses,
    robust_ce_loss,
)
from torch import Tensor, nn

PATH = Path(__file__).resolve().parents[2] / "tests" / "data" / "peer_values.json"
DISTRIBUTIONS = ("monai", "segmentation-models-pytorch", "nnunetv2", "torch", "torchvision")
TASKS = ("binary", "multiclass", "multilabel")
IGNORED = 255
_SEED = 20
_DECIMALS = 3
_GRADIENT_DIGITS = 6
"""Of a gradient's largest entry; the others have equally many decimals."""
_IGNORED_PIXELS = 3

NAMES: dict[str, Any] = {
    "monai": monai.losses,
    "smp": segmentation_models_pytorch.losses,
    "nnunet": compound_losses,
    "robust_ce_loss": robust_ce_loss,
    "ops": torchvision.ops,
    "nn": nn,
    "torch": torch,
}
"""What the text of a call may name besides the inputs and their other forms, see `_forms`."""

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One call of a library, and how the service is asked for the same."""

    loss: str
    inputs: str
    """Key of the inputs; up to the underscore it is the task, for losses that have one."""
    call: str
    """The library's call, an expression whose value is the mean."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What the caller gives besides the preset."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request."""
    gradient: str = "mean"
    """What the service's gradient is: that of each sample, to be divided by their number (`mean`),
    that of one value of the whole batch (`shared`), or both in one, so that the parts have to be
    asked for (`parts`)."""


# -- inputs --------------------------------------------------------------------------------------


def make_inputs() -> dict[str, Inputs]:
    """All inputs by key."""
    random = np.random.default_rng(_SEED)
    multiclass = _labels(random, classes=4)
    absent = _labels(random, classes=4)
    absent["target"][absent["target"] == 2] = 0  # noqa: PLR2004 - a class that is nowhere
    absent["target"][0][absent["target"][0] == 3] = 1  # noqa: PLR2004 - one a sample lacks
    binary = _labels(random, classes=1)
    missing = _labels(random, classes=1)
    missing["target"][2] = 0
    multilabel = _channels(random)
    lacking = _channels(random)
    lacking["target"][0, 1] = 0
    lacking["target"][:, 2] = 0
    return {
        "multiclass": multiclass,
        "multiclass_absent": absent,
        "multiclass_ignored": _ignoring(random, multiclass),
        "multiclass_one": {name: array[:1] for name, array in multiclass.items()},
        "multiclass_soft": _soft_multiclass(random),
        "multiclass_volume": _labels(random, classes=3, samples=2, spatial=(4, 4, 3)),
        "binary": binary,
        "binary_absent": missing,
        "binary_empty": {**missing, "target": np.zeros_like(missing["target"])},
        "binary_ignored": _ignoring(random, binary),
        "binary_soft": _soft_binary(random),
        "multilabel": multilabel,
        "multilabel_absent": lacking,
        "multilabel_one_hot": _one_hot(multiclass),
        **_tables(random),
    }


def _logits(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.normal(0, 1.5, shape).round(_DECIMALS)


def _labels(
    random: np.random.Generator,
    *,
    classes: int,
    samples: int = 3,
    spatial: tuple[int, ...] = (5, 4),
) -> Inputs:
    return {
        "logits": _logits(random, (samples, classes, *spatial)),
        "target": random.integers(0, max(2, classes), (samples, *spatial)),
    }


def _channels(random: np.random.Generator) -> Inputs:
    shape = (3, 3, 5, 4)
    return {"logits": _logits(random, shape), "target": random.integers(0, 2, shape)}


def _one_hot(inputs: Inputs) -> Inputs:
    classes = inputs["logits"].shape[1]
    return {**inputs, "target": np.moveaxis(np.eye(classes, dtype=int)[inputs["target"]], -1, 1)}


def _ignoring(random: np.random.Generator, inputs: Inputs) -> Inputs:
    """Equally many removed pixels in every sample, as the libraries take one mean of the batch."""
    target = inputs["target"].copy()
    for labels in target:
        labels.reshape(-1)[random.permutation(labels.size)[:_IGNORED_PIXELS]] = IGNORED
    return {**inputs, "target": target}


def _soft_multiclass(random: np.random.Generator) -> Inputs:
    """Votes of eight annotators, so that the decimals are exact."""
    votes = random.multinomial(8, [0.4, 0.3, 0.2, 0.1], (3, 5, 4))
    return {"logits": _logits(random, (3, 4, 5, 4)), "target": np.moveaxis(votes, -1, 1) / 8}


def _soft_binary(random: np.random.Generator) -> Inputs:
    shape = (3, 1, 5, 4)
    return {"logits": _logits(random, shape), "target": random.integers(0, 5, shape) / 4}


def _tables(random: np.random.Generator) -> dict[str, Inputs]:
    corner, size = random.uniform(0, 6, (2, 5, 2)), random.uniform(3, 9, (2, 5, 2))
    boxes = np.concatenate([corner, corner + size], -1).round(2)
    values = random.normal(0, 1.5, (2, 3, 2, 4)).round(_DECIMALS)
    anchor, positive, negative = random.normal(0, 1, (3, 4, 6)).round(_DECIMALS)
    scores, labels = _logits(random, (5, 4)), random.integers(0, 4, 5)
    return {
        "boxes": {"prediction": boxes[0], "target": boxes[1]},
        "values": {"prediction": values[0], "target": values[1]},
        "triplets": {"anchor": anchor, "positive": positive, "negative": negative},
        "scores": {"logits": scores, "target": labels},
    }


# -- cases ---------------------------------------------------------------------------------------

_IGNORE = {"ignore_index": IGNORED}
_BATCH = {"aggregate": "batch"}
_SIGMOID_INPUTS = ("binary_absent", "multilabel_absent")
_SOFTMAX_INPUTS = ("multiclass", "multiclass_absent")


def monai_cases() -> list[Case]:
    """Cases of MONAI."""
    softmax, sigmoid = "softmax=True, to_onehot_y=True", "sigmoid=True"
    cases: list[Case] = []
    for loss, name, more in (
        ("dice", "DiceLoss", ""),
        ("jaccard", "DiceLoss", ", jaccard=True"),
        ("dice_squared", "DiceLoss", ", squared_pred=True"),
        ("tversky", "TverskyLoss", ""),
        ("matthews", "MCCLoss", ""),
        ("boundary", "BoundaryLoss", ""),
        ("hausdorff_dt", "HausdorffDTLoss", ""),
        ("generalized_dice", "GeneralizedDiceLoss", ""),
    ):
        calls = [(key, f"monai.{name}({sigmoid}{more})(logits, mask)") for key in _SIGMOID_INPUTS]
        calls += [
            (key, f"monai.{name}({softmax}{more})(logits, labels)") for key in _SOFTMAX_INPUTS
        ]
        cases += [Case(loss, key, call) for key, call in calls]
    foreground = {"include_background": False}
    weights = {"class_weights": [0.5, 1.0, 0.5, 2.0]}
    return [
        *cases,
        *monai_generalized_cases(),
        Case(
            "dice",
            "multiclass",
            f"monai.DiceLoss({softmax}, include_background=False)(logits, labels)",
            foreground,
        ),
        Case(
            "dice",
            "multiclass",
            f"monai.DiceLoss({softmax}, smooth_nr=1, smooth_dr=1)(logits, labels)",
            {"smooth_nr": 1.0, "smooth_dr": 1.0},
        ),
        Case(
            "dice",
            "multiclass",
            f"monai.DiceLoss({softmax}, weight=[0.5, 1, 0.5, 2])(logits, labels)",
            weights,
        ),
        Case(
            "dice",
            "multiclass_absent",
            f"monai.DiceLoss({softmax}, batch=True)(logits, labels)",
            fields=_BATCH,
            gradient="shared",
        ),
        Case(
            "dice",
            "multiclass_ignored",
            f"monai.DiceLoss({softmax}, ignore_index=255)(logits, labels)",
            fields=_IGNORE,
        ),
        Case("dice", "binary_soft", "monai.DiceLoss(sigmoid=True)(logits, mask)"),
        Case(
            "dice",
            "binary_soft",
            "monai.DiceLoss(sigmoid=True, soft_label=True)(logits, mask)",
            {"soft_label": True},
        ),
        Case(
            "tversky",
            "multiclass_ignored",
            f"monai.TverskyLoss({softmax}, alpha=0.3, beta=0.7, ignore_index=255)(logits, labels)",
            {"fp_weight": 0.3, "fn_weight": 0.7},
            _IGNORE,
        ),
        Case(
            "hausdorff_dt",
            "multiclass",
            f"monai.HausdorffDTLoss({softmax}, include_background=True, alpha=1)(logits, labels)",
            {"include_background": True, "alpha": 1.0},
        ),
        Case(
            "hausdorff_dt", "multiclass_volume", f"monai.HausdorffDTLoss({softmax})(logits, labels)"
        ),
        Case("boundary", "multiclass_volume", f"monai.BoundaryLoss({softmax})(logits, labels)"),
        Case("focal", "binary", "monai.FocalLoss()(logits, mask)"),
        Case("focal", "binary", "monai.FocalLoss(alpha=0.25, gamma=3)(logits, mask)", _FOCAL),
        Case(
            "focal",
            "binary_ignored",
            "monai.FocalLoss(ignore_index=255)(logits, mask)",
            fields=_IGNORE,
        ),
        Case("focal", "multilabel", "monai.FocalLoss()(logits, mask)"),
        Case(
            "focal",
            "multiclass",
            "monai.FocalLoss(use_softmax=True, to_onehot_y=True)(logits, labels)",
        ),
        Case(
            "focal",
            "multiclass",
            "monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=1, alpha=[0.1, 0.2, 0.3, 1])"
            "(logits, labels)",
            {"gamma": 1.0, "alpha": [0.1, 0.2, 0.3, 1.0]},
        ),
        Case(
            "focal",
            "multiclass_ignored",
            "monai.FocalLoss(use_softmax=True, to_onehot_y=True, ignore_index=255)(logits, labels)",
            {"class_weights": [1.0, 1.0, 1.0, 1.0]},
            _IGNORE,
        ),
        Case("dice_ce", "multiclass_absent", f"monai.DiceCELoss({softmax})(logits, labels)"),
        Case(
            "dice_ce",
            "multiclass",
            f"monai.DiceCELoss({softmax}, include_background=False, lambda_dice=0.5)"
            "(logits, labels)",
            {"include_background": False, "dice_weight": 0.5},
        ),
        Case("dice_ce", "binary_absent", "monai.DiceCELoss(sigmoid=True)(logits, mask)"),
        Case("bce_dice", "binary_absent", "monai.DiceCELoss(sigmoid=True)(logits, mask)"),
        Case(
            "giou",
            "boxes",
            "monai.BoxGIoULoss()(prediction.float(), target.float())",
        ),
    ]


def monai_generalized_cases() -> list[Case]:
    """Cases of MONAI's generalized Dice loss: weights, smoothing and samples without a class."""
    softmax, sigmoid = "softmax=True, to_onehot_y=True", "sigmoid=True"
    loss, name = "generalized_dice", "monai.GeneralizedDiceLoss"
    simple = {"weighting": "simple", "smooth_nr": 0.5, "smooth_dr": 2.0}
    unsmoothed = {"smooth_nr": 0.0, "smooth_dr": 0.0}
    return [
        Case(
            loss,
            "multiclass_absent",
            f"{name}({softmax}, batch=True)(logits, labels)",
            fields=_BATCH,
            gradient="shared",
        ),
        Case(
            loss,
            "multiclass_absent",
            f"{name}({softmax}, include_background=False)(logits, labels)",
            {"include_background": False},
        ),
        Case(
            loss,
            "binary_absent",
            f"{name}({sigmoid}, w_type='simple', smooth_nr=0.5, smooth_dr=2)(logits, mask)",
            simple,
        ),
        Case(
            loss,
            "binary_absent",
            f"{name}({sigmoid}, w_type='uniform')(logits, mask)",
            {"weighting": "uniform"},
        ),
        Case(loss, "binary_empty", f"{name}({sigmoid})(logits, mask)"),
        Case(loss, "binary_soft", f"{name}({sigmoid})(logits, mask)"),
        Case(
            loss, "binary", f"{name}({sigmoid}, smooth_nr=0, smooth_dr=0)(logits, mask)", unsmoothed
        ),
    ]


_FOCAL = {"alpha": 0.25, "gamma": 3.0}


def smp_cases() -> list[Case]:
    """Cases of segmentation_models_pytorch, which sums regions over the batch."""
    cases: list[Case] = []
    for loss, name, more in (
        ("dice", "DiceLoss", ""),
        ("jaccard", "JaccardLoss", ""),
        ("tversky", "TverskyLoss", ""),
        ("log_dice", "DiceLoss", ", log_loss=True"),
    ):
        for key in ("binary", "multiclass", "multiclass_absent", "multilabel_absent"):
            mode = key.partition("_")[0]
            call = f"smp.{name}('{mode}'{more})(logits, target)"
            cases.append(Case(loss, key, call, gradient="shared"))
    multilabel = "smp.FocalLoss('multilabel'"
    return [
        *cases,
        Case("dice", "binary_empty", "smp.DiceLoss('binary')(logits, target)", gradient="shared"),
        Case("dice", "binary_soft", "smp.DiceLoss('binary')(logits, target)", gradient="shared"),
        Case(
            "dice",
            "multiclass_ignored",
            "smp.DiceLoss('multiclass', ignore_index=255)(logits, target)",
            fields=_IGNORE,
            gradient="shared",
        ),
        Case(
            "dice",
            "multiclass_absent",
            "smp.DiceLoss('multiclass', class_weights=[0.5, 1, 2, 3], smooth=1)(logits, target)",
            {"class_weights": [0.5, 1.0, 2.0, 3.0], "smooth_nr": 2.0, "smooth_dr": 2.0},
            gradient="shared",
        ),
        Case(
            "dice",
            "multiclass",
            "smp.DiceLoss('multiclass', classes=[1, 3])(logits, target)",
            {"classes": [1, 3]},
            gradient="shared",
        ),
        Case(
            "jaccard",
            "binary_ignored",
            "smp.JaccardLoss('binary', ignore_index=255, smooth=1)(logits, target)",
            {"smooth_nr": 1.0, "smooth_dr": 1.0},
            _IGNORE,
            gradient="shared",
        ),
        Case(
            "tversky",
            "multiclass_absent",
            "smp.TverskyLoss('multiclass', alpha=0.3, beta=0.7)(logits, target)",
            {"fp_weight": 0.3, "fn_weight": 0.7},
            gradient="shared",
        ),
        Case(
            "focal_tversky",
            "binary",
            "smp.TverskyLoss('binary')(logits, target)",
            gradient="shared",
        ),
        Case(
            "focal_tversky",
            "binary_absent",
            "smp.TverskyLoss('binary', alpha=0.3, beta=0.7, gamma=0.75)(logits, target)",
            {"fp_weight": 0.3, "fn_weight": 0.7, "exponent": 0.75},
            gradient="shared",
        ),
        Case(
            "matthews",
            "binary",
            "smp.MCCLoss()(logits.sigmoid(), target)",
            gradient="shared",
        ),
        Case("focal", "binary", "smp.FocalLoss('binary')(logits, target)"),
        Case(
            "focal",
            "binary_ignored",
            "smp.FocalLoss('binary', alpha=0.25, gamma=3, ignore_index=255)(logits, target)",
            _FOCAL,
            _IGNORE,
        ),
        Case("focal", "multilabel_absent", f"{multilabel})(logits, target)"),
        Case(
            "focal", "multilabel_one_hot", "smp.FocalLoss('multiclass')(logits, target.argmax(1))"
        ),
        Case(
            "focal",
            "multilabel",
            f"{multilabel}, class_weights=[0.5, 1, 3])(logits, target)",
            {"class_weights": [0.5, 1.0, 3.0]},
        ),
        Case(
            "lovasz_softmax",
            "multiclass_absent",
            "smp.LovaszLoss('multiclass', per_image=True)(logits.float(), target)",
        ),
        Case(
            "lovasz_softmax",
            "multiclass_ignored",
            "smp.LovaszLoss('multiclass', per_image=True, ignore_index=255)"
            "(logits.float(), target)",
            fields=_IGNORE,
        ),
        Case(
            "lovasz_softmax",
            "multiclass_one",
            "smp.LovaszLoss('multiclass')(logits.float(), target)",
        ),
        Case(
            "lovasz_hinge",
            "binary_absent",
            "smp.LovaszLoss('binary', per_image=True)(logits.float(), target)",
        ),
        Case(
            "cross_entropy",
            "multiclass",
            "smp.SoftCrossEntropyLoss(smooth_factor=0.0)(logits, target)",
        ),
        Case(
            "cross_entropy",
            "multiclass",
            "smp.SoftCrossEntropyLoss(smooth_factor=0.1)(logits, target)",
            {"label_smoothing": 0.1},
        ),
        Case(
            "binary_cross_entropy",
            "binary",
            "smp.SoftBCEWithLogitsLoss()(logits, mask)",
        ),
        Case(
            "binary_cross_entropy",
            "multilabel",
            "smp.SoftBCEWithLogitsLoss(smooth_factor=0.1, pos_weight=torch.tensor(2.0))"
            "(logits, mask)",
            {"label_smoothing": 0.2, "pos_weight": 2.0},
        ),
    ]


def nnunet_cases() -> list[Case]:
    """Cases of nnU-Net, as its trainers build their losses."""
    memory = "dice_class=nnunet.MemoryEfficientSoftDiceLoss"
    label_dice, region_dice = "'smooth': 1e-5, 'do_bg': False", "'smooth': 1e-5, 'do_bg': True"
    softmax = "apply_nonlin=nnunet.softmax_helper_dim1"
    cases: list[Case] = []
    for batch_dice, fields, dice_gradient, sum_gradient in (
        (False, {}, "mean", "mean"),
        (True, _BATCH, "shared", "parts"),
    ):
        batch = f"'batch_dice': {batch_dice}, 'ddp': False"
        of_labels = f"nnunet.DC_and_CE_loss({{{label_dice}, {batch}}}, {{}}, {memory})"
        of_regions = f"nnunet.DC_and_BCE_loss({{}}, {{{region_dice}, {batch}}}, {memory})"
        dice = f"nnunet.MemoryEfficientSoftDiceLoss(batch_dice={batch_dice}, ddp=False, smooth=1e-5"
        for key in ("multiclass_absent", "multiclass_volume"):
            call = f"{of_labels}(logits, labels)"
            cases.append(Case("dice_ce", key, call, fields=fields, gradient=sum_gradient))
            call = f"{dice}, do_bg=False, {softmax})(logits, labels)"
            cases.append(Case("dice", key, call, fields=fields, gradient=dice_gradient))
        for key in _SIGMOID_INPUTS:
            call = f"{of_regions}(logits, mask)"
            cases.append(Case("dice_ce", key, call, fields=fields, gradient=sum_gradient))
            cases.append(Case("bce_dice", key, call, fields=fields, gradient=sum_gradient))
            call = f"{dice}, do_bg=True, apply_nonlin=torch.sigmoid)(logits, mask)"
            cases.append(Case("dice", key, call, fields=fields, gradient=dice_gradient))
    batch = "'batch_dice': False, 'ddp': False"
    return [
        *cases,
        Case(
            "dice_ce",
            "multiclass_ignored",
            f"nnunet.DC_and_CE_loss({{{label_dice}, {batch}}}, {{}}, ignore_label=255, {memory})"
            "(logits, labels)",
            fields=_IGNORE,
        ),
        Case(
            "cross_entropy",
            "multiclass",
            "robust_ce_loss.RobustCrossEntropyLoss()(logits, labels)",
        ),
        Case(
            "cross_entropy",
            "multiclass_ignored",
            "robust_ce_loss.RobustCrossEntropyLoss(ignore_index=255)(logits, labels)",
            fields=_IGNORE,
        ),
        Case(
            "topk_cross_entropy", "multiclass_one", "robust_ce_loss.TopKLoss(k=10)(logits, labels)"
        ),
        Case(
            "topk_cross_entropy",
            "multiclass_one",
            "robust_ce_loss.TopKLoss(k=25)(logits, labels)",
            {"fraction": 0.25},
        ),
    ]


def torch_cases() -> list[Case]:
    """Cases of torch and torchvision."""
    weights = [0.5, 1.0, 2.0, 3.0]
    weight = f"weight=torch.tensor({weights}).double()"
    channels = [0.5, 1.0, 3.0]
    channel = f"weight=torch.tensor({channels}).double().view(3, 1, 1)"
    focal = "ops.sigmoid_focal_loss(logits, mask, reduction='mean'"
    return [
        Case("cross_entropy", "multiclass", "nn.CrossEntropyLoss()(logits, target)"),
        Case(
            "cross_entropy",
            "multiclass_ignored",
            "nn.CrossEntropyLoss(ignore_index=255, label_smoothing=0.1)(logits, target)",
            {"label_smoothing": 0.1},
            _IGNORE,
        ),
        Case(
            "cross_entropy",
            "multiclass_one",
            f"nn.CrossEntropyLoss({weight}, label_smoothing=0.1)(logits, target)",
            {"class_weights": weights, "label_smoothing": 0.1},
        ),
        Case("cross_entropy", "multiclass_soft", "nn.CrossEntropyLoss()(logits, target)"),
        Case(
            "cross_entropy",
            "multiclass_soft",
            f"nn.CrossEntropyLoss({weight})(logits, target)",
            {"class_weights": weights, "normalize": "pixels"},
        ),
        Case("binary_cross_entropy", "binary", "nn.BCEWithLogitsLoss()(logits, mask)"),
        Case("binary_cross_entropy", "binary_soft", "nn.BCEWithLogitsLoss()(logits, mask)"),
        Case(
            "binary_cross_entropy",
            "multilabel",
            f"nn.BCEWithLogitsLoss({channel}, pos_weight=torch.tensor(2.0))(logits, mask)",
            {"class_weights": channels, "pos_weight": 2.0},
        ),
        Case("focal", "binary", f"{focal})"),
        Case("focal", "binary", f"{focal}, alpha=0.6, gamma=1)", {"alpha": 0.6, "gamma": 1.0}),
        Case("focal", "multilabel_absent", f"{focal})"),
        Case("kl_divergence", "multiclass_soft", "nn.KLDivLoss()(logits.log_softmax(1), target)"),
        Case("svm_hinge", "scores", "nn.MultiMarginLoss()(logits, target)"),
        Case(
            "svm_hinge",
            "scores",
            "nn.MultiMarginLoss(margin=0.3)(logits, target)",
            {"margin": 0.3},
        ),
        Case("l1", "values", "nn.L1Loss()(prediction, target)"),
        Case("l2", "values", "nn.MSELoss()(prediction, target)"),
        Case("smooth_l1", "values", "nn.SmoothL1Loss()(prediction, target)"),
        Case("smooth_l1", "values", "nn.SmoothL1Loss(beta=0.5)(prediction, target)", {"beta": 0.5}),
        Case("huber", "values", "nn.HuberLoss()(prediction, target)"),
        Case("huber", "values", "nn.HuberLoss(delta=0.5)(prediction, target)", {"delta": 0.5}),
        Case(
            "triplet",
            "triplets",
            "nn.TripletMarginLoss()(anchor, positive, negative)",
        ),
        Case("giou", "boxes", "ops.generalized_box_iou_loss(prediction, target, reduction='mean')"),
        Case("diou", "boxes", "ops.distance_box_iou_loss(prediction, target, reduction='mean')"),
        Case("ciou", "boxes", "ops.complete_box_iou_loss(prediction, target, reduction='mean')"),
    ]


CASES = {
    "monai": monai_cases,
    "smp": smp_cases,
    "nnunet": nnunet_cases,
    "torch": torch_cases,
}
"""Cases by preset."""

# -- computing and writing -----------------------------------------------------------------------


def compute(case: Case, inputs: Inputs) -> tuple[float, dict[str, list[float]]]:
    """Value of the call and its gradients by input, flattened."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
    differentiated = {name: tensor for name, tensor in tensors.items() if _has_gradient(name)}
    for tensor in differentiated.values():
        tensor.requires_grad_()
    names = {**NAMES, **tensors, **_forms(tensors)}
    value: Tensor = eval(case.call, names)  # noqa: S307 - the text of the table is what runs
    value.backward()
    return float(value.detach()), {
        name: _rounded(tensor.grad) for name, tensor in differentiated.items()
    }


def _has_gradient(name: str) -> bool:
    return name in ("logits", "prediction", "anchor", "positive", "negative")


def _forms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target as other libraries want it: `labels` and `mask`, both with a channel axis."""
    target = tensors.get("target")
    logits = tensors.get("logits")
    if target is None or logits is None:
        return {}
    with_channels = target if target.ndim == logits.ndim else target[:, None]
    return {"labels": with_channels, "mask": with_channels.double()}


def _rounded(gradient: Tensor | None) -> list[float]:
    if gradient is None:
        msg = "the call does not depend on this input"
        raise ValueError(msg)
    largest = float(gradient.abs().max()) or 1.0  # the batch may lack every class
    decimals = _GRADIENT_DIGITS - 1 - math.floor(math.log10(largest))
    return [round(value, decimals) for value in gradient.double().flatten().tolist()]


def _entry(preset: str, case: Case, inputs: dict[str, Inputs]) -> dict[str, Any]:
    value, gradients = compute(case, inputs[case.inputs])
    kind = case.inputs.partition("_")[0]
    task = kind if kind in TASKS else ""
    return {
        "preset": preset,
        "loss": case.loss,
        "task": task,
        "inputs": case.inputs,
        "parameters": case.parameters,
        "fields": case.fields,
        "call": case.call,
        "value": value,
        "gradient": case.gradient,
        "gradients": gradients,
    }


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _lines(entries: list[str]) -> str:
    return ",\n".join(entries)


def main() -> None:
    """Computes every case and writes the file, a line for each."""
    warnings.simplefilter("ignore")  # the libraries warn of their own defaults
    inputs = make_inputs()
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    cases = [
        _compact(_entry(preset, case, inputs)) for preset, make in CASES.items() for case in make()
    ]
    arrays = [
        f"{json.dumps(key)}:{_compact({name: array.tolist() for name, array in entry.items()})}"
        for key, entry in inputs.items()
    ]
    text = (
        f'{{"versions":{_compact(versions)},\n'
        f'"inputs":{{\n{_lines(arrays)}\n}},\n'
        f'"cases":[\n{_lines(cases)}\n]}}\n'
    )
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text)
    print(f"{len(cases)} cases, {len(text) / 1024:.0f} KiB in {PATH.name}")


if __name__ == "__main__":
    main()
