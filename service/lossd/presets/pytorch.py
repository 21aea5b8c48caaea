"""torch's and torchvision's losses."""

from __future__ import annotations

from lossd.presets.convention import (
    HARD_TARGETS,
    ONE_OVER_CLASSES,
    POOLED_WEIGHTS,
    SIGMOID,
    SOFTMAX,
    Convention,
    Preset,
)

TORCH = Preset(
    library="PyTorch and torchvision",
    versions={"torch": "2.14.1", "torchvision": "0.29.1"},
    summary=(
        "Cross entropy with class weights is divided by the weights applied. The focal loss is "
        "torchvision's, with alpha 0.25; the box losses are torchvision's, too. Means are those of "
        '`reduction="mean"`, also where the library reduces nothing unless told.'
    ),
    losses={
        "cross_entropy": (
            Convention(
                "nn.CrossEntropyLoss()",
                {"normalize": "weights", "label_smoothing": 0.0},
                SOFTMAX,
                remark=(
                    f"{POOLED_WEIGHTS} For targets of class probabilities torch divides by the "
                    "pixels, whatever the weights: give `normalize: pixels`."
                ),
            ),
        ),
        "binary_cross_entropy": (
            Convention(
                "nn.BCEWithLogitsLoss()",
                {"normalize": "pixels", "pos_weight": 1.0, "label_smoothing": 0.0},
                SIGMOID,
                remark=(
                    "A `weight` per channel is `class_weights`; it does not enter the divisor. "
                    "torch has no `ignore_index` here."
                ),
            ),
        ),
        "focal": (
            Convention(
                'torchvision.ops.sigmoid_focal_loss(reduction="mean")',
                {"normalize": "pixels", "gamma": 2.0, "alpha": 0.25},
                SIGMOID,
                remark=HARD_TARGETS,
            ),
        ),
        "kl_divergence": (
            Convention(
                "nn.KLDivLoss()",
                {"normalize": "pixels", "class_weights": ONE_OVER_CLASSES},
                SOFTMAX,
                remark=(
                    "torch takes the logarithm of the softmax, and its mean divides by the classes "
                    'as well. `reduction="batchmean"` is the value with weights of 1, times the '
                    "pixels of a sample."
                ),
            ),
        ),
        "svm_hinge": (
            Convention(
                "nn.MultiMarginLoss()",
                {"margin": 1.0, "reduction_over_classes": "mean"},
                remark="For `p=1` and without its `weight` per class, which this loss lacks.",
            ),
        ),
        "l1": (Convention("nn.L1Loss()", {}),),
        "l2": (Convention("nn.MSELoss()", {}),),
        "smooth_l1": (Convention("nn.SmoothL1Loss()", {"beta": 1.0}),),
        "huber": (Convention("nn.HuberLoss()", {"delta": 1.0}),),
        "triplet": (
            Convention(
                "nn.TripletMarginLoss()",
                {"margin": 1.0, "squared": False, "normalize": False},
                remark=(
                    "torch adds 1e-6 to every difference before it takes the distance, so late "
                    "digits differ."
                ),
            ),
        ),
        "giou": (
            Convention(
                'torchvision.ops.generalized_box_iou_loss(reduction="mean")',
                {"format": "xyxy"},
                remark="torchvision adds 1e-7 to what it divides by; boxes without area differ.",
            ),
        ),
        "diou": (
            Convention(
                'torchvision.ops.distance_box_iou_loss(reduction="mean")',
                {"format": "xyxy"},
                remark="torchvision adds 1e-7 to what it divides by; boxes without area differ.",
            ),
        ),
        "ciou": (
            Convention(
                'torchvision.ops.complete_box_iou_loss(reduction="mean")',
                {"format": "xyxy", "alpha_gate": False},
                remark=(
                    "torchvision adds 1e-7 to what it divides by, and its gradient is NaN for a "
                    "box without height."
                ),
            ),
        ),
    },
    absent={
        "focal": "torchvision has the sigmoid form only: send one-hot targets as multilabel.",
        "hinge_embedding": "`nn.HingeEmbeddingLoss` is a loss of labelled distances.",
    },
)
