"""What a run is made of, without a service: records, workers, progress, tables, pictures."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lossd_client._client import Client
from lossd_client._protocol import Reply
from lossd_client.errors import ServiceError
from lossd_client.qa import ClassList, DataError, LabelRules, Problem, compact, region_of
from lossd_client.qa.colours import class_colour
from lossd_client.qa.files import whole, write_problems
from lossd_client.qa.journal import Journal
from lossd_client.qa.overlays import Overlay, draw
from lossd_client.qa.painting import UNLABELLED
from lossd_client.qa.passes import Context
from lossd_client.qa.pictures import read_photo
from lossd_client.qa.progress import Progress, stage
from lossd_client.qa.ranking import ClassTotals
from lossd_client.qa.service import JudgedText, QaService
from lossd_client.qa.state import JudgedRegions, Observed, State
from lossd_client.qa.workers import in_order
from lossd_client.qa_wire import (
    LINES,
    ClassScores,
    ImageScores,
    ObservedScores,
    ScoreRequest,
    SubScores,
    Swap,
)
from lossd_client.wire import Array

SCORES = ObservedScores(worst_loss=3.0, boundary_loss=None, mean_loss=0.125, l4_loss=1.0)
COUNTS: dict[str, Array] = {
    "histogram": np.arange(512, dtype=np.int32).reshape(2, 256),
    "outlines": np.arange(64).reshape(2, 8, 4),
}
KEY = "ab" * 32


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        (3, 5),
        elements=st.integers(0, 255),
    ),
    st.integers(1, 300),
    st.dictionaries(st.integers(0, 255), st.integers(-1, 299), max_size=4),
    st.sampled_from([None, 0, 7, 254, 255]),
)
def test_translated_masks_are_compacted_ones(
    mask: Any, class_count: int, mapping: dict[int, int], ignore_index: int | None
) -> None:
    rules = LabelRules(class_count, mapping, ignore_index)

    def plainly() -> Any:
        return compact(rules.apply(mask, "a.png"), class_count)

    def at_once() -> Any:
        return rules.compacted(mask, "a.png"), rules.ignored_label

    (wanted, ignored), (found, own_ignored) = outcome(plainly), outcome(at_once)
    assert str(found) == str(wanted)
    assert own_ignored == ignored
    assert getattr(found, "dtype", None) == getattr(wanted, "dtype", None)


def outcome(make: Callable[[], Any]) -> Any:
    """What it makes, or the message of its error."""
    try:
        return make()
    except DataError as error:
        return str(error), None


@pytest.mark.parametrize("classes", [2, 254, 255, 300])
@pytest.mark.parametrize("value", [-1, -256, 256, 254, 255, 1 << 20, UNLABELLED])
def test_labels_that_are_no_bytes_are_not_taken_for_one(value: int, classes: int) -> None:
    mask: Any = np.array([[0, value]], np.int64 if value > 0 else np.int32)
    rules = LabelRules(classes)
    if value == UNLABELLED:
        assert rules.compacted(mask, "a").tolist() == [[0, rules.ignored_label]]
    elif 0 <= value < classes:
        assert rules.compacted(mask, "a").tolist() == [[0, value]]
    else:
        with pytest.raises(DataError, match=f"1 pixels hold {value};"):
            rules.compacted(mask, "a")


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.observed(KEY) is None
    evidence = {"margin": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    state.keep_observed(KEY, Observed(SCORES, COUNTS), evidence)
    found = State(tmp_path).observed(KEY)
    assert found is not None
    assert found.scores == SCORES
    assert list(found.counts) == list(COUNTS)
    for name, table in COUNTS.items():
        assert np.array_equal(found.counts[name], table)
    kept = state.evidence(KEY)
    assert kept is not None
    assert list(kept.tensors) == ["margin"]
    assert np.array_equal(kept.tensors["margin"], evidence["margin"])
    assert kept.scores == SCORES
    state.drop_evidence()
    assert state.evidence(KEY) is None
    state.keep_only([], [])
    assert state.observed(KEY) is None


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"{}\n[]", b"\x00" * 100])
def test_what_is_no_record_is_none(content: bytes, tmp_path: Path) -> None:
    for shelf in ("observed", "evidence", "judged"):
        Journal(tmp_path / shelf).add(KEY, [content])
    state = State(tmp_path)
    assert state.observed(KEY) is None
    assert state.judged(KEY) is None
    assert state.judged_regions(KEY) is None
    assert state.evidence(KEY) is None


def test_workers_hold_no_more_than_they_can_use() -> None:
    lock = threading.Lock()
    held, most = 0, 0

    def source() -> Any:
        nonlocal held, most
        for number in range(50):
            with lock:
                held += 1
                most = max(most, held)
            yield number

    def work(number: int) -> int:
        time.sleep(0.001 if number % 3 else 0.004)
        return number

    found = []
    for number in in_order(source(), work, workers=3):
        found.append(number)
        with lock:
            held -= 1
    assert found == list(range(50))
    assert most <= 7  # six under way or done, and the one that is taken


def test_an_error_of_a_worker_ends_the_work() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise RuntimeError("two")
        return number

    results = in_order(range(1000), work, workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match="two"):
        next(results)
    assert len(begun) < 20


def test_lines_tell_rates_and_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossd_client.qa.progress._LINE_EVERY_S", 0.0)
    with stage("observing", 4, "lines") as done:
        done(1, 2_000_000)
        done(3, 6_000_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("observing: 1 of 4 images, ")
    assert first.endswith(" s left")
    assert "Mpixel/s" in first
    assert last.startswith("observing: 4 of 4 images, ")
    assert " s left" not in last


def test_a_bar_counts_images(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("judging", 2, "bar") as done:
        done(2, 1_000)
    told = capsys.readouterr().err
    assert "judging: 100%" in told
    assert "2/2" in told


def test_no_progress_and_nothing_to_do_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[tuple[int, Progress]] = [(2, "none"), (0, "bar"), (0, "lines")]
    for images, progress in shown:
        with stage("judging", images, progress) as done:
            done(1, 1)
    assert capsys.readouterr().err == ""


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off() -> None:
        with whole(path) as file:
            file.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert path.read_text() == "old"
    with whole(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_problems_are_a_table(tmp_path: Path) -> None:
    write_problems(tmp_path / "p.csv", [Problem("size", "a,b.png", 'is "odd"')])
    assert (tmp_path / "p.csv").read_bytes() == b'kind,file,detail\nsize,"a,b.png","is ""odd"""\n'


def class_scores(index: int, given: int, predicted: int, agreed: int, **more: Any) -> ClassScores:
    fields = {"disputed_pixels": 0, "disputed_share": 0.0, "swap": None, "name": None, **more}
    dice = 2 * agreed / (given + predicted)
    return ClassScores(index=index, pixels=given, predicted_pixels=predicted, dice=dice, **fields)


def test_classes_are_summed_over_images() -> None:
    def swap(to: int, pixels: int) -> Swap:
        return Swap(predicted=to, predicted_name=None, pixels=pixels)

    totals = ClassTotals(ClassList(("a", "b", "c"), "classes.txt"))
    totals.add([class_scores(0, 10, 7, 6, disputed_pixels=4, swap=swap(1, 4))])
    totals.add([class_scores(0, 90, 91, 88, disputed_pixels=2, swap=swap(2, 3))])
    totals.add([class_scores(0, 5, 5, 5), class_scores(1, 3, 0, 0, disputed_pixels=3)])
    first, second, third = totals.rows()
    assert (first.pixels, first.predicted_pixels, first.disputed_pixels) == (105, 103, 6)
    assert first.dice == 2 * 99 / 208
    assert (first.swapped_with, first.swapped_pixels) == ("b", 4)
    assert first.disputed_share == 6 / 105
    assert (second.dice, second.swapped_with) == (0.0, None)
    assert (third.dice, third.disputed_share) == (None, 0.0)


def test_a_context_is_named_by_what_it_holds() -> None:
    nobody: Any = None

    def name(histogram: Any, *sub_scores: SubScores, outlines: int = 1) -> str:
        counts = {"histogram": histogram, "outlines": np.full((2, 8, 4), outlines)}
        return Context(nobody, counts, sub_scores or None).name

    table = np.ones((2, 256), np.int64)
    one = SubScores(worst_loss=1.0, class_tail=2.0, boundary_loss=None)
    other = SubScores(worst_loss=1.0, class_tail=2.0, boundary_loss=0.5)
    straight = one.model_copy(update={"straightness": 1.0})
    names = [name(table), name(table * 2), name(table, one), name(table, other)]
    assert len({*names, name(table, outlines=2), name(table, straight)}) == 6
    assert name(table.copy(), one) == names[2]


def overlay(**more: Any) -> Overlay:
    given = np.zeros((20, 30), np.uint8)
    given[0] = 255
    predicted = given * 0
    predicted[8:12, 10:16] = 1
    region = region_of(
        predicted == 1, image="a", given="road", predicted="car", score=2.0, kind="missing",
        reason="labelled road",
    )  # fmt: skip
    fields = {
        "title": "a   1 of 1",
        "reason": "labelled road",
        "photo": Image.new("RGB", (30, 20), (200, 200, 200)),
        "given": given,
        "predicted": predicted,
        "heat_nats": np.where(predicted == 1, 9, 0).astype(np.float32),
        "regions": [region],
        "points": [(12, 9)],
        "ignored_label": 255,
    }
    return Overlay(**{**fields, **more})


def test_a_picture_shows_the_four_layers() -> None:
    classes = ClassList(("road", "car"), "classes.txt")
    picture = np.asarray(draw(overlay(), classes)).astype(int)
    height, width = 427, 640
    top, gap, title = 12 + 19 + 6 + 20, 12, 22

    def panel(row: int, column: int) -> Any:
        above = top + row * (title + height + gap) + title
        left = gap + column * (width + gap)
        return picture[above : above + height, left : left + width]

    centre = slice(9 * height // 20, 10 * height // 20), slice(14 * width // 30, 15 * width // 30)
    corner = slice(17 * height // 20, 19 * height // 20), slice(2 * width // 30, 6 * width // 30)
    grey = np.array([200, 200, 200])
    for row, column, inside, outside in (
        (0, 0, grey, grey),
        (0, 1, tinted(0), tinted(0)),
        (1, 0, tinted(1), tinted(0)),
        (1, 1, np.array([252, 250, 165]), np.array([10, 8, 24])),
    ):
        assert np.abs(np.median(panel(row, column)[centre], axis=(0, 1)) - inside).max() <= 2
        assert np.abs(np.median(panel(row, column)[corner], axis=(0, 1)) - outside).max() <= 2
    ignored = panel(0, 1)[2 : height // 20 - 2, 100:200].reshape(-1, 3)
    assert np.abs(np.median(ignored, axis=0) - 200 * 0.38).max() <= 2


def tinted(label: int) -> Any:
    return np.array([200, 200, 200]) * 0.38 + np.array(class_colour(label)) * 0.62


def test_classes_have_colours_of_their_own() -> None:
    assert len({class_colour(label) for label in range(150)}) == 150


def test_photos_are_turned_and_deep_greys_are_stretched(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_photo(tmp_path / "a.jpg").size == (20, 30)
    deep = np.linspace(0, 40_000, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shown = np.asarray(read_photo(tmp_path / "deep.png"))
    assert (shown[0, 0, 0], shown[-1, -1, 0]) == (0, 255)
    assert len(np.unique(shown)) > 50


def test_judged_records_are_lines_of_json(tmp_path: Path) -> None:
    scores = ImageScores(height=1, width=1, pixels=1, scores=SCORES, suspicion=0.1 + 0.2)
    head_line = scores.model_dump_json().encode()
    state = State(tmp_path)
    state.keep_judged(KEY, head_line, b'[{"area":3}]')
    head, found = state.judged(KEY), state.judged_regions(KEY)
    assert head is not None
    assert (head.scores, head.pixels) == (SCORES, 1)
    assert found == JudgedRegions([{"area": 3}], ())
    content = Journal(tmp_path / "judged").read(KEY)
    assert content is not None
    assert content.splitlines() == [head_line, b'[{"area":3}]']
    state.keep_judged(KEY, head_line, b"null")
    assert state.judged_regions(KEY) == JudgedRegions((), ())


def keys_of(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


def test_a_journal_ends_where_no_whole_record_follows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second, third = keys_of(3)
    journal.add(first, [b"one", memoryview(b"more")])
    journal.add(second, [])
    (path,) = tmp_path.iterdir()
    whole = path.stat().st_size
    journal.add(third, [b"three"])
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        kept = 3 if length == len(content) else 2 if length >= whole else int(length >= 51)
        other = Journal(tmp_path)
        assert other.keys() == keys_of(kept)
        assert other.read(first) == (b"onemore" if kept else None)
        other.close()
    # A head whose bytes are not what they were ends it, too.
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert Journal(tmp_path).keys() == []


def test_journals_of_one_folder_write_beside_each_other(tmp_path: Path) -> None:
    first, second, third = keys_of(3)
    one, other = Journal(tmp_path), Journal(tmp_path)
    one.add(first, [b"1"])
    other.add(second, [b"2"])
    one.add(third, [b"old"])
    one.add(third, [b"new"])
    late = Journal(tmp_path)
    assert sorted(late.keys()) == [first, second, third]
    assert late.read(third) == bytearray(b"new")
    late.keep_only([second, third])
    assert len(list(tmp_path.iterdir())) == 1
    assert late.read(first) is None
    assert Journal(tmp_path).read(third) == bytearray(b"new")
    late.close()
    assert late.read(second) == bytearray(b"2")  # opened again
    late.forget()
    assert list(tmp_path.iterdir()) == []
    assert late.read(second) is None
    late.add(second, [b"again"])
    assert late.read(second) == bytearray(b"again")


def test_a_record_can_be_mapped_whatever_follows_it(tmp_path: Path) -> None:
    first, second, third = keys_of(3)
    journal = Journal(tmp_path)
    assert journal.mapped(first) is None
    journal.add(first, [b"one"])
    one = journal.mapped(first)
    assert one == memoryview(b"one")
    journal.add(second, [b"longer", b" than it"])
    two = journal.mapped(second)
    assert two == memoryview(b"longer than it")
    assert journal.mapped(third) is None
    journal.add(third, [])
    assert journal.mapped(third) == memoryview(b"")
    late = Journal(tmp_path)
    late.keep_only([second])
    assert late.mapped(first) is None
    assert late.mapped(second) == two
    journal.forget()
    late.forget()
    assert late.mapped(second) is None
    assert bytes(one) + bytes(two) == b"onelonger than it"  # who holds it keeps it


def test_a_file_that_is_cut_off_before_it_is_mapped_holds_no_record(tmp_path: Path) -> None:
    Journal(tmp_path).add(KEY, [b"12345"])
    journal = Journal(tmp_path)
    assert journal.keys() == [KEY]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert journal.mapped(KEY) is None


def test_a_record_whose_file_went_is_none(tmp_path: Path) -> None:
    Journal(tmp_path).add(KEY, [b"1"])
    journal = Journal(tmp_path)
    assert journal.keys() == [KEY]
    journal.close()
    for path in tmp_path.iterdir():
        path.unlink()
    assert journal.read(KEY) is None
    assert journal.mapped(KEY) is None


def test_a_write_that_failed_ends_its_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second, third = keys_of(3)
    journal.add(first, [b"1"])
    with pytest.raises(TypeError):
        journal.add(second, [b"begun", cast("bytes", "no bytes")])
    journal.add(third, [b"3"])
    assert sorted(Journal(tmp_path).keys()) == [first, third]
    assert journal.read(second) is None


def test_a_journal_is_shared_by_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def work(key: str) -> None:
        journal.add(key, [key.encode(), b"!"])
        assert journal.read(key) == bytearray(key.encode() + b"!")

    list(in_order(keys_of(200), work, workers=8))
    assert sorted(Journal(tmp_path).keys()) == keys_of(200)


def answering(content_type: str, body: bytes) -> QaService:
    class Answering:
        def _exchange_kept(self, _: object) -> tuple[None, Reply]:
            return None, Reply(200, {"content-type": content_type}, body)

    return QaService(cast(Client, Answering()))


def test_lines_of_an_answer_are_kept_as_they_came() -> None:
    parts = {"target": np.zeros((1, 1), np.uint8)}
    body = b'{"warnings":[]}\n{"pixels":1}\n[]\n{"pixels":2}\nnull'
    found = answering(LINES, body).judged(ScoreRequest(), [parts, parts])
    assert found == [JudgedText(b'{"pixels":1}', b"[]"), JudgedText(b'{"pixels":2}', b"null")]
    with pytest.raises(ServiceError, match="2 of 1 images"):
        answering(LINES, body).judged(ScoreRequest(), [parts])
    with pytest.raises(ServiceError, match="older than its client"):
        answering("application/json", b"{}").judged(ScoreRequest(), [parts])
