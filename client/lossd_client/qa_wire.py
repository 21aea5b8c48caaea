"""The wire format of annotation QA: what is asked of `/v1/qa/…` and what is answered.

A data set is scored in two passes, and the service keeps nothing between them but one small table.

1. `POST /v1/qa/score` with `prediction` and `target` of each image, no context, and
   `arrays: ["histogram", "outlines", "evidence"]`. The answer has the scores of each image that
   need no other image (`OBSERVED_SCORES`), its `histogram` and `outlines`, whole numbers, and its
   evidence: 3 bytes a pixel, however many classes there are. The caller adds histograms and
   outlines up and keeps scores and evidence.
2. `PUT /v1/qa/contexts/{name}` with the sums of both. Its state is then `losses`.
3. `POST /v1/qa/score` with `context` and the evidence, the `target` and the scores of the first
   pass in place of the prediction. The answer has sub-scores, points, regions, kind and reason.
   Live, with `prediction` and `target`, the same call answers the same to the bit.
4. `PUT /v1/qa/contexts/{name}` again with the same sums and the sub-scores of all images: the
   context is `sealed`. `POST /v1/qa/suspicion` turns sub-scores into suspicions, and
   `POST /v1/qa/score` now answers `suspicion` itself.

Bodies are those of `POST /v1/evaluate`: JSON with `inputs`, a safetensors file with
`__metadata__["request"]`, or a form; several sizes are several input objects, `0/target`,
`1/target`, … in a file. The axes of an input object are

    target                 [B, H, W] or [H, W]           integer labels
    prediction, logits     [B, C, H, W] or [C, H, W]     floats; two classes also in one channel,
      or probabilities                                   that of class 1: [B, H, W] or [H, W]
    prediction, labels     [B, H, W] or [H, W]           integers
    loss_levels, margin    [B, H, W] or [H, W]           uint8
    predicted              [B, H, W] or [H, W]           uint8, int16 beyond 256 classes

and images are counted through all objects: the B of the first, then those of the second. Tensors of
an answer carry the number of their *image* if there are several: `0/histogram`, `1/histogram`, …,
and `histogram` for one; they have no sample axis. In a JSON answer each stands in its image's
document under `arrays`.

This module knows neither HTTP nor torch; service and client both import it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCORE_PATH = "/v1/qa/score"
"""POST: scores of images."""
SUSPICION_PATH = "/v1/qa/suspicion"
"""POST: suspicions of images whose sub-scores are known."""
CONTEXTS_PATH = "/v1/qa/contexts"
"""PUT, GET, DELETE below it: what a data set's images have in common."""

LINES = "application/x-ndjson"
"""Media type of an answer of `SCORE_PATH` in lines of JSON, for whoever keeps what is said and need
not read it: the fields of `ScoreAnswer` but the images, then two lines for each image, its
`ImageScores` without the regions, and its list of regions, null where none were asked for."""

CONTEXT_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What a context may be called; a name belongs to the key that gave it."""

LEVELS = 256
"""How many steps a loss level has."""
LEVELS_PER_NAT = 16
"""Levels of one nat: a level is `min(255, round(16 · loss))`."""
LOSS_CAP_NATS = 16.0
"""Losses are at most this, which is a probability of 1.1e-7."""
LABELS_LOSS_NATS = 8.0
"""Loss of a pixel whose predicted label, which says no probability, is not the given one."""
MARGIN_STEPS = 255
"""Steps of a margin in [0, 1]: a byte is `ceil(255 · margin - 0.5)`."""
BYTE_CLASSES = 256
"""Up to so many classes `predicted` is uint8, beyond int16."""
MAX_CLASSES = 32767
"""What int16 can name."""

PREDICTION = "prediction"
TARGET = "target"
LOSS_LEVELS = "loss_levels"
"""Evidence: cross entropy of each pixel, uint8, in sixteenths of a nat; 0 at ignored pixels."""
PREDICTED = "predicted"
"""Evidence: class of the largest probability of each pixel, the first of equal ones."""
MARGIN = "margin"
"""Evidence: by how much that class's probability exceeds the given one's, uint8, in 1/255."""
EVIDENCE = (LOSS_LEVELS, PREDICTED, MARGIN)
"""The tensors that stand for a prediction in a second pass."""
HISTOGRAM = "histogram"
"""`[C, 256]` pixels that count by given class and loss level; int32 of an image, int64 of a sum."""
OUTLINES = "outlines"
"""`[C, 8, 4]` int64, of each class and size, in the order of `OUTLINE_SUMS`; of an image, or a sum.
An object is of size 0 up to 63 px, and one more for each time that it has four times as many."""
OUTLINE_SIZES = 8
OUTLINE_SUMS = ("objects", "places", "chords", "squares")
"""Given objects whose outline is long enough to be judged, the places of these outlines, those of
them where the outline is straight, and `chords² // places` in 1/256, rounded down for each."""
OUTLINE_SQUARES = 256
"""Steps of one in `squares`."""
COUNTS = (HISTOGRAM, OUTLINES)
"""The tensors of whole numbers that a first pass answers and whose sums make a context."""
HEAT = "heat"
"""`[H, W]` uint8: `sqrt(loss · class-tail)` in sixteenths of a nat, with no context the level."""
SUB_SCORES_TENSOR = "sub_scores"
"""`[N, 4]` float64 in the order of `SUB_SCORES`; NaN in `boundary_loss` and `straightness` where
there is none. Without the last column there is no straightness."""

OBSERVED_SCORES = ("worst_loss", "boundary_loss", "mean_loss", "l4_loss")
"""Scores that need no other image, in nats; fields of `ObservedScores`."""
SUB_SCORES = ("worst_loss", "class_tail", "boundary_loss", "straightness")
"""What suspicion is made of; fields of `SubScores`."""

PredictionKind = Literal["logits", "probabilities", "labels"]
ErrorKind = Literal["missing", "extra", "swapped", "shifted", "dilated", "eroded", "coarse"]
"""What probably went wrong: an object was not annotated; annotated though there is none; annotated
as another class; at another place; too large; too small; with too few corners."""
ERROR_KINDS: tuple[ErrorKind, ...] = (
    *("missing", "extra", "swapped", "shifted", "dilated", "eroded", "coarse"),
)
AskedArray = Literal["histogram", "outlines", "evidence", "heat"]
ContextState = Literal["losses", "sealed"]
"""`losses`: class tails can be computed. `sealed`: suspicions too."""

ContextName = Annotated[str, Field(pattern=CONTEXT_NAME_PATTERN)]
ClassName = Annotated[str, Field(max_length=256)]
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answered(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ObservedScores(BaseModel):
    """Scores of one image that need no other, in nats, over the pixels that count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worst_loss: Nats
    """Mean cross entropy of the worst 0.3 % of the pixels, at least one."""
    boundary_loss: Nats | None
    """Mean cross entropy within 3 px of a change of label; None where there is none."""
    mean_loss: Nats
    """Mean cross entropy."""
    l4_loss: Nats
    """Fourth root of the mean fourth power of the cross entropy."""


class SubScores(BaseModel):
    """The numbers that suspicion is made of; losses in nats."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worst_loss: Nats
    class_tail: Nats
    """Mean of the largest 0.3 % of the class-tails: how rare so large a loss is in the class."""
    boundary_loss: Nats | None
    straightness: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """By how many standard deviations the outline of an object is straighter than those of its
    class and size in the data set, at most; None without an outline long enough, or a context's
    outlines."""


class ImageNote(_Asked):
    """What a request says of one image."""

    name: Annotated[str, Field(max_length=1024)] | None = None
    """Repeated in the answer."""
    scores: ObservedScores | None = None
    """What the first pass answered; needed with evidence."""


class ScoreRequest(_Asked):
    """Everything a request to `/v1/qa/score` says besides its tensors."""

    prediction_kind: PredictionKind = "logits"
    """What `prediction` holds."""
    ignore_index: int | None = None
    """Label of pixels that do not count."""
    class_names: Annotated[list[ClassName], Field(min_length=2, max_length=MAX_CLASSES)] | None = (
        None
    )
    """Names of the classes, for reasons and answers; as many as there are classes."""
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)] | None = None
    """How many classes there are, where neither the prediction, names nor a context say so."""
    context: ContextName | None = None
    """The caller's context that the images are judged in."""
    detail: Literal["scores", "full"] = "full"
    """`scores`: nothing but scores, and suspicion in a context. `full`: also points, regions, kind,
    reason and classes."""
    arrays: Annotated[list[AskedArray], Field(max_length=4)] = []
    """Tensors that the answer is to have: `histogram`, `outlines`, `heat`, and for `evidence` all
    three."""
    disputed_margin: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """A pixel is disputed where the class predicted is not the given one and leads by more."""
    max_points: Annotated[int, Field(ge=0, le=100)] = 5
    """Most points of an image."""
    max_regions: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Most regions of an image; those of the largest scores are answered."""
    images: list[ImageNote] | None = None
    """One note for each image, in order."""
    timeout_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The request's deadline in milliseconds."""

    @field_validator("arrays", "class_names", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """Names between commas, as a field of a form has them."""
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip()]
        return value

    @model_validator(mode="after")
    def _one_number_of_classes(self) -> ScoreRequest:
        if self.class_names is not None and self.classes not in (None, len(self.class_names)):
            msg = f"classes is {self.classes}, class_names has {len(self.class_names)}"
            raise ValueError(msg)
        return self


class SuspicionRequest(_Asked):
    """What a request to `/v1/qa/suspicion` says; its one tensor is `sub_scores` `[N, 4]`."""

    context: ContextName
    """A sealed context of the caller's."""


class Rle(_Answered):
    """A mask in COCO's compressed form."""

    size: tuple[int, int]
    """Height and width of the image."""
    counts: str


class Point(_Answered):
    """A place to look at."""

    x: int
    """Column."""
    y: int
    """Row."""
    score: float
    """Heat there, in nats: the 5 by 5 mean of `sqrt(loss · class-tail)`."""
    region: int | None
    """Index of the answered region that it lies in."""


class Region(_Answered):
    """Disputed pixels that touch, also by corners, and share both classes."""

    bbox: tuple[int, int, int, int]
    """Column and row of the first pixel, width, height."""
    area: int
    """Pixels."""
    given: int
    """Class of the annotation."""
    given_name: str | None
    predicted: int
    """Class of the prediction."""
    predicted_name: str | None
    probability: float
    """Mean probability of the predicted class."""
    score: float
    """Sum of the heat over the square root of the area, in nats; largest first."""
    kind: ErrorKind
    """What probably went wrong."""
    reason: str
    """The same in words."""
    rle: Rle


class Swap(_Answered):
    """What a class is most often taken for."""

    predicted: int
    predicted_name: str | None
    pixels: int
    """Disputed pixels of the class that are predicted as this."""


class ClassScores(_Answered):
    """One class of one image that is given or predicted somewhere."""

    index: int
    name: str | None
    pixels: int
    """Pixels that count and are given this class."""
    predicted_pixels: int
    """Pixels that count and are predicted as this class."""
    dice: float
    """Dice coefficient of annotation and prediction, in [0, 1]."""
    disputed_pixels: int
    """Pixels given this class that are disputed."""
    disputed_share: float
    """Of `pixels`; 0 where there are none."""
    swap: Swap | None
    """None where no pixel of the class is disputed."""


class ImageScores(_Answered):
    """What is answered of one image."""

    name: str | None = None
    """As the request said."""
    height: int
    width: int
    pixels: int
    """Pixels that count."""
    scores: ObservedScores
    sub_scores: SubScores | None = None
    """None without a context."""
    suspicion: float | None = None
    """Sum of the sub-scores' z-scores, in [-12, 31]; None unless the context is sealed."""
    disputed_pixels: int | None = None
    """None with detail `scores`, as all that follows."""
    kind: ErrorKind | None = None
    """That of the region of the largest score; None without regions."""
    reason: str | None = None
    """The same in words, and the class of an outline that is unusually straight."""
    points: list[Point] | None = None
    """Largest heat first, more than 10 px apart, at most one in a disputed region."""
    regions: list[Region] | None = None
    regions_found: int | None = None
    """How many there are, answered or not."""
    per_class: list[ClassScores] | None = None
    arrays: dict[str, Any] = {}
    """Tensors by name as `{"dtype", "shape", "base64"}`; in a JSON answer only."""


class ContextMark(_Answered):
    """Which context an answer was made in."""

    name: str
    state: ContextState
    digest: str
    """Equal for contexts of equal content."""


class QaTiming(_Answered):
    """Where the time of a request went, in milliseconds."""

    queue: float
    compute: float
    judge: float
    total: float


class ScoreAnswer(_Answered):
    """Everything an answer of `/v1/qa/score` says besides its tensors."""

    images: list[ImageScores]
    """In the order of the request's images."""
    context: ContextMark | None = None
    warnings: list[str]
    timing_ms: QaTiming
    device: str
    numerics_version: str
    request_id: str


class SuspicionAnswer(_Answered):
    """What `/v1/qa/suspicion` answers."""

    suspicion: list[float]
    """In the order of the rows of `sub_scores`."""
    context: ContextMark
    request_id: str


class Centre(_Answered):
    """Where a sub-score lies over the images of a data set, in its own unit."""

    median: float
    spread: float
    """1.4826 times the median absolute deviation."""


class ContextDocument(_Answered):
    """What is said of a context.

    `PUT` takes the tensors `histogram` `[C, 256]` and `outlines` `[C, 8, 4]` (integers; the latter
    may be left out) and, to seal it, `sub_scores` `[N, 4]`, as `PUT /v1/tensors` takes tensors:
    `{"tensors": {"histogram": …}}`, a safetensors file, or a form. It answers 201 if there was no
    such context, else 200, and is safe to repeat.
    """

    name: str
    state: ContextState
    digest: str
    """Equal for contexts of equal content."""
    classes: int
    pixels: int
    """Of all images."""
    images: int | None
    """How many rows of sub-scores sealed it; None unless it is sealed."""
    sub_scores: dict[str, Centre] | None
    """By the names of `SUB_SCORES`; None unless it is sealed."""
    expires_in_s: float
    """Seconds until it goes, unless it is used before."""
