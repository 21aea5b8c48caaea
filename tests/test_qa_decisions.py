"""Decisions of a review: files, what they settle, and what they say of errors that are left."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qa_page_data
from lossd_client.qa import DataError, Region, region_of
from lossd_client.qa.decisions import Decisions, decided_region, read_decisions, region_id
from lossd_client.qa.estimates import Curve, excess
from lossd_client.qa.reviews import progress_of, review_of

Json = dict[str, Any]
EARLY, LATE = "2026-01-01T10:00:00.000Z", "2026-01-02T10:00:00.000Z"
SIZE = (10, 12)


def a_region(left: int = 2, width: int = 4, predicted: str = "car", image: str = "a") -> Region:
    mask = np.zeros(SIZE, bool)
    mask[3:7, left : left + width] = True
    return region_of(
        mask, image=image, given="road", predicted=predicted, score=2.0, kind="missing", reason=""
    )


def entry(region: Region | None, verdict: str, at: str = EARLY, **more: Any) -> Json:
    told = None if region is None else decided_region(region).model_dump(mode="json")
    known = {"image": "a", "region": told, "verdict": verdict, "decided_at": at}
    return {**known, "suspicion": 3.0, "labels": "one", **more}


def written(path: Path, *entries: Json, **head: Any) -> Path:
    document = {"format": "lossd-qa-decisions", "version": 1, "decisions": list(entries), **head}
    path.write_text(json.dumps(document))
    return path


def verdicts(decisions: Decisions, *regions: Region) -> list[str | None]:
    found = decisions.of_regions("a", regions)
    return [None if each is None else each.verdict for each in found]


def test_the_later_decision_counts_whatever_the_order(tmp_path: Path) -> None:
    early = written(tmp_path / "early.json", entry(a_region(), "confirmed"))
    late = written(tmp_path / "late.json", entry(a_region(), "rejected", LATE))
    for paths in ([early, late], [late, early]):
        decisions = read_decisions(paths)
        assert verdicts(decisions, a_region()) == ["rejected"]
        (conflict,) = decisions.conflicts
        assert str(conflict) == (
            f"{early}: a at column 2, row 3, road is confirmed here and rejected in {late}, "
            "which counts, because it was decided later"
        )
    assert read_decisions([early, early]).conflicts == ()


def test_of_two_of_one_time_that_of_the_last_file_counts(tmp_path: Path) -> None:
    first = written(tmp_path / "first.json", entry(None, "confirmed"))
    second = written(tmp_path / "second.json", entry(None, "ambiguous"))
    decisions = read_decisions([first, second])
    whole = decisions.of_image("a", "one")
    assert whole is not None
    assert whole.verdict == "ambiguous"
    assert "as a whole" in str(decisions.conflicts[0])


def test_what_was_withdrawn_is_not_decided(tmp_path: Path) -> None:
    made = written(tmp_path / "made.json", entry(a_region(), "confirmed"))
    withdrawn = written(tmp_path / "withdrawn.json", entry(a_region(), "withdrawn", LATE))
    decisions = read_decisions([withdrawn, made])
    assert len(decisions) == 0
    assert decisions.conflicts == ()


def test_a_region_is_found_again_by_pixels_and_classes(tmp_path: Path) -> None:
    decisions = read_decisions([written(tmp_path / "a.json", entry(a_region(2, 4), "rejected"))])
    # Of columns 2 to 5: 3 to 6 shares 3 of 5 columns, 4 to 7 shares 2 of 6.
    again, near, far, other = a_region(), a_region(3), a_region(4), a_region(2, 4, "tree")
    assert verdicts(decisions, again) == ["rejected"]
    assert verdicts(decisions, near) == ["rejected"]
    assert verdicts(decisions, far, other) == [None, None]
    assert decisions.of_regions("b", [again]) == [None]


def test_a_whole_image_is_settled_while_its_mask_is_the_same(tmp_path: Path) -> None:
    decisions = read_decisions([written(tmp_path / "a.json", entry(None, "rejected"))])
    assert decisions.of_image("a", "one") is not None
    assert decisions.of_image("a", "two") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"decisions": [entry(None, "maybe")]}, "decisions.0.verdict"),
        ({"decisions": [entry(None, "confirmed", "yesterday")]}, "decisions.0.decided_at"),
        ({"decisions": [entry(None, "confirmed", suspicion="NaN")]}, "decisions.0.suspicion"),
    ],
)
def test_what_is_no_file_of_decisions_is_told(changes: Json, told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "wrong.json", **changes)
    with pytest.raises(DataError, match=f"wrong.json.*{told}"):
        read_decisions([path])


@pytest.mark.parametrize("changes", [{"counts": "1"}, {"size": [0, 5]}, {"size": [1 << 20] * 2}])
def test_counts_that_do_not_fill_the_image_are_told(changes: Json, tmp_path: Path) -> None:
    broken = entry(a_region(), "confirmed")
    broken["region"].update(changes)
    with pytest.raises(DataError, match=r"decisions\.0\.region"):
        read_decisions([written(tmp_path / "a.json", broken)])


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_decisions([tmp_path / "nowhere.json"])


def test_names_of_regions_differ_with_classes_pixels_and_size() -> None:
    names = {region_id(each) for each in (a_region(), a_region(3), a_region(predicted="tree"))}
    assert len(names) == 3
    assert region_id(a_region(image="b")) == region_id(a_region())


def test_the_verdict_of_an_image(tmp_path: Path) -> None:
    page = qa_page_data.write(tmp_path, 4)
    image = page.ranking[0]
    regions = page.regions[image.name]
    labels = {"image": image.name, "labels": image.item.labels_key}

    def review(*entries: Json) -> tuple[str | None, bool, int]:
        path = written(tmp_path / "a.json", *({**each, **labels} for each in entries))
        found = review_of(image, regions, read_decisions([path]))
        return found.verdict, found.is_settled, len(found.open_regions)

    assert review() == (None, False, 3)
    assert review(entry(regions[0], "rejected")) == (None, False, 2)
    assert review(entry(regions[0], "confirmed")) == ("confirmed", False, 2)
    every = [entry(each, "rejected") for each in regions]
    assert review(*every) == ("rejected", True, 0)
    assert review(*every[:2], entry(regions[2], "ambiguous")) == ("ambiguous", True, 0)
    assert review(entry(None, "rejected")) == ("rejected", True, 0)
    assert review(entry(None, "rejected"), entry(regions[1], "confirmed"))[0] == "confirmed"


def test_progress_counts_images_and_what_was_corrected(tmp_path: Path) -> None:
    page = qa_page_data.write(tmp_path, 20)
    entries = []
    for place, image in enumerate(page.ranking[:12]):
        about: Json = {"image": image.name, "labels": image.item.labels_key}
        about["suspicion"] = image.suspicion
        verdict = "confirmed" if place % 2 else "rejected"
        regions = page.regions[image.name]
        if place % 2 and regions:
            entries.append({**entry(regions[0], verdict), **about})
        else:
            entries.append({**entry(None, verdict), **about})
    # The mask of this one was corrected: its region is gone, and its labels are others.
    gone = a_region(image="street-0019")
    entries.append({**entry(gone, "confirmed"), "image": "street-0019", "suspicion": 8.0})
    decisions = read_decisions([written(tmp_path / "a.json", *entries)])
    reviews = [
        (image, review_of(image, page.regions[image.name], decisions)) for image in page.ranking
    ]
    progress = progress_of(reviews, page.ranking, decisions)
    assert (progress.wrong, progress.right, progress.ambiguous) == (7, 6, 0)
    assert progress.precision == pytest.approx(7 / 13)
    assert (progress.unchanged, progress.changed) == (6, 1)
    assert progress.open_images == 8
    assert progress.left is not None
    assert 0 <= progress.left.low <= progress.left.count <= progress.left.high <= 8


def test_few_decisions_make_no_estimate(tmp_path: Path) -> None:
    page = qa_page_data.write(tmp_path, 12)
    entries = [entry(None, "confirmed", image=image.name) for image in page.ranking[:9]]
    decisions = read_decisions([written(tmp_path / "a.json", *entries)])
    progress = progress_of([], page.ranking, decisions)
    assert progress.left is None
    assert progress.precision == 1.0


def test_excess_by_hand() -> None:
    # The median is 1. Mirrored at it, 9, 6, 1, 0, -2 are -7, -4, 1, 2, 4; of the five, none, none,
    # three, four and four are at most that.
    assert excess([9.0, 6.0, 1.0, 0.0, -2.0]) == [1, 2, 2, 2, 2]
    assert excess([]) == []
    assert excess([3.0]) == [0]


@settings(max_examples=50)
@given(st.lists(st.floats(-12, 31), min_size=1, max_size=40))
def test_excess_grows_and_is_at_most_the_number(values: list[float]) -> None:
    found = excess(sorted(values, reverse=True))
    assert found == sorted(found)
    assert all(0 <= number <= place for place, number in enumerate(found, start=1))


def test_a_curve_through_nothing_is_the_prior() -> None:
    # Median 0 and MAD 1: z is the suspicion over 1.4826.
    curve = Curve([2.0, 1.0, 0.0, -1.0, -2.0], [])
    wanted = 1 / (1 + math.exp(-3.0 / 1.4826))
    assert curve.wrong_of([3.0]).count == pytest.approx(wanted)
    assert curve.wrong_of([0.0]).count == pytest.approx(0.5)


def test_a_curve_follows_many_decisions() -> None:
    random = np.random.default_rng(0)
    suspicions = random.normal(0, 2, 4000)
    chance = 1 / (1 + np.exp(-(1.2 * suspicions - 2)))
    wrong = random.random(4000) < chance
    decided = list(zip(suspicions[:3000].tolist(), wrong[:3000].tolist(), strict=True))
    estimate = Curve(suspicions.tolist(), decided).wrong_of(suspicions[3000:].tolist())
    assert estimate.low < wrong[3000:].sum() < estimate.high
    assert estimate.high - estimate.low < 60


@settings(max_examples=50)
@given(
    st.lists(st.floats(-12, 31), min_size=1, max_size=30),
    st.lists(st.tuples(st.floats(-12, 31), st.booleans()), max_size=30),
)
def test_estimates_stay_within_what_there_is(
    suspicions: list[float], decided: list[tuple[float, bool]]
) -> None:
    found = Curve(suspicions, decided).wrong_of(suspicions)
    assert 0 <= found.low <= found.count <= found.high <= len(suspicions)
