"""The losses of the service, one frozen dataclass each.

Written by tools/generate_client_losses.py from the service's registry; do not edit.

A loss is a value: `losses.Dice(smooth_nr=0.0)`. Parameters that keep their default are not sent,
so that the service's default holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lossd_client._loss import Loss

__all__ = [
    "L1",
    "L2",
    "BCEDice",
    "BalancedCrossEntropy",
    "BinaryCrossEntropy",
    "Boundary",
    "Center",
    "Ciou",
    "Combo",
    "Contrastive",
    "CrossEntropy",
    "Dice",
    "DiceCE",
    "DiceFocal",
    "DiceSquared",
    "Diou",
    "DistanceMapCrossEntropy",
    "DistributionFocal",
    "Eiou",
    "ExponentialLogarithmic",
    "Focal",
    "FocalTversky",
    "GeneralizedDice",
    "GhmClassification",
    "GhmRegression",
    "Giou",
    "HausdorffDt",
    "HausdorffErosion",
    "HingeEmbedding",
    "Huber",
    "IouBox",
    "Jaccard",
    "JsDivergence",
    "KlDivergence",
    "LogCoshDice",
    "LogDice",
    "Loss",
    "LovaszHinge",
    "LovaszSoftmax",
    "Matthews",
    "Poly1CrossEntropy",
    "QualityFocal",
    "SensitivitySpecificity",
    "ShapeAware",
    "SmoothL1",
    "SoftCldice",
    "SoftmaxL2",
    "SpatialEmbedding",
    "StructuralSimilarity",
    "SvmHinge",
    "TopkCrossEntropy",
    "Triplet",
    "Tversky",
    "WeightedCrossEntropy",
]


@dataclass(frozen=True, kw_only=True)
class BalancedCrossEntropy(Loss):
    """Binary cross entropy in which both labels weigh the same in total.

    Attributes:
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "balanced_cross_entropy"
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class BCEDice(Loss):
    """Weighted sum of binary cross entropy and soft Dice loss.

    Attributes:
        ce_weight: weight of the binary cross entropy.
        dice_weight: weight of the Dice loss.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "bce_dice"
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Loss):
    """Binary cross entropy of every channel, from logits.

    Attributes:
        pos_weight: factor on the pixels that are on.
        label_smoothing: share of every pixel's target that is spread over off and on.
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "binary_cross_entropy"
    pos_weight: float = 1.0
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class Boundary(Loss):
    """Boundary loss: probability times the signed distance to the target's edge.

    Attributes:
        classes: classes that count: all, those present in the sample's target, or a list of ids.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "boundary"
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = "all"
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Center(Loss):
    """Half the squared distance of each embedding from the center of its class."""

    name: ClassVar[str] = "center"


@dataclass(frozen=True, kw_only=True)
class Ciou(Loss):
    """`diou` plus a price for the wrong ratio of width to height, its weight not differentiated.

    Attributes:
        alpha_gate: true sets alpha to 0 unless IoU is above 0.5, as the authors' later paper does;
            false never does, as torchvision and YOLOv5.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.
    """

    name: ClassVar[str] = "ciou"
    alpha_gate: bool = False
    format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"


@dataclass(frozen=True, kw_only=True)
class Combo(Loss):
    """Weighted cross entropy and Dice loss of each class, as in the combo loss.

    Attributes:
        alpha: share of the cross entropy, 1 - alpha that of the Dice loss.
        beta: weight of pixels of the class, 1 - beta of all others; above 0.5 misses cost more.
        smooth: added to both sides of the Dice fraction, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "combo"
    alpha: float = 0.5
    beta: float = 0.5
    smooth: float = 1.0
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Contrastive(Loss):
    """Half the squared distance of a similar pair, or half the squared lack of it of any other.

    Attributes:
        margin: distance from which a dissimilar pair costs nothing.
    """

    name: ClassVar[str] = "contrastive"
    margin: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross entropy between the target and the softmax (or sigmoid) of the logits.

    Attributes:
        label_smoothing: share of every pixel's target that is spread over all labels.
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class Dice(Loss):
    """Soft Dice loss: one minus twice the overlap over the sum of both areas.

    Attributes:
        smooth_nr: added to the numerator, in pixels; above 0, empty against empty costs 0.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class DiceCE(Loss):
    """Weighted sum of cross entropy and soft Dice loss.

    Attributes:
        ce_weight: weight of the cross entropy (binary and multilabel: binary cross entropy).
        dice_weight: weight of the Dice loss.
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice_ce"
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class DiceFocal(Loss):
    """Dice loss of every class plus the focal loss of its pixels, as in AnatomyNet.

    Attributes:
        focal_weight: weight of the focal part.
        gamma: focusing exponent of the focal part.
        reduction_over_classes: `sum` is the paper's; `mean` divides both parts by the weights of
            the classes that count.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "dice_focal"
    focal_weight: float = 1.0
    gamma: float = 2.0
    reduction_over_classes: Literal["mean", "sum"] = "mean"
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class DiceSquared(Loss):
    """Dice loss with squared sums, as in V-Net.

    Attributes:
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice_squared"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class Diou(Loss):
    """One minus IoU plus the distance of the centers, measured by the diagonal around both boxes.

    Attributes:
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.
    """

    name: ClassVar[str] = "diou"
    format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"


@dataclass(frozen=True, kw_only=True)
class DistanceMapCrossEntropy(Loss):
    """Cross entropy that weighs pixels more, the nearer they lie to the target's edge.

    Attributes:
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "distance_map_cross_entropy"
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class DistributionFocal(Loss):
    """Cross entropy with the two bins around a real target, shared by nearness."""

    name: ClassVar[str] = "distribution_focal"


@dataclass(frozen=True, kw_only=True)
class Eiou(Loss):
    """`diou` plus the squared errors of width and height, measured by the hull's sides.

    Attributes:
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.
    """

    name: ClassVar[str] = "eiou"
    format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"


@dataclass(frozen=True, kw_only=True)
class ExponentialLogarithmic(Loss):
    """Powers of the logarithmic Dice loss and of the cross entropy, rare labels weighing more.

    Attributes:
        dice_weight: weight of the Dice part.
        ce_weight: weight of the cross entropy part.
        gamma_dice: power of each label's -ln D, whose base is at least 1e-7.
        gamma_ce: power of each pixel's -ln p, whose base is at least 1e-7.
        smooth: added to both sides of the Dice fraction, in pixels.
    """

    name: ClassVar[str] = "exponential_logarithmic"
    dice_weight: float = 0.8
    ce_weight: float = 0.2
    gamma_dice: float = 0.3
    gamma_ce: float = 0.3
    smooth: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """Focal loss: cross entropy with the easy pixels turned down.

    Attributes:
        gamma: focusing exponent; 0 is cross entropy.
        alpha: binary and multilabel: weight of pixels that are on, 1 - alpha on the others.
            Multiclass: list of one weight per class. Null: no weights.
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "focal"
    gamma: float = 2.0
    alpha: float | Sequence[float] | None = None
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class FocalTversky(Loss):
    """Tversky loss of each class, raised to a power.

    Attributes:
        fp_weight: price of a false positive pixel.
        fn_weight: price of a false negative pixel.
        exponent: power of each class's loss, before the average (the paper's 1/gamma = 3/4).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "focal_tversky"
    fp_weight: float = 0.3
    fn_weight: float = 0.7
    exponent: float = 0.75
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class GeneralizedDice(Loss):
    """Dice loss of all classes at once, small classes weighing as much as large ones.

    Attributes:
        weighting: 1/Y², 1/Y or 1 for a class of Y pixels; a class that counts but is absent gets
            the largest weight of its sample.
        smoothing: `scaled` divides the weights by the sample's largest before smoothing enters;
            `unscaled` adds it beside the weights as they are, which is MONAI's.
        smooth_nr: added to the numerator; scaled, in pixels of the smallest class.
        smooth_dr: added to the denominator, in the same unit.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
    """

    name: ClassVar[str] = "generalized_dice"
    weighting: Literal["square", "simple", "uniform"] = "square"
    smoothing: Literal["scaled", "unscaled"] = "scaled"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False


@dataclass(frozen=True, kw_only=True)
class GhmClassification(Loss):
    """Binary cross entropy in which every degree of difficulty weighs the same.

    Attributes:
        bins: equal parts of [0, 1] in which the lengths of the gradient are counted; 1 is plain
            binary cross entropy.
    """

    name: ClassVar[str] = "ghm_classification"
    bins: int = 10


@dataclass(frozen=True, kw_only=True)
class GhmRegression(Loss):
    """Smoothed absolute error in which every degree of difficulty weighs the same.

    Attributes:
        bins: equal parts of [0, 1] in which the lengths of the gradient are counted; 1 gives all
            elements the same weight.
        mu: residual, in units of the prediction, around which the error turns from quadratic to
            linear.
    """

    name: ClassVar[str] = "ghm_regression"
    bins: int = 10
    mu: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Giou(Loss):
    """One minus the generalised IoU, which also charges for the empty space between two boxes.

    Attributes:
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.
    """

    name: ClassVar[str] = "giou"
    format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"


@dataclass(frozen=True, kw_only=True)
class HausdorffDt(Loss):
    """Hausdorff loss by distance transforms: squared error times distance to both edges.

    Attributes:
        alpha: power of the distance; 0 leaves twice the squared error, larger values look at the
            farthest errors only.
        one_sided: true: the distance to the target's edge alone; errors of the prediction far from
            its own edge are then no dearer.
        log: true: ln(1 + L) of each class's mean L, so that large values do not rule an average.
        classes: classes that count: all, those present in the sample's target, or a list of ids.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "hausdorff_dt"
    alpha: float = 2.0
    one_sided: bool = False
    log: bool = False
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = "all"
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class HausdorffErosion(Loss):
    """Hausdorff loss by repeated erosion of the squared error: thick errors cost more.

    Attributes:
        alpha: power of the erosion's number, by which errors that survive long weigh more.
        iterations: number K of erosions; errors that are thicker than those reach weigh no more.
        classes: classes that count: all, those present in the sample's target, or a list of ids.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "hausdorff_erosion"
    alpha: float = 2.0
    iterations: int = 10
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = "all"
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class HingeEmbedding(Loss):
    """By how much the pixels of each instance lie farther than delta from their mean embedding.

    Attributes:
        delta: distance from the center within which a pixel costs nothing.
        squared: true squares what exceeds delta.
    """

    name: ClassVar[str] = "hinge_embedding"
    delta: float = 0.5
    squared: bool = False


@dataclass(frozen=True, kw_only=True)
class Huber(Loss):
    """Half the squared error up to delta, and the line that continues it beyond.

    Attributes:
        delta: error at which the parabola becomes a line, in the unit of the target; also the
            steepest slope.
    """

    name: ClassVar[str] = "huber"
    delta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class IouBox(Loss):
    """One minus the intersection over union of two boxes, or its logarithm or square.

    Attributes:
        form: `linear` is 1 - IoU, `log` is -ln IoU, `squared` is 1 - IoU squared.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.
    """

    name: ClassVar[str] = "iou_box"
    form: Literal["linear", "log", "squared"] = "linear"
    format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"


@dataclass(frozen=True, kw_only=True)
class Jaccard(Loss):
    """Soft Jaccard loss: one minus intersection over union.

    Attributes:
        smooth_nr: added to the intersection, in pixels.
        smooth_dr: added to the union, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "jaccard"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class JsDivergence(Loss):
    """Jensen-Shannon divergence between prediction and target.

    Attributes:
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "js_divergence"
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class KlDivergence(Loss):
    """Kullback-Leibler divergence of the prediction from a soft target.

    Attributes:
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "kl_divergence"
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class L1(Loss):
    """Mean absolute error of each sample's elements."""

    name: ClassVar[str] = "l1"


@dataclass(frozen=True, kw_only=True)
class L2(Loss):
    """Mean squared error of each sample's elements."""

    name: ClassVar[str] = "l2"


@dataclass(frozen=True, kw_only=True)
class LogCoshDice(Loss):
    """Logarithm of the hyperbolic cosine of the Dice loss of each class.

    Attributes:
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "log_cosh_dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class LogDice(Loss):
    """Negative logarithm of the soft Dice coefficient of each class.

    Attributes:
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "log_dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class LovaszHinge(Loss):
    """Lovász extension of the Jaccard loss of each channel, at the hinge errors of the logits."""

    name: ClassVar[str] = "lovasz_hinge"


@dataclass(frozen=True, kw_only=True)
class LovaszSoftmax(Loss):
    """Lovász extension of the Jaccard loss of each class, at the errors of the probabilities.

    Attributes:
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "lovasz_softmax"
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Matthews(Loss):
    """One minus Matthews' correlation coefficient of prediction and target.

    Attributes:
        smooth_nr: taken for the sake of one signature; the coefficient has no smoothing.
        smooth_dr: likewise.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "matthews"
    smooth_nr: float = 0.0
    smooth_dr: float = 0.0
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class Poly1CrossEntropy(Loss):
    """Cross entropy with its first polynomial term reweighted.

    Attributes:
        epsilon: weight of the miss of the labelled class; 0 is cross entropy, negative values make
            confident pixels matter less.
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "poly1_cross_entropy"
    epsilon: float = 1.0
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class QualityFocal(Loss):
    """Focal loss for scores that should predict a quality between 0 and 1.

    Attributes:
        beta: focusing exponent; 0 is binary cross entropy, summed over classes.
    """

    name: ClassVar[str] = "quality_focal"
    beta: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SensitivitySpecificity(Loss):
    """Mean squared error inside the target and outside of it, weighed against each other.

    Attributes:
        sensitivity_weight: weight r of the error inside.
        smooth_nr: added to both numerators, in pixels.
        smooth_dr: added to both denominators, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "sensitivity_specificity"
    sensitivity_weight: float = 0.05
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class ShapeAware(Loss):
    """Cross entropy, raised at wrong pixels by how far the contours of both masks lie apart.

    Attributes:
        weight: factor of the second term; 0 is cross entropy.
        class_weights: one weight per channel, applied to the pixels of that class.
    """

    name: ClassVar[str] = "shape_aware"
    weight: float = 1.0
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class SmoothL1(Loss):
    """Mean absolute error, rounded to a parabola where an error is below beta.

    Attributes:
        beta: error at which the parabola meets the line, in the unit of the target; 0 is `l1`.
    """

    name: ClassVar[str] = "smooth_l1"
    beta: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SoftCldice(Loss):
    """Centreline Dice: one minus the agreement of each mask with the other's skeleton.

    Attributes:
        iterations: number of erosions after the first; at least half the thickest object's width,
            more cost time and change nothing.
        smooth: added to both sides of both fractions, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation. Null: false for multiclass,
            true otherwise.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "soft_cldice"
    iterations: int = 3
    smooth: float = 1.0
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool | None = None
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class SoftmaxL2(Loss):
    """Cross entropy of a linear classifier plus the squared length of its weights.

    Attributes:
        l2: factor of half the squared length of the weights; 0 is cross entropy.
    """

    name: ClassVar[str] = "softmax_l2"
    l2: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SpatialEmbedding(Loss):
    """Lovász hinge of every instance's Gaussian, plus spread of bandwidths and error of seeds."""

    name: ClassVar[str] = "spatial_embedding"


@dataclass(frozen=True, kw_only=True)
class StructuralSimilarity(Loss):
    """Cross entropy, with more of it where the local structure of both masks differs.

    Attributes:
        beta: share of the largest difference from which on a pixel counts as different.
        weight: share of plain binary cross entropy; 1 is nothing else.
        window: width of the square window in pixels, odd.
        sigma: width of the Gaussian that weighs the window's pixels, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "structural_similarity"
    beta: float = 0.1
    weight: float = 0.5
    window: int = 3
    sigma: float = 1.5
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class SvmHinge(Loss):
    """Hinge loss of a multiclass support vector machine.

    Attributes:
        margin: by how much the right class has to lead every other one, in units of the scores.
        reduction_over_classes: `sum` over the wrong classes; `mean` divides it by the number C of
            all classes, the right one included, as torch does.
    """

    name: ClassVar[str] = "svm_hinge"
    margin: float = 1.0
    reduction_over_classes: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class TopkCrossEntropy(Loss):
    """Mean cross entropy of the hardest pixels of a sample.

    Attributes:
        fraction: share of the valid pixels that is kept; 1 is plain cross entropy.
        class_weights: one weight per channel, applied to the pixels of that class.
    """

    name: ClassVar[str] = "topk_cross_entropy"
    fraction: float = 0.1
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Triplet(Loss):
    """By how much the positive is not nearer to the anchor than the negative, with a margin.

    Attributes:
        margin: by how much the negative has to be farther, in squared distance if `squared`.
        squared: true compares squared distances, false the distances themselves.
        normalize: true scales each of the three to length 1 first; false takes them as they are.
    """

    name: ClassVar[str] = "triplet"
    margin: float = 0.2
    squared: bool = True
    normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class Tversky(Loss):
    """Tversky loss: Dice with a price of its own for each kind of error.

    Attributes:
        fp_weight: price of a false positive pixel (the paper's alpha).
        fn_weight: price of a false negative pixel (the paper's beta).
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
            present_of_all: absent classes cost 0 but count in the mean.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        soft_label: true: the intersection is the sum of min(p, y) instead of p·y, so that a soft
            target is matched best by itself.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "tversky"
    fp_weight: float = 0.3
    fn_weight: float = 0.7
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all", "present_of_all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    soft_label: bool = False
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class WeightedCrossEntropy(Loss):
    """Cross entropy in which rare labels weigh more.

    Attributes:
        beta: binary and multilabel: weight of pixels that are on, the others weigh 1. Null: the
            weights of the formula, per sample (and channel).
        class_weights: one weight per channel, applied to the pixels of that class.
        normalize: divide by the valid pixels, or by the sum of the weights applied.
    """

    name: ClassVar[str] = "weighted_cross_entropy"
    beta: float | None = None
    class_weights: Sequence[float] | None = None
    normalize: Literal["pixels", "weights"] = "pixels"
