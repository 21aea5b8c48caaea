"""Losses of embeddings: pairs, triplets, centers, and the pixels of instances.

Distances are true roots, whose slope at distance 0 is taken as 0. Instances belong to one sample:
each sample is taken out of its batch before anything of it is summed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lossd.losses.declare import row_loss
from lossd.losses.kinds import Input
from lossd.losses.options import NonNegative
from lossd.losses.rows import row_sum
from lossd.losses.sort import lovasz_hinge_of
from lossd.losses.sums import ratio
from lossd_client.errors import FieldError, InvalidInputError

MAX_SPATIAL_EMBEDDING_TERMS = 2**26
"""Instances times pixels of one sample; every instance sorts all pixels."""

_COLUMN_STEP = 2.0 / 2047.0
_ROW_STEP = 1.0 / 1023.0
_BANDWIDTH_SCALE = 10.0
_LARGEST_LOG_PRECISION = 170.0
_INSTANCE_WEIGHT, _BANDWIDTH_WEIGHT, _SEED_WEIGHT = 1.0, 10.0, 1.0
_FOREGROUND_WEIGHT = 10.0


def _root(squared: Tensor) -> Tensor:
    """Square root with slope 0 at 0, where the true one is infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """`[B]` from `[B, D]`."""
    return row_sum((first - second).square())


@row_loss("pair", family="embedding")
def contrastive(
    first: Tensor, second: Tensor, similar: Tensor, *, margin: NonNegative = 1.0
) -> Tensor:
    r"""Half the squared distance of a similar pair, or half the squared lack of it of any other.

    Formula:
        \begin{cases} \frac12 D^2 & \text{similar} \\ \frac12 \max(0, m - D)^2 & \text{otherwise}
        \end{cases}, \quad D = \lVert x_1 - x_2 \rVert

    Use:
        For embeddings learned from pairs that are known to be the same thing or different things.
        Distances of different things only have to exceed the margin, in the embedding's own unit,
        so fix the scale of the embedding first. Where only comparisons are known, as in "closer to
        this than to that", take `triplet`.

    Args:
        first: `[B, D]`.
        second: `[B, D]`.
        similar: `[B]`, 1 for a similar pair, 0 for another.
        margin: distance from which a dissimilar pair costs nothing.

    Returns:
        `[B]`, at least 0, in the square of the embedding's unit; 0 for a similar pair at one point
        and for a dissimilar one at least the margin apart.

    Traps:
        - Here 1 means similar. The paper's Y is 1 for dissimilar, and code follows either.
        - The factor 1/2 and the squares are the paper's. pytorch-metric-learning squares nothing
          and averages over the pairs that cost anything.
        - A dissimilar pair at one point costs the most and has no direction to part in. The
          gradient is 0 there, where a plain square root makes NaN.
        - The margin is squared in the value: with margin 2 a coinciding pair costs 2, not 1.

    Example:
        >>> import torch
        >>> first = torch.tensor([[0.0], [0.0]], dtype=torch.float64)
        >>> contrastive(first, first + 0.5, torch.tensor([1, 0]))
        tensor([0.1250, 0.1250], dtype=torch.float64)

    References:
        Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", 2006,
        https://doi.org/10.1109/CVPR.2006.100
    """
    squared = _squared_distance(first, second)
    lack = (margin - _root(squared)).relu()
    return 0.5 * torch.where(similar == 1, squared, lack.square())


@row_loss("triplet", family="embedding")
def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: NonNegative = 0.2,
    squared: bool = True,
    normalize: bool = True,
) -> Tensor:
    r"""By how much the positive is not nearer to the anchor than the negative, with a margin.

    Formula:
        \max\left(0, \lVert a - p \rVert^2 - \lVert a - n \rVert^2 + m\right), \quad
        a, p, n \text{ of length } 1

    Use:
        For embeddings in which only the order of distances matters, such as recognition of faces
        or retrieval. It is as good as the triplets: easy ones cost 0 and teach nothing, so choose
        them with care. With known classes and few of them `center` beside a classifier is simpler.

    Args:
        anchor: `[B, D]`.
        positive: the same thing as the anchor, `[B, D]`.
        negative: another thing, `[B, D]`.
        margin: by how much the negative has to be farther, in squared distance if `squared`.
        squared: true compares squared distances, false the distances themselves.
        normalize: true scales each of the three to length 1 first; false takes them as they are.

    Returns:
        `[B]`, at least 0; 0 where the margin is kept. With normalized vectors at most 4 + margin,
        or 2 + margin if not squared. Three equal vectors cost the margin.

    Traps:
        - FaceNet's distances are squared and of normalized vectors. torch's `TripletMarginLoss`
          does neither, its margin is 1, and it adds 1e-6 to every coordinate of a difference.
        - A margin belongs to its convention: 0.2 of squared unit distances is not 0.2 of distances.
        - A vector of zeros has no direction: normalized it stays zero, with gradient 0, so that it
          is at distance 1 from every other.
        - With `squared` false a distance of 0 has gradient 0 instead of NaN.
        - With `normalize` the gradient has no part along the vector, and is larger the shorter the
          vector is.

    Example:
        >>> import torch
        >>> anchor = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> aside = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
        >>> triplet(anchor, anchor, anchor), triplet(anchor, aside, anchor)
        (tensor([0.2000], dtype=torch.float64), tensor([2.2000], dtype=torch.float64))

    References:
        Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015,
        https://arxiv.org/abs/1503.03832
    """
    if normalize:
        anchor, positive, negative = _unit(anchor), _unit(positive), _unit(negative)
    near = _squared_distance(anchor, positive)
    far = _squared_distance(anchor, negative)
    if not squared:
        near, far = _root(near), _root(far)
    return (near - far + margin).relu()


def _unit(vectors: Tensor) -> Tensor:
    return ratio(vectors, _root(row_sum(vectors.square()))[:, None])


@row_loss("center", family="embedding")
def center(embeddings: Tensor, target: Tensor, centers: Tensor) -> Tensor:
    r"""Half the squared distance of each embedding from the center of its class.

    Formula:
        \frac12 \lVert x - c_y \rVert^2

    Use:
        Beside a classifier's cross entropy, with a small weight (the paper's is 0.003), to make
        classes compact. Alone it is useless: all embeddings and centers at one point cost 0. Send
        the centers along, and move them with their gradient, or by a running mean of your own.

    Args:
        embeddings: `[B, D]`.
        target: class of each, `[B]`, in [0, K - 1].
        centers: `[K, D]`, shared by the samples.

    Returns:
        `[B]`, at least 0, in the square of the embedding's unit; 0 on the center.

    Traps:
        - The paper adds up over the batch; here there is one value per sample. A common
          implementation leaves out the 1/2 and takes the mean over the batch, so that its weight
          means something else. It also adds 1e-12 per foreign class and sample.
        - The gradient with respect to the centers is summed over the samples of the request. A
          class that no sample has gets 0.
        - The paper moves centers by the mean residual with 1 added to the count, at a rate of its
          own. That is no gradient of anything, and it is the caller's to do.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> centers = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> center(embeddings, torch.tensor([0, 1]), centers)
        tensor([2.5000, 6.5000], dtype=torch.float64)

    References:
        Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", 2016,
        https://doi.org/10.1007/978-3-319-46478-7_31
    """
    return 0.5 * _squared_distance(embeddings, centers[target])


@row_loss("instance", family="embedding")
def hinge_embedding(
    embeddings: Tensor, target: Tensor, *, delta: NonNegative = 0.5, squared: bool = False
) -> Tensor:
    r"""By how much the pixels of each instance lie farther than delta from their mean embedding.

    Formula:
        \sum_k \sum_{i \in S_k} \max(0, \lVert e_i - C_k \rVert - \delta), \quad
        C_k = \frac{1}{|S_k|} \sum_{i \in S_k} e_i

    Use:
        The pull of instance segmentation by clustering: pixels of one instance gather within delta
        of their center. Nothing here pushes instances apart, so it needs a partner that does, or
        embeddings that start from pixel coordinates. `spatial_embedding` learns delta as well.

    Args:
        embeddings: `[B, D, *S]`, one vector of D numbers per pixel.
        target: instance of each pixel, `[B, *S]`; 0 is background and costs nothing.
        delta: distance from the center within which a pixel costs nothing.
        squared: true squares what exceeds delta.

    Returns:
        `[B]`, at least 0; 0 for a sample without instances.

    Traps:
        - It is a sum over instances and pixels, as in the paper, and grows with the image. Divide
          by the pixels where that is in the way.
        - e is the pixel's embedding. A text in circulation calls it the position of the pixel; it
          is position plus offset, if the network works that way.
        - The center is a function of the embeddings and is differentiated: a pixel moves its own
          center.
        - The discriminative loss of De Brabandere et al. has the square, a mean per instance, and
          two further terms that push centers apart and hold them near 0.
        - A pixel exactly on its center has gradient 0, also where delta is 0.

    Example:
        >>> import torch
        >>> embeddings = torch.tensor([[[-3.0, 3.0, 9.0]]], dtype=torch.float64)
        >>> hinge_embedding(embeddings, torch.tensor([[7, 7, 0]]), delta=1.0)
        tensor([4.], dtype=torch.float64)

    References:
        Neven et al., "Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering
        Bandwidth", 2019, https://arxiv.org/abs/1906.11109
    """
    samples = zip(embeddings.unbind(0), target.unbind(0), strict=True)
    beyond = [(_center_distance(*sample) - delta).relu() for sample in samples]
    return torch.stack([(one.square() if squared else one).sum() for one in beyond])


def _center_distance(embedding: Tensor, ids: Tensor) -> Tensor:
    """Distance of each pixel of an instance from the instance's mean, `[pixels of instances]`."""
    labels = ids.flatten()
    inside = embedding.flatten(1)[:, labels != 0]
    # All instances at once: their number is up to the caller.
    _, instance, count = labels[labels != 0].unique(return_inverse=True, return_counts=True)
    place = instance.expand_as(inside)
    total = inside.new_zeros(len(inside), len(count)).scatter_add(1, place, inside)
    return _root((inside - (total / count).gather(1, place)).square().sum(0))


@row_loss(
    "instance",
    family="embedding",
    replaced=(
        # Two offsets, a logarithmic bandwidth and a seed; the coordinate grid has two axes.
        Input("embeddings", "B 4 H W", differentiable=True),
        Input("target", "B H W", "ids"),
    ),
)
def spatial_embedding(embeddings: Tensor, target: Tensor) -> Tensor:
    r"""Lovász hinge of every instance's Gaussian, plus spread of bandwidths and error of seeds.

    Formula:
        \frac{1}{K}\sum_k \left[ H(2\phi_k - 1, S_k)
        + \frac{10}{|S_k|}\sum_{i \in S_k} (s_i - \bar s_k)^2 \right]
        + \frac{1}{N}\left[ \sum_{i \notin S} q_i^2
        + 10 \sum_k \sum_{i \in S_k} (q_i - \phi_{ki})^2 \right],
        \quad \phi_{ki} = e^{-\lVert e_i - C_k \rVert^2 \exp(10\, \bar s_k)},
        \quad e_i = x_i + \tanh o_i, \quad q_i = \sigma(z_i)

    Use:
        Instance segmentation of one class in a single pass: each pixel points at its object, says
        how large the object is and how well it would do as the seed of a cluster. Take it for
        networks with exactly these outputs. For embeddings without coordinates take
        `hinge_embedding`.

    Args:
        embeddings: `[B, 4, H, W]`: offset along the width, offset along the height (both before
            tanh), logarithmic bandwidth s, seed score z (before the sigmoid).
        target: instance of each pixel, `[B, H, W]`; 0 is background.

    Returns:
        `[B]`, at least 0. Without instances only the seeds of the background count.

    Traps:
        - The grid x is absolute: columns advance by 2/2047, rows by 1/1023, made for images of 1024
          by 2048 pixels. Larger ones go on with the same steps; a crop is another position.
        - C is the mean embedding of the instance, differentiated. The published code defaults to
          the mean coordinate instead and was trained either way.
        - In the error of seeds the Gaussian is a constant: the seed learns the Gaussian, not the
          reverse. A finite difference of the value does not show this gradient.
        - exp(10 s) is a precision, not a width: larger s, smaller object. It stops growing at
          s = 17, where any Gaussian is a single point already.
        - Equal Gaussians are sorted in the order of their pixels; the gradient there is one of
          several right ones.
        - Each instance sorts all pixels. More than 2^26 pixels times instances are refused.

    Example:
        >>> import torch
        >>> blank = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
        >>> spatial_embedding(blank, torch.zeros(1, 2, 2, dtype=torch.int64))  # seeds of 1/2
        tensor([0.2500], dtype=torch.float64)

    References:
        Neven et al., "Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering
        Bandwidth", 2019, https://arxiv.org/abs/1906.11109
    """
    # Clones, so that no sample lies at an address that depends on the others.
    samples = zip(embeddings.unbind(0), target.unbind(0), strict=True)
    return torch.stack([_spatial_embedding_of(one.clone(), ids) for one, ids in samples])


def _spatial_embedding_of(channels: Tensor, ids: Tensor) -> Tensor:
    """Value `[]` of one sample `[4, H, W]`."""
    height, width = ids.shape
    columns = _COLUMN_STEP * torch.arange(width, dtype=channels.dtype, device=channels.device)
    rows = _ROW_STEP * torch.arange(height, dtype=channels.dtype, device=channels.device)
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    points = (channels[:2].tanh() + grid).flatten(1)
    bandwidth, seed = channels[2].flatten(), channels[3].sigmoid().flatten()
    labels = ids.flatten()
    instances = [label for label in labels.unique().tolist() if label != 0]
    if len(instances) * len(labels) > MAX_SPATIAL_EMBEDDING_TERMS:
        _refuse(
            "target",
            f"spatial_embedding takes at most {MAX_SPATIAL_EMBEDDING_TERMS} pixels times "
            f"instances of a sample, got {len(labels)} times {len(instances)}",
        )
    value = _SEED_WEIGHT * seed[labels == 0].square().sum() / len(labels)
    for label in instances:
        # Computed again for the gradient: otherwise every instance would keep a dozen tensors of
        # the size of the image until then.
        hinge, spread, seeds = checkpoint(
            _instance_terms,
            points,
            bandwidth,
            seed,
            labels == label,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        own = _INSTANCE_WEIGHT * hinge + _BANDWIDTH_WEIGHT * spread
        value = value + own / len(instances) + _SEED_WEIGHT * seeds / len(labels)
    return value


def _instance_terms(
    points: Tensor, bandwidth: Tensor, seed: Tensor, member: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lovász hinge of one instance's Gaussian, spread of its bandwidths, error of its seeds.

    Args:
        points: `[2, N]`, where each pixel points.
        bandwidth: `[N]`.
        seed: `[N]`, in [0, 1].
        member: `[N]` bool, at least one true.
    """
    center_point = points[:, member].mean(1, keepdim=True)
    own = bandwidth[member]
    mean = own.mean()
    # Points differ by 1e-16 or not at all, so beyond e^170 a Gaussian is 1 on its center and 0
    # elsewhere; a larger precision would only make its slope overflow float32.
    precision = (_BANDWIDTH_SCALE * mean).clamp_max(_LARGEST_LOG_PRECISION).exp()
    gaussian = (-precision * (points - center_point).square().sum(0)).exp()
    hinge = lovasz_hinge_of(2.0 * gaussian - 1.0, member)
    spread = (own - mean).square().mean()
    seeds = (seed[member] - gaussian[member].detach()).square().sum()
    return hinge, spread, _FOREGROUND_WEIGHT * seeds


def _refuse(name: str, message: str) -> None:
    raise InvalidInputError(message, errors=[FieldError(("inputs", name), message)])
