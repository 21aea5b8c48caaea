"""Losses over the distribution of labels at every pixel: cross entropy and what grew from it.

Each returns terms per label, linear in the sums, so that class weights, the normaliser, maps and
gradients are the same code for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossd.losses.declare import SIGMOID_TASKS, pixel_loss
from lossd.losses.options import Finite, Fraction, NonNegative, Problem
from lossd.losses.sums import PixelSums, Task, class_sum, ratio


@pixel_loss(aliases=("ce",))
def cross_entropy(sums: PixelSums, *, label_smoothing: Fraction = 0.0) -> Tensor:
    r"""Cross entropy between the target and the softmax (or sigmoid) of the logits.

    Formula:
        -\frac{1}{N}\sum_i \sum_c y'_{ic} \ln p_{ic}, \quad y' = (1-\varepsilon)\,y + \varepsilon/C

    Use:
        The default wherever the probabilities themselves matter: it is smallest when they are
        right, smooth everywhere, and comes with a map of every pixel's share. Because it is a mean
        over pixels, a small object hardly shows in it; weigh the classes, or add a region loss as
        `dice_ce` does.

    Args:
        sums: sums per label, `[B, G, L]`.
        label_smoothing: share of every pixel's target that is spread over all labels.

    Returns:
        `[B, G, L]`, terms in nats; the value is at least 0. For binary and multilabel
        the labels of a channel are off and on, so the value is binary cross entropy.

    Traps:
        - It takes logits. Probabilities have an input of their own; sent as logits they give a
          plausible number that is wrong.
        - `log(softmax(z))` is infinite as soon as the softmax underflows, at a margin of about 100
          in float32. Here it is log-sum-exp minus the logit, finite for every finite logit.
        - torch's mean with class weights divides by the sum of the weights, here by the valid
          pixels; `normalize: weights` is torch's.
        - Removed pixels leave the mean too. kornia's focal loss and the soft cross entropy of
          segmentation_models_pytorch divide by all pixels, so half an image ignored is half the
          value there.
        - With every pixel ignored torch answers NaN; here value 0, gradient 0 and a warning.
        - With label smoothing the minimum lies above 0, and confident logits cost more than
          doubtful ones. It spreads epsilon over all labels, the right one included.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("ce").name
        'cross_entropy'

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (smoothing),
        2015, https://arxiv.org/abs/1512.00567
    """
    return _smoothed(sums, label_smoothing)


@pixel_loss(aliases=("bce",), tasks=SIGMOID_TASKS)
def binary_cross_entropy(
    sums: PixelSums, *, pos_weight: NonNegative = 1.0, label_smoothing: Fraction = 0.0
) -> Tensor:
    r"""Binary cross entropy of every channel, from logits.

    Formula:
        -\frac{1}{N}\sum_i \left[w_+\,y'_i \ln p_i + (1-y'_i)\ln(1-p_i)\right],
        \quad y' = (1-\varepsilon)\,y + \varepsilon/2

    Use:
        For every yes-or-no question per pixel: one foreground class, or channels that may overlap.
        `pos_weight` trades precision for recall. For classes that exclude each other use
        `cross_entropy`, whose softmax makes them compete.

    Args:
        sums: sums per label (off, on) of each channel, `[B, G, 2]`.
        pos_weight: factor on the pixels that are on.
        label_smoothing: share of every pixel's target that is spread over off and on.

    Returns:
        `[B, G, 2]`, terms in nats; the value is at least 0, and ln 2 at logit 0.

    Traps:
        - Never as log(sigmoid(z)): in float32 `log(1 - sigmoid(20))` is minus infinity, where the
          answer is -20.
        - `nn.BCELoss(sigmoid(z), y)`, as in many posts, hands tensors to a constructor and raises
          an error; the function is `binary_cross_entropy_with_logits`.
        - A `pos_weight` above 1 makes misses cost more, below 1 false alarms. A published helper
          that takes beta / (1 - beta) at 0.25 gets 1/3, the opposite of what it says.
        - `pos_weight` raises the value, since the mean is over pixels; it is not one of the weights
          that `normalize` divides by.
        - Smoothing is y (1 - epsilon) + epsilon / 2, as in Keras. y (1 - epsilon) + (1 - y) epsilon
          of segmentation_models_pytorch smooths twice as much.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("bce").tasks
        ('binary', 'multilabel')

    References:
        PyTorch, BCEWithLogitsLoss (pos_weight),
        https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    terms = _smoothed(sums, label_smoothing)
    return terms * terms.new_tensor([1.0, pos_weight])


def _inverse_frequency(sums: PixelSums, *, beta: float | None = None) -> Tensor:
    """Share of the pixels that have another label; ones with `beta`, which is no such weight."""
    if beta is not None:
        return torch.ones_like(sums.count)
    pixels = class_sum(sums.count)
    return ratio(pixels - sums.count, pixels)


def _beta_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    del channels
    if options.beta is not None and task == "multiclass":
        yield "beta", "weighs the pixels that are on; multiclass has class_weights"


@pixel_loss(label_weights=_inverse_frequency, check=_beta_problems)
def weighted_cross_entropy(sums: PixelSums, *, beta: NonNegative | None = None) -> Tensor:
    r"""Cross entropy in which rare labels weigh more.

    Formula:
        -\frac{1}{N}\sum_i w_{y_i} \ln p_{i,y_i}, \quad w_c = \frac{N - N_c}{N}

    Use:
        Cross entropy for images in which a few labels cover nearly everything: each label weighs by
        the share of pixels that have another one. `class_weights` replaces these weights by fixed
        ones, which is better when frequencies of the whole data set are known; `beta` is the binary
        form.

    Args:
        sums: sums per label, `[B, G, L]`.
        beta: binary and multilabel: weight of pixels that are on, the others weigh 1. Null: the
            weights of the formula, per sample (and channel).

    Returns:
        `[B, G, L]`, terms in nats; the value is at least 0. A sample of one label only
        has weight 0 and costs 0.

    Traps:
        - The weights are those of each sample. Of a whole batch they would be others, and samples
          would depend on their company.
        - It divides by the valid pixels; torch divides by the sum of the weights, which with two
          labels at least doubles the value. `normalize: weights` does that.
        - A sample of one label has weight 0 and costs 0, whatever was predicted; with `normalize:
          weights` that is 0/0 and answered with 0 and a warning.
        - With two labels and no `beta` it is `balanced_cross_entropy`.
        - A `beta` above 1 makes misses cost more, below 1 false alarms.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("weighted_cross_entropy").family
        'distribution'

    References:
        Jadon, "A survey of loss functions for semantic segmentation", 2020,
        https://arxiv.org/abs/2006.14822
    """
    if beta is None:
        return sums.cross_entropy
    return sums.cross_entropy * sums.cross_entropy.new_tensor([1.0, beta])


@pixel_loss(tasks=SIGMOID_TASKS)
def balanced_cross_entropy(sums: PixelSums) -> Tensor:
    r"""Binary cross entropy in which both labels weigh the same in total.

    Formula:
        -\frac{1}{N}\sum_i \left[\beta\,y_i \ln p_i + (1-\beta)(1-y_i)\ln(1-p_i)\right],
        \quad \beta = 1 - \frac{1}{N}\sum_i y_i

    Use:
        For edges and thin structures, where a few positive pixels stand against a whole image: both
        labels weigh the same in total, image by image. It invites false alarms, because each of the
        many negative pixels is cheap. Not for data with empty masks.

    Args:
        sums: sums per label (off, on) of each channel, `[B, G, 2]`.

    Returns:
        `[B, G, 2]`, terms in nats; the value is at least 0, and 0 where all pixels of
        a sample have one label.

    Traps:
        - beta is one number per image, one minus the mean of the target, although some texts write
          it per pixel.
        - An image without positive pixels has beta 1: it costs 0 and has no gradient, so false
          alarms on empty images are free.
        - At equal shares it is half of binary cross entropy, since both weights are 1/2.
        - mmsegmentation's `BoundaryLoss` is a balanced cross entropy like this one, and not the
          `boundary` loss of Kervadec et al.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("balanced_cross_entropy").tasks
        ('binary', 'multilabel')

    References:
        Xie and Tu, "Holistically-Nested Edge Detection", 2015, https://arxiv.org/abs/1504.06375
    """
    return sums.cross_entropy * _inverse_frequency(sums)


def _alpha_problems(options: Any, task: Task, channels: int) -> Iterator[Problem]:
    alpha = options.alpha
    if task == "multiclass" and isinstance(alpha, float):
        yield "alpha", f"multiclass takes a list of {channels} weights, one per class, got {alpha}"
    if isinstance(alpha, list) and task != "multiclass":
        yield "alpha", f"{task} takes one weight, of the pixels that are on, got a list"
    elif isinstance(alpha, list) and len(alpha) != channels:
        yield "alpha", f"needs one weight per class, {channels}, got {len(alpha)}"


@pixel_loss(focusing="gamma", check=_alpha_problems)
def focal(
    sums: PixelSums,
    *,
    gamma: NonNegative = 2.0,
    alpha: Fraction | list[NonNegative] | None = None,
) -> Tensor:
    r"""Focal loss: cross entropy with the easy pixels turned down.

    Formula:
        -\frac{1}{N}\sum_i \alpha_{y_i}\,(1-p_{i,y_i})^{\gamma} \ln p_{i,y_i}

    Use:
        For many easy pixels around few hard ones: a pixel's cross entropy is turned down the more
        certain it is already, so that a sea of background does not drown the rest. It is not a
        proper score, its probabilities come out too timid; and where labels are noisy, the wrong
        ones are what it looks at.

    Args:
        sums: sums per label, `[B, G, L]`, made with this gamma.
        gamma: focusing exponent; 0 is cross entropy.
        alpha: binary and multilabel: weight of pixels that are on, 1 - alpha on the others.
            Multiclass: list of one weight per class. Null: no weights.

    Returns:
        `[B, G, L]`, terms in nats; the value is at least 0. The derivative goes
        through the focusing factor too.

    Traps:
        - The factor (1 - p)^gamma has a derivative. Code that detaches it gets the value right and
          the gradient wrong: at p = 0.9 and gamma 2 -0.0010 instead of -0.0029.
        - `alpha` belongs to the positives and 1 - alpha to the negatives. Lists `[alpha, 1 -
          alpha]` indexed by the label, as in much-copied code, swap them. Multiclass takes one
          weight per class, since a single number means different things in different libraries.
        - The paper's best pair is gamma 2 with alpha 0.25; 0.75 was best without focusing. At p =
          0.9 and gamma 2 a pixel weighs 100 times less, not 1000 times.
        - It works for any number of classes. Multiclass is the softmax form; that of
          segmentation_models_pytorch is one sigmoid per class, which is `multilabel` here.
        - The mean is over valid pixels. MONAI and kornia divide by the classes as well, RetinaNet
          by the assigned anchors, and torchvision does not reduce unless told.
        - A gamma below 1 is infinitely steep at p = 1 when computed naively, and NaN for confident
          logits; here value and gradient stay finite.
        - For soft targets it is not smallest at p = y; `quality_focal` is made for that.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("focal").focusing
        'gamma'

    References:
        Lin et al., "Focal Loss for Dense Object Detection", 2017,
        https://arxiv.org/abs/1708.02002
    """
    del gamma  # the kernels have applied it
    if alpha is None:
        return sums.focal
    weights = alpha if isinstance(alpha, list) else [1.0 - alpha, alpha]
    return sums.focal * sums.focal.new_tensor(weights)


@pixel_loss(vocabulary="rich")
def poly1_cross_entropy(sums: PixelSums, *, epsilon: Finite = 1.0) -> Tensor:
    r"""Cross entropy with its first polynomial term reweighted.

    Formula:
        -\frac{1}{N}\sum_i \ln p_{i,y_i} + \frac{\epsilon}{N}\sum_i (1 - p_{i,y_i})

    Use:
        Cross entropy with one number to tune. A positive epsilon charges pixels of middling
        confidence more, which is worth a try where plain cross entropy is the baseline; its best
        value differs from task to task. For imbalance the focal loss or weights are the more direct
        means.

    Args:
        sums: sums per label, `[B, G, L]`.
        epsilon: weight of the miss of the labelled class; 0 is cross entropy, negative values
            make confident pixels matter less.

    Returns:
        `[B, G, L]`, terms in nats; the value is at least 0 for epsilon at least -1.

    Traps:
        - Only the first term of the expansion is changed: epsilon is not the focal loss's gamma,
          and 0 is cross entropy.
        - Below -1 confident pixels would be rewarded for getting worse, and the value may be
          negative.
        - The miss is that of the labelled class, 1 - p, once. Summed over one-hot differences it
          would count twice.
        - Class weights and the weight map apply to both terms. For soft targets the second term is
          not smallest at p = y.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("poly1_cross_entropy").parameters().epsilon
        1.0

    References:
        Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
        Functions", 2022, https://arxiv.org/abs/2204.12511
    """
    return sums.cross_entropy + epsilon * sums.miss


@pixel_loss(vocabulary="rich")
def kl_divergence(sums: PixelSums) -> Tensor:
    r"""Kullback-Leibler divergence of the prediction from a soft target.

    Formula:
        \frac{1}{N}\sum_i \sum_c y_{ic} \ln\frac{y_{ic}}{p_{ic}}

    Use:
        For soft targets, such as the votes of several annotators or another model's probabilities:
        it is cross entropy less the target's own entropy, so 0 means equal however uncertain the
        target is, and samples can be compared. Its gradient is that of cross entropy. For hard
        labels the two are the same, so use `cross_entropy`.

    Args:
        sums: sums per label, `[B, G, L]`.

    Returns:
        `[B, G, L]`, terms in nats; the value is at least 0, and 0 at p = y. For labels
        it is cross entropy.

    Traps:
        - The direction is that of the target over the prediction, which charges probability that is
          missing. The other direction is another number.
        - It is summed over classes and averaged over pixels. torch's `KLDivLoss` wants
          log-probabilities first, and its `mean` divides by the classes too.
        - A target of 0 contributes 0, not 0·(-infinity); a prediction next to 0 where the target is
          not is charged without bound.
        - Multiclass targets have to sum to 1 ± 1e-3 at every valid pixel; other ones are refused,
          since the value could be negative.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("kl_divergence").family
        'distribution'

    References:
        Kullback and Leibler, "On Information and Sufficiency", 1951,
        https://doi.org/10.1214/aoms/1177729694
    """
    return sums.kullback_leibler


@pixel_loss(vocabulary="rich")
def js_divergence(sums: PixelSums) -> Tensor:
    r"""Jensen-Shannon divergence between prediction and target.

    Formula:
        \frac{1}{N}\sum_i \sum_c \frac{1}{2}\left(y_{ic} \ln\frac{y_{ic}}{m_{ic}}
        + p_{ic} \ln\frac{p_{ic}}{m_{ic}}\right), \quad m = \frac{p + y}{2}

    Use:
        A symmetric and bounded distance of two distributions, for comparing soft masks with one
        another and for labels that may be wrong: no pixel costs more than ln 2. Not to train from a
        bad start, since the gradient vanishes where a pixel is confidently wrong.

    Args:
        sums: sums per label, `[B, G, L]`.

    Returns:
        `[B, G, L]`, terms in nats; the value lies in [0, ln 2] and is 0 at p = y.

    Traps:
        - Logarithms are natural, so the bound is 0.693; with base 2 it would be 1.
        - scipy's `jensenshannon` is the square root of this.
        - At a pixel that is confidently wrong both the slope and the hope of mending it vanish,
          unlike with cross entropy.
        - For hard labels it is not cross entropy, but a bounded function of the labelled class's
          probability.

    Example:
        >>> from lossd.losses.registry import find_loss
        >>> find_loss("js_divergence").family
        'distribution'

    References:
        Lin, "Divergence Measures Based on the Shannon Entropy", 1991,
        https://doi.org/10.1109/18.61115
    """
    return sums.jensen_shannon


def _smoothed(sums: PixelSums, label_smoothing: float) -> Tensor:
    labels = sums.cross_entropy.shape[-1]
    spread = label_smoothing / labels
    return (1.0 - label_smoothing) * sums.cross_entropy + spread * sums.negative_log_likelihood
