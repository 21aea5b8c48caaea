"""What decisions mean for the images of a ranking: which are settled, how many were wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lossd_client.qa.decisions import Decision, Decisions, Verdict
from lossd_client.qa.estimates import MIN_DECIDED, Curve, Estimate
from lossd_client.qa.export import Region
from lossd_client.qa.ranking import RankedImage


@dataclass(frozen=True)
class ImageReview:
    """Where the review of an image stands.

    Attributes:
        regions: its disputed regions, the most disputed first.
        of_regions: the decision about each; None where there is none.
        whole: the decision about all of it; None where there is none.
    """

    regions: Sequence[Region]
    of_regions: Sequence[Decision | None]
    whole: Decision | None

    @property
    def open_regions(self) -> list[Region]:
        """Regions that nobody has decided."""
        if self.whole is not None:
            return []
        pairs = zip(self.regions, self.of_regions, strict=True)
        return [region for region, decision in pairs if decision is None]

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it is left to be decided."""
        return self.whole is not None or bool(self.regions and not self.open_regions)

    @property
    def verdict(self) -> Verdict | None:
        """`confirmed` if anything of it is; else that of the whole or of all regions; else None."""
        verdicts = {each.verdict for each in (*self.of_regions, self.whole) if each is not None}
        if "confirmed" in verdicts:
            return "confirmed"
        if self.whole is not None:
            return self.whole.verdict
        if not self.is_settled:
            return None
        return "ambiguous" if "ambiguous" in verdicts else "rejected"


@dataclass(frozen=True)
class Progress:
    """How far a review is.

    Attributes:
        wrong: images of which something was confirmed.
        right: images of which everything was rejected.
        ambiguous: images that are neither.
        unchanged: confirmed regions that are as they were.
        changed: confirmed regions that are gone, or not the same any more.
        open_images: images that are not settled and not confirmed.
        left: how many of them should be wrong; None where too little is decided.
    """

    wrong: int
    right: int
    ambiguous: int
    unchanged: int
    changed: int
    open_images: int
    left: Estimate | None

    @property
    def precision(self) -> float | None:
        """Wrong images of those that were wrong or right; None where there are none."""
        decided = self.wrong + self.right
        return self.wrong / decided if decided else None


def review_of(image: RankedImage, regions: Sequence[Region], decisions: Decisions) -> ImageReview:
    """Where the review of an image stands."""
    return ImageReview(
        regions,
        decisions.of_regions(image.name, regions),
        decisions.of_image(image.name, image.item.labels_key),
    )


def progress_of(
    reviews: Iterable[tuple[RankedImage, ImageReview]],
    ranking: Sequence[RankedImage],
    decisions: Decisions,
) -> Progress:
    """How far a review is.

    Args:
        reviews: the images that decisions are about.
        ranking: all images.
        decisions: all decisions, those too about masks that have changed since.

    Returns:
        Counts and estimates. A mask counts once for each of its states that was decided.
    """
    open_states: set[tuple[str, str]] = set()
    closed: set[str] = set()
    unchanged = 0
    for image, review in reviews:
        if review.verdict is None:
            open_states.add((image.name, image.item.labels_key))
        else:
            closed.add(image.name)
        unchanged += sum(
            each is not None and each.verdict == "confirmed" for each in review.of_regions
        )
    states = _states(decisions)
    decided = {state: own for state, own in states.items() if state not in open_states}
    verdicts = {state: _verdict(own) for state, own in decided.items()}
    told = [
        (max(each.suspicion for each in decided[state]), verdict == "confirmed")
        for state, verdict in sorted(verdicts.items())
        if verdict != "ambiguous"
    ]
    suspicions = [image.suspicion for image in ranking]
    left = [image.suspicion for image in ranking if image.name not in closed]
    confirmed = sum(each.verdict == "confirmed" and each.region is not None for each in decisions)
    counts = list(verdicts.values())
    return Progress(
        wrong=counts.count("confirmed"),
        right=counts.count("rejected"),
        ambiguous=counts.count("ambiguous"),
        unchanged=unchanged,
        changed=confirmed - unchanged,
        open_images=len(left),
        left=Curve(suspicions, told).wrong_of(left) if len(told) >= MIN_DECIDED else None,
    )


def _states(decisions: Decisions) -> dict[tuple[str, str], list[Decision]]:
    states: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        states.setdefault((decision.image, decision.labels), []).append(decision)
    return states


def _verdict(own: Sequence[Decision]) -> Verdict:
    verdicts = {decision.verdict for decision in own}
    if "confirmed" in verdicts:
        return "confirmed"
    whole = [decision.verdict for decision in own if decision.region is None]
    if whole:
        return whole[0]
    return "ambiguous" if "ambiguous" in verdicts else "rejected"
