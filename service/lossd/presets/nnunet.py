"""nnU-Net's losses."""

from __future__ import annotations

from typing import Any

from lossd.presets.convention import (
    POOLED_MEAN,
    POOLED_WEIGHTS,
    SIGMOID,
    SOFTMAX,
    Convention,
    Preset,
)

_NNUNET_REGIONS: dict[str, Any] = {
    "classes": "all",
    "include_background": True,
    "average": "macro",
    "soft_label": False,
    "smooth_nr": 1e-5,
    "smooth_dr": 1e-5,
}
_NNUNET_LABELS: dict[str, Any] = {**_NNUNET_REGIONS, "include_background": False}
_NNUNET_WEIGHTS: dict[str, Any] = {"ce_weight": 1.0, "dice_weight": 1.0}
_NNUNET_SHIFT = "nnU-Net subtracts the Dice coefficient, so its number is lower by"
_NNUNET_BATCH = (
    "With `aggregate: batch` the values agree, but a sample's gradient is that of the shared Dice "
    "part and of its own whole cross entropy. For nnU-Net's gradient ask for two rows, `dice` and "
    "`cross_entropy`, the latter with a weight of one over the samples."
)

NNUNET = Preset(
    library="nnU-Net",
    versions={"nnunetv2": "2.8.1"},
    summary=(
        "The losses as `nnUNetTrainer` builds them for one resolution, without the weights of deep "
        "supervision. Labels (multiclass) leave the background out of Dice; regions (multilabel, "
        "or binary for a single one) have none. Dice is smoothed by 1e-5 and absent classes count. "
        "Samples are scored one by one, as planned for `3d_fullres` without a cascade and for "
        "`3d_lowres`; plans with `batch_dice: true`, which are `2d` and a `3d_fullres` behind a "
        "low resolution, need `aggregate: batch`."
    ),
    losses={
        "dice": (
            Convention(
                "MemoryEfficientSoftDiceLoss(do_bg=False, smooth=1e-5)",
                _NNUNET_LABELS,
                SOFTMAX,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} 1.",
            ),
            Convention(
                "MemoryEfficientSoftDiceLoss(do_bg=True, smooth=1e-5)",
                _NNUNET_REGIONS,
                SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} 1.",
            ),
        ),
        "dice_ce": (
            Convention(
                "DC_and_CE_loss({'do_bg': False, 'smooth': 1e-5}, {})",
                {**_NNUNET_LABELS, **_NNUNET_WEIGHTS},
                SOFTMAX,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH} {POOLED_MEAN}",
            ),
            Convention(
                "DC_and_BCE_loss({}, {'do_bg': True, 'smooth': 1e-5})",
                {**_NNUNET_REGIONS, **_NNUNET_WEIGHTS},
                SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH}",
            ),
        ),
        "bce_dice": (
            Convention(
                "DC_and_BCE_loss({}, {'do_bg': True, 'smooth': 1e-5})",
                {**_NNUNET_REGIONS, **_NNUNET_WEIGHTS},
                SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH}",
            ),
        ),
        "cross_entropy": (
            Convention(
                "RobustCrossEntropyLoss()",
                {"normalize": "weights", "label_smoothing": 0.0},
                SOFTMAX,
                remark=POOLED_WEIGHTS,
            ),
        ),
        "topk_cross_entropy": (
            Convention(
                "TopKLoss(k=10)",
                {"fraction": 0.1},
                SOFTMAX,
                remark=(
                    "For a batch of one: nnU-Net takes the hardest tenth of the whole batch, "
                    "rounded down and counted from all pixels, ignored ones included; here it is "
                    "the hardest tenth of a sample's valid pixels, rounded up."
                ),
            ),
        ),
    },
)
