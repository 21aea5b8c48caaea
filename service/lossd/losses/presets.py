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
from dataclasses import dataclass, field
from typing import Any, Literal

from lossd.losses.sums import Task

ONE_OVER_CLASSES = "1/C"
"""Stands in a table for a list that holds 1/C for each of C classes."""


@dataclass(frozen=True)
class Convention:
    """One loss of a library, as parameters of the loss here."""

    library: str
    """The library's loss, with the arguments that differ from its defaults."""
    parameters: Mapping[str, Any]
    """What is filled in; `ONE_OVER_CLASSES` becomes a list of numbers."""
    tasks: tuple[Task, ...] = ()
    """Tasks it holds for; empty for losses without a task."""
    shift: float = 0.0
    """How much the value here lies above the library's; the gradient is the same."""
    remark: str = ""
    """Where the numbers part, and what else to know, in sentences."""


@dataclass(frozen=True)
class Preset:
    """The conventions of one library."""

    library: str
    """What people call it."""
    versions: Mapping[str, str]
    """Version of each distribution that the entries were compared with."""
    summary: str
    """What is particular to the library, in sentences."""
    losses: Mapping[str, tuple[Convention, ...]]
    """By wire name; several where the tasks differ."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """By wire name: why the library's loss, or that of some task, cannot be had."""
    aggregate: Literal["sample", "batch"] | None = None
    """How the library sums regions; None leaves what the request says or its default."""


_ALL: tuple[Task, ...] = ("binary", "multiclass", "multilabel")
_SIGMOID: tuple[Task, ...] = ("binary", "multilabel")
_SOFTMAX: tuple[Task, ...] = ("multiclass",)

_HARD_TARGETS = "For targets of 0 and 1; soft targets get another focusing factor there."
_POOLED_MEAN = (
    "The library takes one mean over the batch's valid pixels. With ignored pixels that is the "
    "mean of the samples here only if each has equally many valid ones."
)
_POOLED_WEIGHTS = (
    "The library divides once, by the weights of all valid pixels of the batch. With class weights "
    "or ignored pixels that is the mean of the samples here only if the weights of each add up to "
    "the same, as in a batch of one."
)

# -- MONAI ---------------------------------------------------------------------------------------


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
        "dice": (Convention(_monai("DiceLoss"), _MONAI_REGION, _ALL, remark=_MONAI_WEIGHTS),),
        "dice_squared": (
            Convention(
                _monai("DiceLoss", "squared_pred=True"),
                _MONAI_REGION,
                _ALL,
                remark=_MONAI_WEIGHTS,
            ),
        ),
        "jaccard": (
            Convention(
                _monai("DiceLoss", "jaccard=True"),
                {**_MONAI_REGION, "smooth_nr": 5e-6, "smooth_dr": 5e-6},
                _ALL,
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
                _ALL,
                remark="Alpha weighs false positives, beta false negatives.",
            ),
        ),
        "generalized_dice": (
            Convention(
                _monai("GeneralizedDiceLoss", "smooth_nr=0", "smooth_dr=0"),
                {**_MONAI_CLASSES, "weighting": "square", "smooth_nr": 0.0, "smooth_dr": 0.0},
                _ALL,
                remark=(
                    "MONAI's default smoothing of 1e-5 stands beside weights of one over the "
                    "squared area and so lowers its value on large objects; here the weights are "
                    "scaled first, and the number is MONAI's without smoothing. A sample in which "
                    "no class is present costs 0 with MONAI's default and is 0/0 without smoothing."
                ),
            ),
        ),
        "matthews": (
            Convention(
                _monai("MCCLoss"),
                {**_MONAI_CLASSES, "average": "macro"},
                _ALL,
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
                _SIGMOID,
                remark=f"{_HARD_TARGETS} {_POOLED_MEAN}",
            ),
            Convention(
                "FocalLoss(use_softmax=True, to_onehot_y=True)",
                {"normalize": "pixels", "class_weights": ONE_OVER_CLASSES, "gamma": 2.0},
                _SOFTMAX,
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
                _SOFTMAX,
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
        "boundary": (Convention(_monai("BoundaryLoss"), _MONAI_CLASSES, _ALL),),
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

# -- segmentation_models_pytorch -----------------------------------------------------------------

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
                _ALL,
                remark=f"Its `smooth` is half of `smooth_nr` and of `smooth_dr`. {_SMP_CLASSES}",
            ),
        ),
        "log_dice": (
            Convention(
                "DiceLoss(mode, log_loss=True)",
                _SMP_REGION,
                _ALL,
                remark=f"Its `smooth` is half of `smooth_nr` and of `smooth_dr`. {_SMP_CLASSES}",
            ),
        ),
        "jaccard": (Convention("JaccardLoss(mode)", _SMP_REGION, _ALL, remark=_SMP_CLASSES),),
        "tversky": (
            Convention(
                "TverskyLoss(mode)",
                {**_SMP_REGION, "fp_weight": 0.5, "fn_weight": 0.5},
                _ALL,
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
                remark=f"{_HARD_TARGETS} {_POOLED_MEAN}",
            ),
            Convention(
                "FocalLoss('multilabel')",
                {"normalize": "weights", "gamma": 2.0},
                ("multilabel",),
                remark=(
                    "Dividing by the weights makes `class_weights` those of the library. "
                    f"{_HARD_TARGETS}"
                ),
            ),
        ),
        "lovasz_softmax": (
            Convention(
                "LovaszLoss('multiclass', per_image=True)",
                {"classes": "present", "include_background": True},
                _SOFTMAX,
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
                _SOFTMAX,
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
                _SIGMOID,
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

# -- nnU-Net -------------------------------------------------------------------------------------

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
                _SOFTMAX,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} 1.",
            ),
            Convention(
                "MemoryEfficientSoftDiceLoss(do_bg=True, smooth=1e-5)",
                _NNUNET_REGIONS,
                _SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} 1.",
            ),
        ),
        "dice_ce": (
            Convention(
                "DC_and_CE_loss({'do_bg': False, 'smooth': 1e-5}, {})",
                {**_NNUNET_LABELS, **_NNUNET_WEIGHTS},
                _SOFTMAX,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH} {_POOLED_MEAN}",
            ),
            Convention(
                "DC_and_BCE_loss({}, {'do_bg': True, 'smooth': 1e-5})",
                {**_NNUNET_REGIONS, **_NNUNET_WEIGHTS},
                _SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH}",
            ),
        ),
        "bce_dice": (
            Convention(
                "DC_and_BCE_loss({}, {'do_bg': True, 'smooth': 1e-5})",
                {**_NNUNET_REGIONS, **_NNUNET_WEIGHTS},
                _SIGMOID,
                shift=1.0,
                remark=f"{_NNUNET_SHIFT} `dice_weight`. {_NNUNET_BATCH}",
            ),
        ),
        "cross_entropy": (
            Convention(
                "RobustCrossEntropyLoss()",
                {"normalize": "weights", "label_smoothing": 0.0},
                _SOFTMAX,
                remark=_POOLED_WEIGHTS,
            ),
        ),
        "topk_cross_entropy": (
            Convention(
                "TopKLoss(k=10)",
                {"fraction": 0.1},
                _SOFTMAX,
                remark=(
                    "For a batch of one: nnU-Net takes the hardest tenth of the whole batch, "
                    "rounded down and counted from all pixels, ignored ones included; here it is "
                    "the hardest tenth of a sample's valid pixels, rounded up."
                ),
            ),
        ),
    },
)

# -- torch and torchvision -----------------------------------------------------------------------

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
                _SOFTMAX,
                remark=(
                    f"{_POOLED_WEIGHTS} For targets of class probabilities torch divides by the "
                    "pixels, whatever the weights: give `normalize: pixels`."
                ),
            ),
        ),
        "binary_cross_entropy": (
            Convention(
                "nn.BCEWithLogitsLoss()",
                {"normalize": "pixels", "pos_weight": 1.0, "label_smoothing": 0.0},
                _SIGMOID,
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
                _SIGMOID,
                remark=_HARD_TARGETS,
            ),
        ),
        "kl_divergence": (
            Convention(
                "nn.KLDivLoss()",
                {"normalize": "pixels", "class_weights": ONE_OVER_CLASSES},
                _SOFTMAX,
                remark=(
                    "torch takes the logarithm of the softmax, and its mean divides by the classes "
                    'as well. `reduction="batchmean"` is the value with weights of 1, times the '
                    "pixels of a sample."
                ),
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
        "svm_hinge": (
            "`nn.MultiMarginLoss` divides the sum over the wrong classes by the number of classes: "
            "it is this loss with a weight of 1/C."
        ),
        "hinge_embedding": "`nn.HingeEmbeddingLoss` is a loss of labelled distances.",
    },
)

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
