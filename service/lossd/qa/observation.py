"""What one look at a prediction and its mask leaves: three bytes a pixel, a histogram, scores.

Per pixel that counts, with `p` the predicted probabilities and `g` the given class,

    loss       min(-ln p_g, 16)                         nats
    level      min(255, round(16 · loss))               a byte
    predicted  argmax p, the first of equal ones        a byte, two beyond 256 classes
    margin     ceil(255 · (p_predicted - p_g) - 0.5)    a byte

The logits are read here and nowhere else in QA. Every number of a pixel depends on that pixel
alone, and sums are made in float64 in the order of the pixels: an image's bits do not depend on its
company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossd.core.checkpoint import Checkpoint, go_on
from lossd.core.in_place import SCORES, InPlace, Picture, Seen
from lossd.core.job import ObservationJob, ObservationPart, Outcome
from lossd.qa.levels import worst_count
from lossd_client.errors import FieldError, InvalidInputError, LossdError, NonFiniteLogitsError
from lossd_client.qa_wire import (
    BYTE_CLASSES,
    HISTOGRAM,
    LABELS_LOSS_NATS,
    LEVELS,
    LEVELS_PER_NAT,
    LOSS_CAP_NATS,
    LOSS_LEVELS,
    MARGIN,
    MARGIN_STEPS,
    PREDICTED,
)
from lossd_client.wire import numbered

if TYPE_CHECKING:
    from lossd_client.qa_wire import PredictionKind
    from lossd_client.wire import Array

BOUNDARY_PIXELS = 3
"""How far from a change of label its boundary reaches; the pixel beside it is at 1."""
PROBABILITY_SLACK = 1e-3
"""How far outside [0, 1] a probability may lie by rounding."""
OBSERVED = "observed"
"""Name of an image's scores among a job's tensors, `[4]` float64 in the order of
`OBSERVED_SCORES`."""

_BLOCK_PIXELS = 1 << 15
_LOT_PIXELS = 1 << 17
"""Of a lot, for each thread: about a millisecond of eleven classes."""
_BOTH = 2  # classes of one channel


class BadPixelError(Exception):
    """A pixel that counts has a prediction that is none."""


@torch.no_grad()
def observe(
    prediction: Tensor, labels: Tensor, size: tuple[int, int], kind: PredictionKind, classes: int
) -> Seen:
    """Looks at the pixels of one image.

    Args:
        prediction: `[C, P]` floats, `[1, P]` for two classes; labels `[1, P]` of any integer dtype.
        labels: `[P]` integers on the same device, -1 where a pixel does not count.
        size: height and width.
        kind: what `prediction` holds.
        classes: how many there are.

    Returns:
        Arrays in the host's memory.

    Raises:
        BadPixelError: where a pixel counts, a loss is not finite or a probability is none.
    """
    pixels = labels.shape[0]
    step = _BLOCK_PIXELS * torch.get_num_threads() if labels.device.type == "cpu" else pixels
    blocks = [
        _observe_block(
            prediction[..., first : first + step], labels[first : first + step], kind, classes
        )
        for first in range(0, pixels, step)
    ]
    loss, levels, predicted, margin = (
        torch.cat(tensors).cpu().numpy() for tensors in zip(*blocks, strict=True)
    )
    given = labels.cpu().numpy()
    return Seen(
        *(loss, levels, predicted, margin),
        counts=histogram(given, levels, classes),
        sums=_sums(loss, given.reshape(size)),
    )


def _observe_block(
    prediction: Tensor, labels: Tensor, kind: PredictionKind, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    valid = labels >= 0
    given = labels.clamp(min=0).long()
    if kind == "labels":
        # A pixel that does not count may hold a label that is no class.
        predicted = torch.where(valid, prediction.reshape(-1).long(), 0)
        wrong = predicted != given
        loss, margin = wrong * LABELS_LOSS_NATS, wrong.float()
    elif kind == "logits":
        loss, predicted, margin = _of_logits(prediction, given)
    else:
        loss, predicted, margin = _of_probabilities(prediction, given, valid)
    if not bool(torch.isfinite(torch.where(valid, loss, 0.0)).all()):
        raise BadPixelError
    loss = torch.where(valid, loss, 0.0).clamp(max=LOSS_CAP_NATS).float()
    levels = (loss * LEVELS_PER_NAT).round().clamp(max=LEVELS - 1).to(torch.uint8)
    counts = valid & (predicted != given)
    # Half a step is rounded down, so that a margin of exactly a half is not more than a half.
    steps = torch.ceil(torch.where(counts, margin, 0.0) * MARGIN_STEPS - 0.5)
    dtype = torch.uint8 if classes <= BYTE_CLASSES else torch.int16
    return loss, levels, predicted.to(dtype), steps.clamp(0, MARGIN_STEPS).to(torch.uint8)


def _of_logits(logits: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, predicted class and margin of softmax, or of a sigmoid where there is one channel."""
    if logits.shape[0] == 1:
        score = _wide(logits[0])
        toward_given = torch.where(given == 1, score, -score)
        loss = torch.nn.functional.softplus(-toward_given)
        return loss, (score > 0).long(), torch.tanh(score.abs() / _BOTH)
    top, best = _top(logits)
    total = torch.zeros_like(top)
    for channel in logits:
        total += torch.exp(_wide(channel) - top)
    own = _wide(logits.gather(0, given[None])[0])
    loss = (top - own) + torch.log(total)
    return loss, best, (1.0 - torch.exp(own - top)) / total


def _of_probabilities(
    probabilities: Tensor, given: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, predicted class and margin of probabilities, or of that of class 1."""
    for channel in probabilities:
        inside = (channel >= -PROBABILITY_SLACK) & (channel <= 1 + PROBABILITY_SLACK)
        if not bool((inside | ~valid).all()):
            raise BadPixelError
    if probabilities.shape[0] == 1:
        on = _wide(probabilities[0])
        best = (on > 1 - on).long()
        own = torch.where(given == 1, on, 1 - on)
        top = torch.maximum(on, 1 - on)
    else:
        top, best = _top(probabilities)
        own = _wide(probabilities.gather(0, given[None])[0])
    own = torch.where(valid, own, 1.0)
    return -torch.log(own.clamp(math.exp(-LOSS_CAP_NATS), 1.0)), best, (top - own).clamp(0.0, 1.0)


def _top(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score of each pixel and the first class that has it, channel by channel.

    A reduction over the first axis would stride through the memory.
    """
    top = _wide(scores[0])
    best = torch.zeros_like(top, dtype=torch.int16)
    for number, channel in enumerate(scores[1:], start=1):
        wide = _wide(channel)
        best.masked_fill_(wide > top, number)
        top = torch.maximum(top, wide)  # of NaN it makes NaN, which is found in the loss
    return top, best.long()


def _wide(scores: Tensor) -> Tensor:
    """The scores in what is computed in."""
    return scores if scores.dtype == torch.float64 else scores.float()


def histogram(labels: Array, levels: Array, classes: int) -> Array:
    """Pixels that count by given class and level.

    Args:
        labels: `[P]` integers, -1 where a pixel does not count.
        levels: `[P]` uint8.
        classes: how many there are.

    Returns:
        `[C, 256]` int32.
    """
    # What does not count is class -1 and lands in a row before the others.
    cells = (labels.astype(np.int32) + 1) * LEVELS + levels
    counts = np.bincount(cells, minlength=(classes + 1) * LEVELS)
    return counts.reshape(classes + 1, LEVELS)[1:].astype(np.int32)


def boundary(labels: Array) -> Array:
    """Pixels within 3 px of a change of label, of ignored pixels too.

    The two pixels beside a change are at distance 1 of it, and distance is that of a chessboard.

    Args:
        labels: `[H, W]` integers.

    Returns:
        `[H, W]` bool.

    Example:
        >>> boundary(np.array([[0, 0, 0, 0, 1, 1]])).tolist()
        [[False, True, True, True, True, True]]
    """
    near = np.zeros(labels.shape, np.bool_)
    below = labels[1:] != labels[:-1]
    near[1:] |= below
    near[:-1] |= below
    beside = labels[:, 1:] != labels[:, :-1]
    near[:, 1:] |= beside
    near[:, :-1] |= beside
    for axis in (0, 1):
        near = _widened(near, axis)
    return near


def _widened(mask: Array, axis: int) -> Array:
    moved = np.moveaxis(mask, axis, 0)
    wide = mask.copy()
    target = np.moveaxis(wide, axis, 0)
    for step in range(1, BOUNDARY_PIXELS):
        target[step:] |= moved[:-step]
        target[:-step] |= moved[step:]
    return wide


def scores(seen: Seen) -> Array:
    """Scores of an image that need no other image.

    Args:
        seen: what is seen in it.

    Returns:
        `[4]` float64 in nats, in the order of `OBSERVED_SCORES`: 0 where no pixel counts, NaN for
        the loss at the boundary where there is none.
    """
    pixels = int(seen.counts.sum())
    if pixels == 0:
        return np.array([0.0, math.nan, 0.0, 0.0])
    total, fourth, at_boundary, beside = seen.sums.tolist()
    return np.array(
        [
            _worst_loss(seen, pixels),
            at_boundary / beside if beside else math.nan,
            total / pixels,
            (fourth / pixels) ** 0.25,
        ]
    )


def _sums(loss: Array, labels: Array) -> Array:
    """Of losses, their fourth powers, and losses at the boundary; and pixels that count there."""
    near = (boundary(labels) & (labels >= 0)).reshape(-1)
    terms = (loss, np.square(np.square(loss)), loss * near, near)
    return np.array([np.sum(term, dtype=np.float64) for term in terms])


def _worst_loss(seen: Seen, pixels: int) -> float:
    """Mean of the worst pixels' own losses; their levels only say which to look through."""
    wanted = worst_count(pixels)
    at_least = np.cumsum(seen.counts.sum(0)[::-1])[::-1]
    level = int(np.flatnonzero(at_least >= wanted)[-1])
    # Pixels that do not count are at level 0, with a loss of 0.
    candidates = seen.loss if level == 0 else seen.loss[seen.levels >= level]
    worst = np.sort(candidates)[len(candidates) - wanted :]
    return float(np.mean(worst, dtype=np.float64))


def evaluate_observation(
    job: ObservationJob,
    device: torch.device,
    in_place: InPlace | None,
    checkpoint: Checkpoint = go_on,
) -> Outcome | LossdError:
    """Outcome of a job: of each image its evidence, histogram and scores, numbered by image.

    A prediction that is none where a pixel counts is the outcome, too.

    Args:
        job: validated but for the values of its predictions.
        device: where pixels are looked at.
        in_place: what looks at logits on a processor, where there is such a thing.
        checkpoint: called before every lot of images.
    """
    tensors: dict[str, Array] = {}
    look = _look_of(job, device, in_place)
    number = 0
    for lot in _lots(job):
        checkpoint()
        for image, seen in zip(lot, look(lot), strict=True):
            if seen is None:
                return bad_pixel_error(job, image.part, image.place)
            for name, array in _written(seen, image.part.size).items():
                tensors[numbered(number, name, job.samples)] = array
            number += 1
    return Outcome(tensors, {})


class _Image(NamedTuple):
    """One image of a part."""

    part: ObservationPart
    place: int

    @property
    def prediction(self) -> Tensor:
        return self.part.prediction[self.place]

    @property
    def labels(self) -> Tensor:
        return self.part.target[self.place]


def _lots(job: ObservationJob) -> Iterator[list[_Image]]:
    """Neighbours that are looked at in one call; more would only end later."""
    most_pixels = _LOT_PIXELS * torch.get_num_threads()
    lot: list[_Image] = []
    pixels = 0
    for part in job.parts:
        for index in range(part.images):
            more = math.prod(part.size)
            if lot and pixels + more > most_pixels:
                yield lot
                lot, pixels = [], 0
            lot.append(_Image(part, index))
            pixels += more
    if lot:
        yield lot


_Look = Callable[[Sequence[_Image]], Iterable[Seen | None]]


def _look_of(job: ObservationJob, device: torch.device, in_place: InPlace | None) -> _Look:
    """What looks at a job's images, and finds None where a pixel that counts is no number.

    C++ where it takes them, else torch.
    """
    prediction = job.parts[0].prediction
    has_rows = job.kind == "logits" and prediction.shape[1] > 1 and prediction.dtype in SCORES
    if in_place is None or not has_rows:
        return lambda lot: (_seen(image, job, device) for image in lot)

    def look(lot: Sequence[_Image]) -> Iterable[Seen | None]:
        return in_place.observe(
            [Picture(image.prediction, image.labels, image.part.size) for image in lot]
        )

    return look


def _seen(image: _Image, job: ObservationJob, device: torch.device) -> Seen | None:
    prediction, labels = image.prediction.to(device), image.labels.to(device)
    try:
        return observe(prediction, labels, image.part.size, job.kind, job.classes)
    except BadPixelError:
        return None


def _written(seen: Seen, size: tuple[int, int]) -> dict[str, Array]:
    return {
        LOSS_LEVELS: seen.levels.reshape(size),
        PREDICTED: seen.predicted.reshape(size),
        MARGIN: seen.margin.reshape(size),
        HISTOGRAM: seen.counts,
        OBSERVED: scores(seen),
    }


def bad_pixel_error(job: ObservationJob, part: ObservationPart, index: int) -> LossdError:
    """Names the first value of an image that counts and is no prediction."""
    values = part.prediction[index]
    wrong = ~torch.isfinite(values)
    if job.kind == "probabilities":
        wrong |= (values < -PROBABILITY_SLACK) | (values > 1 + PROBABILITY_SLACK)
    found = (wrong & (part.target[index] >= 0)[None]).flatten().nonzero()
    if not len(found):
        return NonFiniteLogitsError(
            "logits of one pixel lie further apart than the float range; nothing can be computed"
        )
    flat = int(found[0])
    channel, pixel = divmod(flat, values.shape[1])
    where = [channel, *divmod(pixel, part.size[1])]
    value = float(values[channel, pixel])
    loc = (*part.loc, index, *where)
    if job.kind == "probabilities":
        message = f"prediction{[index, *where]} is {value}; probabilities lie in [0, 1]"
        return InvalidInputError(message, errors=[FieldError(loc, message)])
    message = f"prediction{[index, *where]} is {value}; logits that count must be finite"
    return NonFiniteLogitsError(message, errors=[FieldError(loc, message)])
