"""segmentation_models.pytorch's losses."""

from __future__ import annotations

from typing import Any

from lossd.presets.convention import (
    ALL,
    HARD_TARGETS,
    POOLED_MEAN,
    SIGMOID,
    SOFTMAX,
    Convention,
    Preset,
)

_SMP_REGION: dict[str, Any] = {
    "classes": "present_of_all",
    "include_background": True,
    "average": "macro",
    "soft_label": True,
    "smooth_nr": 0.0,
    "smooth_dr": 0.0,
}
_SMP_CLASSES = (
    "With a list of `classes` a listed one that the batch lacks costs 0 there and almost 1 here."
)

SMP = Preset(
    library="segmentation_models_pytorch",
    versions={"segmentation-models-pytorch": "0.6.0"},
    summary=(
        "Regions are always summed over the batch, so the request's `aggregate` becomes `batch`; "
        "`aggregate: sample` scores the samples one by one. A class that the whole batch lacks "
        "costs 0 and still counts in the mean. There is no smoothing, only a floor of 1e-7 that "
        "never acts on a class that is present. The overlap is the sum of min(p, y), which is the "
        "usual one for hard targets. `average: micro` needs `classes` to be given, too."
    ),
    losses={
        "dice": (
            Convention(
                "DiceLoss(mode)",
                _SMP_REGION,
                ALL,
                remark=f"Its `smooth` is half of `smooth_nr` and of `smooth_dr`. {_SMP_CLASSES}",
            ),
        ),
        "log_dice": (
            Convention(
                "DiceLoss(mode, log_loss=True)",
                _SMP_REGION,
                ALL,
                remark=f"Its `smooth` is half of `smooth_nr` and of `smooth_dr`. {_SMP_CLASSES}",
            ),
        ),
        "jaccard": (Convention("JaccardLoss(mode)", _SMP_REGION, ALL, remark=_SMP_CLASSES),),
        "tversky": (
            Convention(
                "TverskyLoss(mode)",
                {**_SMP_REGION, "fp_weight": 0.5, "fn_weight": 0.5},
                ALL,
                remark=f"Alpha weighs false positives, beta false negatives. {_SMP_CLASSES}",
            ),
        ),
        "focal_tversky": (
            Convention(
                "TverskyLoss('binary')",
                {**_SMP_REGION, "fp_weight": 0.5, "fn_weight": 0.5, "exponent": 1.0},
                ("binary",),
                remark="`exponent` is its `gamma`, by default 1.",
            ),
        ),
        "matthews": (
            Convention(
                "MCCLoss()",
                {"classes": "all", "average": "macro"},
                ("binary",),
                remark=(
                    "It takes probabilities and adds 1e-5 to each of the four counts, nothing is "
                    "added here: equal to about 1e-5 over the smallest count."
                ),
            ),
        ),
        "focal": (
            Convention(
                "FocalLoss('binary')",
                {"normalize": "pixels", "gamma": 2.0},
                ("binary",),
                remark=f"{HARD_TARGETS} {POOLED_MEAN}",
            ),
            Convention(
                "FocalLoss('multilabel')",
                {"normalize": "weights", "gamma": 2.0},
                ("multilabel",),
                remark=(
                    "Dividing by the weights makes `class_weights` those of the library. "
                    f"{HARD_TARGETS}"
                ),
            ),
        ),
        "lovasz_softmax": (
            Convention(
                "LovaszLoss('multiclass', per_image=True)",
                {"classes": "present", "include_background": True},
                SOFTMAX,
                remark=(
                    "By its default, `per_image=False`, it sorts the pixels of the whole batch "
                    "together; that is this number for a batch of one."
                ),
            ),
        ),
        "lovasz_hinge": (
            Convention(
                "LovaszLoss('binary', per_image=True)",
                {},
                ("binary",),
                remark=(
                    "By its default, `per_image=False`, it sorts the pixels of the whole batch "
                    "together; that is this number for a batch of one."
                ),
            ),
        ),
        "cross_entropy": (
            Convention(
                "SoftCrossEntropyLoss(smooth_factor=0.0)",
                {"normalize": "pixels", "label_smoothing": 0.0},
                SOFTMAX,
                remark=(
                    "It divides by all pixels, ignored ones included: its number is the one here "
                    "times the share of valid pixels. Its own default of `smooth_factor`, None, "
                    "raises an error."
                ),
            ),
        ),
        "binary_cross_entropy": (
            Convention(
                "SoftBCEWithLogitsLoss()",
                {"normalize": "pixels", "pos_weight": 1.0, "label_smoothing": 0.0},
                SIGMOID,
                remark=(
                    "Its `smooth_factor` is half of `label_smoothing`. It divides by all pixels, "
                    "ignored ones included: its number is the one here times the share of valid "
                    "pixels."
                ),
            ),
        ),
    },
    absent={
        "focal": (
            "`FocalLoss('multiclass')` is a sigmoid per class against the rest, not a softmax: "
            "send one-hot targets as multilabel."
        ),
        "focal_tversky": (
            "`TverskyLoss` of several classes raises the mean over classes to the power `gamma`, "
            "here each class is."
        ),
        "lovasz_hinge": (
            "`LovaszLoss('multilabel')` sorts the pixels of all channels together, here each "
            "channel is sorted alone."
        ),
    },
    aggregate="batch",
)
