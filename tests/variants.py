"""Parameters with which the property tests run every loss, found by what the loss is."""

from typing import Any

from lossd.losses import LOSSES, Task
from lossd.losses.declare import CompoundLoss, PixelLoss, RegionLoss

Params = dict[str, Any]

WEIGHTS = [0.5, 1.0, 2.0, 4.0]

BY_CLASS: dict[type, list[Params]] = {
    RegionLoss: [
        {},
        {"average": "micro"},
        {"classes": "all"},
        {"smooth_nr": 0.0, "smooth_dr": 0.0},
        {"smooth_nr": 1.0, "smooth_dr": 2.0},
        {"soft_label": True},
        {"classes": "present_of_all"},
    ],
    PixelLoss: [{}, {"normalize": "weights"}],
    CompoundLoss: [{}, {"classes": "all"}],
}
WIDE_BY_CLASS: dict[type, list[Params]] = {
    RegionLoss: [
        {"include_background": False},
        {"classes": [1, 3]},
        {"class_weights": WEIGHTS},
        {"include_background": False, "class_weights": [9.0, 1.0, 2.5, 0.5]},
        {"classes": "present_of_all", "class_weights": WEIGHTS},
    ],
    PixelLoss: [
        {"class_weights": WEIGHTS},
        {"class_weights": WEIGHTS, "normalize": "weights"},
    ],
    CompoundLoss: [{"include_background": False}, {"class_weights": WEIGHTS}],
}
CLASSES: list[Params] = [{"classes": "all"}, {"classes": "present_of_all"}]
WIDE_CLASSES: list[Params] = [
    {"classes": [1, 3]},
    {"include_background": False, "class_weights": WEIGHTS},
    {"include_background": True},
]
OWN: dict[str, list[Params]] = {
    "tversky": [{"fp_weight": 0.9, "fn_weight": 0.2}],
    "cross_entropy": [{"label_smoothing": 0.1}],
    "binary_cross_entropy": [{"pos_weight": 3.5}, {"label_smoothing": 0.2, "pos_weight": 0.5}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 3.0}],
    "dice_ce": [{"ce_weight": 0.7, "dice_weight": 2.0}],
    "bce_dice": [{"ce_weight": 0.7, "dice_weight": 2.0}],
    "focal_tversky": [{"exponent": 1.5}, {"exponent": 1.0, "fp_weight": 1.0}],
    "sensitivity_specificity": [{"sensitivity_weight": 0.5}],
    "generalized_dice": [
        {"soft_label": True},
        {"weighting": "simple"},
        {"weighting": "uniform"},
        {"smoothing": "unscaled"},
        {"smoothing": "unscaled", "weighting": "simple", "smooth_nr": 0.5, "smooth_dr": 2.0},
        {"smoothing": "unscaled", "weighting": "uniform", "classes": "all"},
    ],
    "poly1_cross_entropy": [{"epsilon": -0.5}],
    "dice_focal": [
        {"reduction_over_classes": "sum"},
        {"gamma": 0.7, "focal_weight": 3.0},
    ],
    "combo": [{"alpha": 0.2, "beta": 0.9, "smooth": 3.0}],
    "exponential_logarithmic": [
        {"gamma_dice": 1.0, "gamma_ce": 1.5, "dice_weight": 0.5, "ce_weight": 2.0, "smooth": 2.0}
    ],
    "topk_cross_entropy": [{"fraction": 0.5}, {"fraction": 1.0}],
    "ghm_classification": [{"bins": 30}],
    "distance_map_cross_entropy": [{"normalize": "weights"}],
    "shape_aware": [{"weight": 2.5}],
    "hausdorff_dt": [
        {"alpha": 1.0},
        {"one_sided": True},
        {"log": True},
    ],
    "hausdorff_erosion": [{"alpha": 1.0, "iterations": 3}],
    "structural_similarity": [{"beta": 0.3, "weight": 0.2, "window": 5, "sigma": 0.8}],
    "soft_cldice": [{"iterations": 5, "smooth": 0.5}],
    "l1": [],
    "smooth_l1": [{"beta": 0.5}, {"beta": 0.0}],
    "huber": [{"delta": 0.5}],
    "ghm_regression": [{"bins": 30, "mu": 0.5}],
    "iou_box": [{"form": "log"}, {"form": "squared"}, {"format": "cxcywh"}],
    "giou": [{"format": "xywh"}],
    "diou": [{"format": "xywh"}],
    "ciou": [{"alpha_gate": True}, {"format": "cxcywh"}],
    "eiou": [{"format": "cxcywh"}],
    "contrastive": [{"margin": 3.0}],
    "triplet": [{"normalize": False}, {"squared": False}, {"margin": 2.0}],
    "hinge_embedding": [{"squared": True}, {"delta": 0.1}],
    "quality_focal": [{"beta": 0.5}, {"beta": 3.0}],
    "svm_hinge": [
        {"margin": 0.3},
        {"reduction_over_classes": "mean"},
        {"margin": 2.5, "reduction_over_classes": "mean"},
    ],
    "softmax_l2": [{"l2": 0.0}, {"l2": 2.0}],
}


def variants(name: str, channels: int = 0, task: Task | str = "") -> list[Params]:
    """Parameters to try of a loss: the defaults first."""
    loss = LOSSES[name]
    fields = loss.parameters.model_fields
    found = [*BY_CLASS.get(type(loss), [{}]), *OWN.get(name, [])]
    if "classes" in fields and type(loss) not in BY_CLASS:
        found += CLASSES
    if channels > 1:
        found += WIDE_BY_CLASS.get(type(loss), [])
        if "classes" in fields and type(loss) not in BY_CLASS:
            found += WIDE_CLASSES
        elif "class_weights" in fields and type(loss) not in WIDE_BY_CLASS:
            found.append({"class_weights": WEIGHTS})
    if name == "weighted_cross_entropy" and task != "multiclass":
        found += [{"beta": 2.5}, {"beta": 2.5, "normalize": "weights"}]
    if name == "focal":
        found.append({"alpha": [0.2, 0.5, 1.0, 0.1]} if task == "multiclass" else {"alpha": 0.25})
    return found
