"""MONAI's losses."""

from __future__ import annotations

from typing import Any

from lossd.presets.convention import (
    ALL,
    HARD_TARGETS,
    ONE_OVER_CLASSES,
    POOLED_MEAN,
    SIGMOID,
    SOFTMAX,
    Convention,
    Preset,
)


def _monai(name: str, *arguments: str) -> str:
    """Text of both forms of a loss, the second one being that for multiclass."""
    forms = ("sigmoid=True",), ("softmax=True", "to_onehot_y=True")
    return " or ".join(f"{name}({', '.join((*form, *arguments))})" for form in forms)


_MONAI_CLASSES: dict[str, Any] = {"classes": "all", "include_background": True}
_MONAI_REGION: dict[str, Any] = {
    **_MONAI_CLASSES,
    "average": "macro",
    "soft_label": False,
    "smooth_nr": 1e-5,
    "smooth_dr": 1e-5,
}
_MONAI_WEIGHTS = (
    "MONAI's `weight` multiplies the classes without dividing by its sum: `class_weights` that "
    "add up to the number of classes give its number."
)
_MONAI_CHANNELS_CE = (
    "`DiceCELoss` of several channels takes the softmax cross entropy even with `sigmoid=True`; "
    "there is no multilabel form."
)

MONAI = Preset(
    library="MONAI",
    versions={"monai": "1.6.1"},
    summary=(
        "All classes count in every sample, the background and absent ones included, so a class "
        "that the target lacks costs almost 1. Dice is smoothed by 1e-5 above and below. Every "
        "sample is scored alone; `aggregate: batch` is MONAI's `batch=True`."
    ),
    losses={
        "dice": (Convention(_monai("DiceLoss"), _MONAI_REGION, ALL, remark=_MONAI_WEIGHTS),),
        "dice_squared": (
            Convention(
                _monai("DiceLoss", "squared_pred=True"),
                _MONAI_REGION,
                ALL,
                remark=_MONAI_WEIGHTS,
            ),
        ),
        "jaccard": (
            Convention(
                _monai("DiceLoss", "jaccard=True"),
                {**_MONAI_REGION, "smooth_nr": 5e-6, "smooth_dr": 5e-6},
                ALL,
                remark=(
                    "MONAI smooths twice the intersection over twice the union, so its smoothing "
                    f"is halved here. {_MONAI_WEIGHTS}"
                ),
            ),
        ),
        "tversky": (
            Convention(
                _monai("TverskyLoss"),
                {**_MONAI_REGION, "fp_weight": 0.5, "fn_weight": 0.5},
                ALL,
                remark="Alpha weighs false positives, beta false negatives.",
            ),
        ),
        "generalized_dice": (
            Convention(
                _monai("GeneralizedDiceLoss"),
                {
                    **_MONAI_CLASSES,
                    "weighting": "square",
                    "smoothing": "unscaled",
                    "smooth_nr": 1e-5,
                    "smooth_dr": 1e-5,
                },
                ALL,
                remark=(
                    "The smoothing stands beside weights of one over the squared area and so "
                    "lowers the value on large objects. A sample in which no class is present "
                    "costs 0, whatever is predicted; without smoothing MONAI gives NaN for it. "
                    "MONAI's `w_type` is `weighting`. It computes weights in float32, so late "
                    "digits differ."
                ),
            ),
        ),
        "matthews": (
            Convention(
                _monai("MCCLoss"),
                {**_MONAI_CLASSES, "average": "macro"},
                ALL,
                remark=(
                    "MONAI adds 1e-5 to the product under the root, nothing is added here: equal "
                    "to about 1e-5 over twice that product."
                ),
            ),
        ),
        "focal": (
            Convention(
                "FocalLoss()",
                {"normalize": "pixels", "gamma": 2.0},
                SIGMOID,
                remark=f"{HARD_TARGETS} {POOLED_MEAN}",
            ),
            Convention(
                "FocalLoss(use_softmax=True, to_onehot_y=True)",
                {"normalize": "pixels", "class_weights": ONE_OVER_CLASSES, "gamma": 2.0},
                SOFTMAX,
                remark=(
                    "MONAI's mean divides by the classes as well, though not when it is given an "
                    "`ignore_index`; explicit `class_weights` replace the 1/C. Without "
                    "`use_softmax` it is a sigmoid per class: send one-hot targets as multilabel."
                ),
            ),
        ),
        "dice_ce": (
            Convention(
                "DiceCELoss(softmax=True, to_onehot_y=True)",
                {**_MONAI_REGION, "ce_weight": 1.0, "dice_weight": 1.0},
                SOFTMAX,
                remark="With `weight` MONAI divides the cross entropy by the weights applied.",
            ),
            Convention(
                "DiceCELoss(sigmoid=True)",
                {**_MONAI_REGION, "ce_weight": 1.0, "dice_weight": 1.0},
                ("binary",),
                remark="MONAI's `weight` is the weight of positives there.",
            ),
        ),
        "bce_dice": (
            Convention(
                "DiceCELoss(sigmoid=True)",
                {**_MONAI_REGION, "ce_weight": 1.0, "dice_weight": 1.0},
                ("binary",),
            ),
        ),
        "boundary": (Convention(_monai("BoundaryLoss"), _MONAI_CLASSES, ALL),),
        "hausdorff_dt": (
            Convention(
                "HausdorffDTLoss(sigmoid=True)", {"classes": "all", "alpha": 2.0}, ("binary",)
            ),
            Convention(
                _monai("HausdorffDTLoss"),
                {"classes": "all", "include_background": False, "alpha": 2.0},
                ("multiclass", "multilabel"),
                remark=(
                    "By MONAI's default channel 0 does not count, in multilabel as well. "
                    "`LogHausdorffDTLoss` takes the logarithm of the mean over batch and classes; "
                    "`log` here that of each class."
                ),
            ),
        ),
        "giou": (
            Convention(
                "BoxGIoULoss()",
                {"format": "xyxy"},
                remark="MONAI computes boxes in float32, so late digits differ.",
            ),
        ),
    },
    absent={
        "dice_focal": (
            "`DiceFocalLoss` adds a smoothed Dice loss and a focal loss of sigmoids, which sees "
            "both labels of a channel; here it is AnatomyNet's. For binary and multilabel the "
            "`total` of `dice` and `focal` is MONAI's number."
        ),
        "dice_ce": _MONAI_CHANNELS_CE,
        "bce_dice": _MONAI_CHANNELS_CE,
        "soft_cldice": (
            "`SoftclDiceLoss` sums over all classes before it divides, and adds 1e-4 to the "
            "denominator of the harmonic mean."
        ),
        "structural_similarity": "`SSIMLoss` compares images by their local statistics alone.",
        "contrastive": "`ContrastiveLoss` compares every pair of a batch, by SimCLR.",
    },
)
