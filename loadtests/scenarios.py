"""What a load test sends, as data. A new row is a new scenario, a new mix a new entry."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, cycle
from typing import Literal

from loadtests import abuse
from loadtests.answers import WHOLE, Case, Delivery, NobodyWaits, Refused, right_answer
from loadtests.bodies import AS_FORM, AS_JSON, AS_SAFETENSORS, Encoding, Question, samples
from lossd_client.wire import JSON, SAFETENSORS

Kind = Literal["asked", "refused", "hung_up"]
Order = Literal["by_share", "in_turn"]

ORDERS: tuple[Order, ...] = ("by_share", "in_turn")
VARIANTS = 4
"""Bodies of a good scenario, each with values of its own: a mixed-up answer is a wrong one."""
_FORM = AS_FORM.content_type
_CSV = "text/csv"
_OVERSIZE = Delivery(announced_bytes=1 << 40)
_TOO_SMALL = Delivery(announced_bytes=10)
_GOLDEN = (math.sqrt(5) - 1) / 2
_HALF = Delivery(sent_share=0.5)


@dataclass(frozen=True)
class Scenario:
    """One kind of request."""

    name: str
    kind: Kind
    share: int
    """Of the good or of the abusive traffic of a mix, relative to its other scenarios."""
    content_type: str
    make: Callable[[], tuple[Case, ...]]

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """Its bodies and what must come back, made when first wanted."""
        return self.make()


def asked(name: str, share: int, encoding: Encoding, question: Question) -> Scenario:
    """A question that must be answered rightly."""

    def make() -> tuple[Case, ...]:
        drawn = [samples(question, variant) for variant in range(VARIANTS)]
        return tuple(
            Case(encoding.write(question, one), right_answer(question, one)) for one in drawn
        )

    return Scenario(name, "asked", share, encoding.content_type, make)


def refused(  # noqa: PLR0917 - columns of a table
    name: str,
    share: int,
    content_type: str,
    body: Callable[[], bytes],
    status: int,
    code: str | None,
    delivery: Delivery = WHOLE,
) -> Scenario:
    """A request that must be refused with this status and code."""

    def make() -> tuple[Case, ...]:
        return (Case(body(), Refused(status, code), delivery),)

    return Scenario(name, "refused", share, content_type, make)


def hung_up(
    name: str, share: int, content_type: str, body: Callable[[], bytes], delivery: Delivery
) -> Scenario:
    """A request whose caller goes away."""

    def make() -> tuple[Case, ...]:
        return (Case(body(), NobodyWaits(), delivery),)

    return Scenario(name, "hung_up", share, content_type, make)


_SMALL = Question(4, ((32, 32),), ("dice", "cross_entropy"))
_LARGE_4 = Question(4, ((256, 256),), ("dice", "cross_entropy", "focal"), gradient="total")
_LARGE_19 = Question(19, ((256, 256),), ("dice", "cross_entropy", "focal"), gradient="total")
_SIZES = Question(
    4, ((64, 64), (120, 200), (256, 256), (333, 217)), ("dice", "cross_entropy"), gradient="total"
)
_FILES = Question(3, ((128, 128),), ("dice", "jaccard"))

SCENARIOS: tuple[Scenario, ...] = (
    asked("small_json", 40, AS_JSON, _SMALL),
    asked("safetensors_256x256x4", 30, AS_SAFETENSORS, _LARGE_4),
    asked("safetensors_256x256x19", 5, AS_SAFETENSORS, _LARGE_19),
    asked("mixed_sizes", 15, AS_SAFETENSORS, _SIZES),
    asked("multipart", 10, AS_FORM, _FILES),
    refused("empty_body", 1, JSON, abuse.empty, 400, "malformed_body"),
    refused("malformed_json", 1, JSON, abuse.malformed_json, 400, "malformed_body"),
    refused("not_an_object", 1, JSON, abuse.not_an_object, 400, "malformed_body"),
    refused("cut_safetensors", 1, SAFETENSORS, abuse.cut_safetensors, 400, "malformed_body"),
    refused("unknown_loss", 1, JSON, abuse.unknown_loss, 404, "unknown_loss"),
    refused("wrong_content_type", 1, _CSV, abuse.good_json, 415, "unsupported_media_type"),
    refused("label_out_of_range", 1, SAFETENSORS, abuse.wild_label, 422, "label_out_of_range"),
    refused("nan_logits", 1, SAFETENSORS, abuse.nan_logits, 422, "non_finite_logits"),
    refused("png_bomb", 1, _FORM, abuse.png_bomb, 413, "too_large"),
    refused("zip_bomb", 1, _FORM, abuse.zip_bomb, 413, "too_large"),
    refused("zip_that_lies", 1, _FORM, abuse.zip_that_lies, 400, "malformed_body"),
    refused("oversize_announced", 1, SAFETENSORS, abuse.empty, 413, "too_large", _OVERSIZE),
    # the bytes beyond the announced ones are no request: the HTTP server says so and hangs up
    refused("length_too_small", 1, JSON, abuse.good_json, 400, None, _TOO_SMALL),
    hung_up("hung_up_in_the_body", 1, SAFETENSORS, abuse.good_safetensors, _HALF),
    hung_up("hung_up_before_the_answer", 1, SAFETENSORS, abuse.good_safetensors, WHOLE),
)


@dataclass(frozen=True)
class Mix:
    """Which good scenarios a load consists of, and how much abuse there is in between."""

    asked: tuple[str, ...]
    abuse_percent: float = 0.0


_EVERY_QUESTION = tuple(one.name for one in SCENARIOS if one.kind == "asked")

MIXES: dict[str, Mix] = {
    "small": Mix(("small_json",)),
    "tensors": Mix(("safetensors_256x256x4", "safetensors_256x256x19")),
    "mixed_sizes": Mix(("mixed_sizes",)),
    "everything": Mix(_EVERY_QUESTION),
    "abuse": Mix(_EVERY_QUESTION, abuse_percent=30.0),
}


def mix_of(name: str, abuse_percent: float | None) -> Mix:
    """A mix by its name, with another share of abuse if one is given."""
    mix = MIXES[name]
    return mix if abuse_percent is None else replace(mix, abuse_percent=abuse_percent)


def shares(mix: Mix) -> dict[str, float]:
    """Share of each scenario in a mix; they add up to 1."""
    good = {one.name: one.share for one in SCENARIOS if one.name in mix.asked}
    bad = {one.name: one.share for one in SCENARIOS if one.kind != "asked"}
    of_bad = mix.abuse_percent / 100
    parts = ((good, 1 - of_bad), (bad, of_bad))
    return {
        name: weight * share / sum(part.values())
        for part, weight in parts
        if weight > 0
        for name, share in part.items()
    }


def among(names: Container[str]) -> list[Scenario]:
    """The scenarios of these names, in the order of the table."""
    return [one for one in SCENARIOS if one.name in names]


def stream(by_share: Mapping[str, float], order: Order) -> Iterator[tuple[Scenario, Case]]:
    """Requests without end: each scenario by its share, or each in its turn.

    By share is a walk in steps of the golden section through the unit interval, of which every
    scenario has its part: it looks random, but any stretch of it holds each scenario in about its
    share, so that a short run does not miss a rare one by chance.
    """
    sent = among(by_share)
    cases = {one.name: cycle(one.cases) for one in sent}
    ends = list(accumulate(by_share[one.name] for one in sent))
    for count in itertools.count():
        if order == "in_turn":
            one = sent[count % len(sent)]
        else:
            one = sent[bisect.bisect(ends, count * _GOLDEN % 1 * ends[-1])]
        yield one, next(cases[one.name])
