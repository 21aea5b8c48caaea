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
    "BCEDice",
    "BalancedCrossEntropy",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Dice",
    "DiceCE",
    "DiceSquared",
    "Focal",
    "FocalTversky",
    "GeneralizedDice",
    "Jaccard",
    "LogCoshDice",
    "LogDice",
    "Loss",
    "Matthews",
    "SensitivitySpecificity",
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
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "bce_dice"
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
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
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
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
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice_ce"
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class DiceSquared(Loss):
    """Dice loss with squared sums, as in V-Net.

    Attributes:
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "dice_squared"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


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
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "focal_tversky"
    fp_weight: float = 0.3
    fn_weight: float = 0.7
    exponent: float = 0.75
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class GeneralizedDice(Loss):
    """Dice loss of all classes at once, small classes weighing as much as large ones.

    Attributes:
        weighting: 1/Y², 1/Y or 1 for a class of Y pixels, scaled by the sample's largest; a class
            that counts but is absent gets the largest weight of its sample.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
    """

    name: ClassVar[str] = "generalized_dice"
    weighting: Literal["square", "simple", "uniform"] = "square"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Jaccard(Loss):
    """Soft Jaccard loss: one minus intersection over union.

    Attributes:
        smooth_nr: added to the intersection, in pixels.
        smooth_dr: added to the union, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "jaccard"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class LogCoshDice(Loss):
    """Logarithm of the hyperbolic cosine of the Dice loss of each class.

    Attributes:
        smooth_nr: added to the numerator of the Dice coefficient, in pixels.
        smooth_dr: added to its denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "log_cosh_dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class LogDice(Loss):
    """Negative logarithm of the soft Dice coefficient of each class.

    Attributes:
        smooth_nr: added to the numerator, in pixels.
        smooth_dr: added to the denominator, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "log_dice"
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class Matthews(Loss):
    """One minus Matthews' correlation coefficient of prediction and target.

    Attributes:
        smooth_nr: taken for the sake of one signature; the coefficient has no smoothing.
        smooth_dr: likewise.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "matthews"
    smooth_nr: float = 0.0
    smooth_dr: float = 0.0
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


@dataclass(frozen=True, kw_only=True)
class SensitivitySpecificity(Loss):
    """Mean squared error inside the target and outside of it, weighed against each other.

    Attributes:
        sensitivity_weight: weight r of the error inside.
        smooth_nr: added to both numerators, in pixels.
        smooth_dr: added to both denominators, in pixels.
        classes: classes that count: those present in the sample's target, all, or a list of ids.
            Null: present for multiclass (all where none is present), all for binary and multilabel.
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "sensitivity_specificity"
    sensitivity_weight: float = 0.05
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
    average: Literal["macro", "micro"] = "macro"


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
        include_background: false drops class 0 after the activation.
        class_weights: one weight per channel for the average over classes, renormalised over the
            classes that count.
        average: average the classes' losses, or sum their statistics first.
    """

    name: ClassVar[str] = "tversky"
    fp_weight: float = 0.3
    fn_weight: float = 0.7
    smooth_nr: float = 1e-05
    smooth_dr: float = 1e-05
    classes: Literal["present", "all"] | Sequence[int] | None = None
    include_background: bool = True
    class_weights: Sequence[float] | None = None
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
