"""Losses of boxes, values and embeddings once more: one sample, scalar by scalar."""

import math
from typing import Any

import torch
from torch import Tensor

from oracles.whole import RowOracle

Corners = tuple[Tensor, Tensor, Tensor, Tensor]


def corners(box: Tensor, layout: str) -> Corners:
    """Left, top, right, bottom; an axis that runs backwards is a point at its middle."""
    a, b, c, d = box.unbind()
    if layout == "xywh":
        c, d = a + c, b + d
    if layout == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if c < a:
        a = c = (a + c) / 2
    if d < b:
        b = d = (b + d) / 2
    return a, b, c, d


def area(box: Corners) -> Tensor:
    return (box[2] - box[0]) * (box[3] - box[1])


class Pair:
    """A prediction and its target as corners, with what the four distance losses are made of."""

    def __init__(self, inputs: dict[str, Tensor], params: dict[str, Any]) -> None:
        layout = params.get("format", "xyxy")
        self.one = one = corners(inputs["prediction"], layout)
        self.other = other = corners(inputs["target"], layout)
        self.identical = all(bool(a == b) for a, b in zip(one, other, strict=True))
        self.width = max(one[2], other[2]) - min(one[0], other[0])
        self.height = max(one[3], other[3]) - min(one[1], other[1])

    @property
    def union(self) -> Tensor:
        return area(self.one) + area(self.other) - self.overlap

    @property
    def overlap(self) -> Tensor:
        width = min(self.one[2], self.other[2]) - max(self.one[0], self.other[0])
        height = min(self.one[3], self.other[3]) - max(self.one[1], self.other[1])
        return width * height if width > 0 and height > 0 else 0.0 * width

    @property
    def iou(self) -> Tensor:
        if self.union == 0:
            return torch.tensor(float(self.identical), dtype=torch.float64)
        return self.overlap / self.union

    @property
    def distance(self) -> Tensor:
        across = (self.one[0] + self.one[2]) / 2 - (self.other[0] + self.other[2]) / 2
        down = (self.one[1] + self.one[3]) / 2 - (self.other[1] + self.other[3]) / 2
        diagonal = self.width**2 + self.height**2
        return (across**2 + down**2) / diagonal if diagonal > 0 else 0.0 * across


def iou_box(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    iou = Pair(inputs, params).iou
    form = params.get("form", "linear")
    if form == "log":
        return -torch.log(iou) if iou > 1e-6 else 0.0 * iou + 6.0 * math.log(10.0)
    return 1 - iou**2 if form == "squared" else 1 - iou


def giou(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    pair = Pair(inputs, params)
    hull = pair.width * pair.height
    return 1 - pair.iou + ((hull - pair.union) / hull if hull > 0 else 0.0)


def diou(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    pair = Pair(inputs, params)
    return 1 - pair.iou + pair.distance


def ciou(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    pair = Pair(inputs, params)
    one, other = (torch.atan2(box[2] - box[0], box[3] - box[1]) for box in (pair.one, pair.other))
    shape = (2 / math.pi * (one - other)) ** 2
    if not shape > 0 or (params.get("alpha_gate", False) and pair.iou <= 0.5):
        return diou(inputs, params)
    alpha = (shape / (1 - pair.iou + shape)).detach()
    return diou(inputs, params) + alpha * shape


def eiou(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    pair = Pair(inputs, params)
    value = diou(inputs, params)
    for low, side in ((0, pair.width), (1, pair.height)):
        sides = [box[low + 2] - box[low] for box in (pair.one, pair.other)]
        if side > 0:
            value = value + ((sides[0] - sides[1]) / side) ** 2
    return value


def _errors(inputs: dict[str, Tensor]) -> list[Tensor]:
    return list((inputs["prediction"] - inputs["target"]).reshape(-1).unbind())


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


def l1(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    del params
    return _mean([error if error >= 0 else -error for error in _errors(inputs)])


def l2(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    del params
    return _mean([error * error for error in _errors(inputs)])


def smooth_l1(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    beta = params.get("beta", 1.0)
    return _mean(
        [
            error**2 / (2 * beta) if abs(error) < beta else abs(error) - beta / 2
            for error in _errors(inputs)
        ]
    )


def huber(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    delta = params.get("delta", 1.0)
    return _mean(
        [
            error**2 / 2 if abs(error) <= delta else delta * abs(error) - delta**2 / 2
            for error in _errors(inputs)
        ]
    )


def _length(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector) if vector.any() else 0.0 * vector.sum()


def contrastive(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    distance = _length(inputs["first"] - inputs["second"])
    if int(inputs["similar"]) == 1:
        return distance**2 / 2
    lack = params.get("margin", 1.0) - distance
    return lack**2 / 2 if lack > 0 else 0.0 * distance


def triplet(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    anchor, positive, negative = (inputs[name] for name in ("anchor", "positive", "negative"))
    if params.get("normalize", True):
        anchor, positive, negative = (
            vector / _length(vector) if vector.any() else 0.0 * vector
            for vector in (anchor, positive, negative)
        )
    power = 2 if params.get("squared", True) else 1
    near, far = _length(anchor - positive) ** power, _length(anchor - negative) ** power
    value: Tensor = near - far + params.get("margin", 0.2)
    return value if value > 0 else 0.0 * value


def center(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    del params
    residual = inputs["embeddings"] - inputs["centers"][int(inputs["target"])]
    return 0.5 * (residual**2).sum()


def _instances(ids: Tensor) -> list[Tensor]:
    return [ids == label for label in sorted(set(ids.flatten().tolist()) - {0})]


def hinge_embedding(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    embedding, ids = inputs["embeddings"], inputs["target"]
    value = 0.0 * embedding.sum()
    for member in _instances(ids):
        pixels = embedding[:, member].T
        middle = pixels.mean(0)
        for pixel in pixels:
            beyond = _length(pixel - middle) - params.get("delta", 0.5)
            if beyond > 0:
                value = value + (beyond**2 if params.get("squared", False) else beyond)
    return value


def _lovasz_hinge(scores: Tensor, member: Tensor) -> Tensor:
    """Largest errors first: each weighs by how much Jaccard falls as its pixel turns wrong."""
    truth = member.flatten().tolist()
    errors = [
        1 - score if inside else 1 + score
        for score, inside in zip(scores.flatten().unbind(), truth, strict=True)
    ]
    order = sorted(range(len(errors)), key=lambda i: -float(errors[i].detach()))
    value, missed, invented, before = 0.0 * scores.sum(), 0, 0, 0.0
    for i in order:
        if truth[i]:
            missed += 1
        else:
            invented += 1
        lost = 1 - (sum(truth) - missed) / (sum(truth) + invented)
        if errors[i] > 0:
            value = value + errors[i] * (lost - before)
        before = lost
    return value


def spatial_embedding(inputs: dict[str, Tensor], params: dict[str, Any]) -> Tensor:
    del params
    (across, down, bandwidth, score), ids = inputs["embeddings"], inputs["target"]
    height, width = ids.shape
    x = torch.linspace(0, 2, 2048, dtype=torch.float64)[:width][None, :] + torch.tanh(across)
    y = torch.linspace(0, 1, 1024, dtype=torch.float64)[:height][:, None] + torch.tanh(down)
    seed = torch.sigmoid(score)
    seeds, pulls = (seed[ids == 0] ** 2).sum(), 0.0 * seed.sum()
    members = _instances(ids)
    for member in members:
        mean = bandwidth[member].mean()
        distance = (x - x[member].mean()) ** 2 + (y - y[member].mean()) ** 2
        gaussian = torch.exp(-distance * torch.exp(10 * mean))
        spread = ((bandwidth[member] - mean.detach()) ** 2).mean()
        pulls = pulls + _lovasz_hinge(2 * gaussian - 1, member) + 10 * spread
        seeds = seeds + 10 * ((seed - gaussian.detach())[member] ** 2).sum()
    return pulls / max(1, len(members)) + seeds / (height * width)


ORACLE: dict[str, RowOracle] = {
    "iou_box": iou_box,
    "giou": giou,
    "diou": diou,
    "ciou": ciou,
    "eiou": eiou,
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "huber": huber,
    "contrastive": contrastive,
    "triplet": triplet,
    "center": center,
    "hinge_embedding": hinge_embedding,
    "spatial_embedding": spatial_embedding,
}
