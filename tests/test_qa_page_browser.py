"""`report.html` in a browser: every button and key, files in and out, 2000 images."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import qa_page_data
from browser_fixture import Tab
from lossd_client.qa import coco_document, cvat_issues, label_studio_tasks
from lossd_client.qa.decisions import Decisions, read_decisions, region_id
from lossd_client.qa.estimates import Curve, excess
from lossd_client.qa.export import Region
from lossd_client.qa.page.assets import script
from lossd_client.qa.reviews import progress_of, review_of
from qa_page_data import InventedPage

Json = dict[str, Any]

_STORED_MS = 500


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> InventedPage:
    return qa_page_data.write(tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(tab: Tab, invented: InventedPage) -> Iterator[Page]:
    """The page, opened as a file, with its first image shown."""
    tab.page.context.set_offline(True)
    yield opened(tab, invented.path)
    assert tab.requests == []


def opened(tab: Tab, path: Path) -> Page:
    page = tab.open(path)
    expect(page.locator("#regions li")).to_have_count(3)
    return page


def come_through(page: Page) -> None:
    """Waits for what the page stored, as whoever opens it anew does without knowing.

    It goes to another process of the browser, where a page that is loaded anew finds it; loaded
    within milliseconds on a busy machine, it was seen not to.
    """
    page.wait_for_timeout(_STORED_MS)


def name_of(page: Page) -> str:
    return page.inner_text("#image-name")


def chosen(page: Page) -> list[str]:
    return page.locator(".region[aria-pressed=true] .number").all_inner_texts()


def saved(page: Page, what: str, target: Path) -> str:
    """What a button or key downloads."""
    with page.expect_download() as download:
        if what.startswith("#"):
            page.locator(what).dispatch_event("click")  # it may be in a closed menu
        else:
            page.keyboard.press(what)
    download.value.save_as(target)
    return target.read_text(encoding="utf-8")


def press(page: Page, what: str) -> None:
    """A key, or a button by its name."""
    page.click(what) if what.startswith("#") else page.keyboard.press(what)


def pixels(page: Page, panel: str) -> str:
    """The panel's picture as it is now."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
    found: str = page.eval_on_selector(
        f"[data-panel={panel}] canvas", "(canvas) => canvas.toDataURL()"
    )
    return found


def test_it_tells_what_was_scored(page: Page) -> None:
    assert page.title() == "sets/streets: annotations to review"
    assert page.inner_text("h1") == "sets/streets"
    page.locator("summary", has_text="How this report was made").click()
    facts = page.inner_text("#facts")
    for told in ("logits.npz", "CVAT for images", "disputed margin", "0.5", "numerics version"):
        assert told in facts
    row = page.locator("#classes tr", has_text="shrub")
    assert row.locator("th").inner_text() == "tree & <b>shrub</b>"
    assert row.locator("td").all_inner_texts()[1:] == ["0.500", "10.00 %", "road 60 %, sky 40 %"]
    page.locator("summary", has_text="Annotators and jobs").click()
    assert "ana" in page.inner_text("#groups")


def test_images_are_gone_through_by_keys_and_buttons(page: Page) -> None:
    for what, name in (
        *(("ArrowRight", "0001"), ("n", "0002"), ("ArrowLeft", "0001"), ("b", "0000")),
        *(("#next", "0001"), ("#previous", "0000"), ("#next-open", "0001")),
    ):
        press(page, what)
        expect(page.locator("#image-name")).to_have_text(f"street-{name}")
    page.keyboard.press("b")
    page.keyboard.press("b")
    expect(page.locator("#said")).to_have_text("that was the first image")
    page.locator(".card", has_text="street-0007").click()
    expect(page.locator("#image-name")).to_have_text("street-0007")
    assert page.locator(".card[aria-current=true]").count() == 1
    page.keyboard.press("n")
    page.keyboard.press("X")
    page.keyboard.press("b")
    page.keyboard.press("N")
    expect(page.locator("#image-name")).to_have_text("street-0009")


def test_regions_are_chosen_by_keys_and_clicks(page: Page) -> None:
    assert chosen(page) == ["1"]
    for key, number in (("ArrowDown", "2"), ("3", "3"), ("ArrowDown", "1"), ("ArrowUp", "3")):
        page.keyboard.press(key)
        assert chosen(page) == [number]
    page.keyboard.press("9")
    assert chosen(page) == ["3"]
    page.locator(".region").nth(1).click()
    assert chosen(page) == ["2"]
    assert page.inner_text("#decision-about") == "About region 2"
    page.keyboard.press("i")
    assert chosen(page) == []
    assert page.inner_text("#decision-about") == "About the image"


def test_regions_are_decided_one_after_the_other(page: Page) -> None:
    page.uncheck("#hide-settled")
    page.keyboard.press("c")
    assert chosen(page) == ["2"]
    page.click("#decide-rejected")
    assert chosen(page) == ["3"]
    page.keyboard.press("a")
    marks = page.locator(".region .mark").all_inner_texts()
    assert marks == ["annotation wrong", "annotation right", "ambiguous"]
    assert "1 of 12 images decided: 1 wrong" in page.inner_text("#progress")
    assert page.inner_text(".card[aria-current] .mark") == "✓ wrong"
    page.keyboard.press("1")
    page.keyboard.press("u")
    assert page.locator(".region .mark").all_inner_texts()[0] == ""
    page.click("#decide-confirmed")
    page.keyboard.press("2")
    page.click("#decide-ambiguous")
    page.keyboard.press("2")
    page.click("#decide-withdrawn")
    assert page.locator(".region .mark").all_inner_texts() == ["annotation wrong", "", "ambiguous"]
    page.keyboard.press("2")
    page.keyboard.press("x")
    page.check("#hide-settled")
    page.keyboard.press("i")
    assert page.locator(".region:visible").count() == 0
    assert page.inner_text("#hidden-regions") == "3 settled ones are hidden"


def test_an_image_is_decided_as_a_whole(page: Page) -> None:
    page.uncheck("#hide-settled")
    for what, mark in (
        *(("C", "✓ wrong"), ("X", "✗ right"), ("A", "? ambiguous"), ("U", "")),
        *(("#image-confirmed", "✓ wrong"), ("#image-rejected", "✗ right")),
        *(("#image-ambiguous", "? ambiguous"), ("#image-withdrawn", "")),
    ):
        press(page, what)
        expect(page.locator(".card[aria-current] .mark")).to_have_text(mark)
    page.keyboard.press("c")
    page.keyboard.press("X")
    marks = page.locator(".region .mark").all_inner_texts()
    assert marks == ["annotation wrong", *["annotation right (image)"] * 2]


@pytest.mark.parametrize(
    ("key", "layer", "panel"),
    [
        *(("p", "photo", "photo"), ("g", "given", "given"), ("m", "predicted", "predicted")),
        *(("h", "heat", "heat"), ("r", "regions", "photo"), ("o", "points", "photo")),
    ],
)
def test_layers_go_on_and_off(page: Page, key: str, layer: str, panel: str) -> None:
    button = page.locator(f"#layer-{layer}")
    expect(button).to_have_attribute("aria-pressed", "true")
    before = pixels(page, panel)
    page.keyboard.press(key)
    expect(button).to_have_attribute("aria-pressed", "false")
    assert pixels(page, panel) != before
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert pixels(page, panel) == before


def test_given_labels_have_the_colours_of_their_classes(page: Page) -> None:
    for key in ("p", "r", "o"):
        page.keyboard.press(key)
    page.fill("#opacity", "100")
    page.dispatch_event("#opacity", "input")
    pixels(page, "given")
    found = page.eval_on_selector(
        "[data-panel=given] canvas",
        """(canvas) => {
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          const colours = {};
          for (let at = 0; at < data.length; at += 4) {
            const colour = data.slice(at, at + 3).join();
            if (data[at + 3] === 255) colours[colour] = (colours[colour] ?? 0) + 1;
          }
          return colours;
        }""",
    )
    head = json.loads(page.inner_text("#head", timeout=1000) or page.text_content("#head") or "")
    wanted = {",".join(map(str, colour)) for colour in [*head["colours"], [0, 0, 0]]}
    assert wanted == {colour for colour, count in found.items() if count > 1000}


def test_one_picture_shows_one_layer_of_labels(page: Page) -> None:
    figures = page.locator("#panels figure:visible")
    caption = figures.locator("figcaption")
    page.keyboard.press("v")
    expect(figures).to_have_count(1)
    expect(caption).to_have_text("photo and given")
    page.keyboard.press("m")
    expect(caption).to_have_text("photo and predicted")
    page.keyboard.press("m")
    expect(caption).to_have_text("photo")
    page.click("#arrange")
    expect(figures).to_have_count(4)


def test_it_zooms_and_pans(page: Page) -> None:
    seen = [pixels(page, "photo")]
    canvas = page.locator("[data-panel=photo] canvas")
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def wheel() -> None:
        page.mouse.move(*middle)
        page.mouse.wheel(0, -300)

    def drag() -> None:
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 40, middle[1] + 25)
        page.mouse.up()

    presses = ("+", "-", "#zoom-in", "#zoom-out", "f", "Shift+ArrowLeft", "Shift+ArrowDown")
    acts: list[Callable[[], None]] = [
        *(partial(press, page, one) for one in (*presses, "#fit-region")),
        *(wheel, drag, partial(press, page, "#zoom-in")),
    ]
    for act in acts:
        act()
        now = pixels(page, "photo")
        assert now != seen[-1]
        seen.append(now)
    page.keyboard.press("0")
    assert pixels(page, "photo") == seen[0]
    page.click("#zoom-in")
    page.click("#fit")
    assert pixels(page, "photo") == seen[0]


def test_opacity_and_the_pixel_under_the_pointer(page: Page) -> None:
    before = pixels(page, "given")
    page.keyboard.press("[")
    assert page.input_value("#opacity") == "50"
    assert pixels(page, "given") != before
    page.keyboard.press("]")
    assert pixels(page, "given") == before
    page.locator("[data-panel=given] canvas").hover()
    told = page.inner_text("#pixel")
    assert re.fullmatch(r"column \d+, row \d+: given .+, predicted .+, heat [\d.]+ nats", told)


def test_help_lists_every_key(page: Page) -> None:
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    listed = page.inner_text("#keys")
    source = script(["keys"])
    for keys in re.findall(r'\["([^"]+)", "[^"]+", \[', source):
        assert keys in listed
    page.keyboard.press("n")
    assert name_of(page) == "street-0000"
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.click("#open-help")
    page.click("#close-help")
    assert not page.locator("#help").is_visible()


def count_of(page: Page) -> int:
    return int(page.inner_text("#count").split()[0])


def test_filters_narrow_the_gallery(page: Page, invented: InventedPage) -> None:
    assert count_of(page) == 12
    page.select_option("#filter-annotator", "ben")
    assert count_of(page) == 6
    page.select_option("#filter-job", "32")
    entries = [image.annotation for image in invented.ranking]
    assert count_of(page) == sum((each.annotator, each.job) == ("ben", "32") for each in entries)
    page.click("#filter-reset")
    page.select_option("#filter-kind", "missing")
    kinds = [{region.kind for region in own} for own in invented.regions.values()]
    assert count_of(page) == sum("missing" in own for own in kinds)
    page.click("#filter-reset")
    page.select_option("#filter-class", "sky")
    assert count_of(page) == 11
    page.click("#filter-reset")
    page.locator("#classes button", has_text="shrub").click()
    assert page.input_value("#filter-class") == "tree & <b>shrub</b>"


def test_names_states_and_the_cut_narrow_it_too(page: Page) -> None:
    page.fill("#filter-name", "000")
    assert count_of(page) == 10
    page.fill("#filter-name", "nowhere")
    assert page.locator("#none").is_visible()
    page.click("#filter-reset")
    page.check("#filter-cut")
    for number in (4, 5):
        page.fill("#cut-number", str(number))
        assert count_of(page) == number
    page.click("#filter-reset")
    page.keyboard.press("X")
    for state, number in (
        *(("open", 11), ("settled", 1), ("rejected", 1), ("confirmed", 0), ("ambiguous", 0)),
    ):
        page.select_option("#filter-state", state)
        assert count_of(page) == number


def test_typing_into_a_field_is_no_command(page: Page) -> None:
    page.locator("#filter-name").press_sequentially("cx")
    assert "0 of 12" in page.inner_text("#progress")
    page.fill("#filter-name", "")
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert name_of(page) == "street-0000"


def test_the_cut_moves_and_says_what_it_finds(page: Page, invented: InventedPage) -> None:
    suspicions = [image.suspicion for image in invented.ranking]
    for number in (1, 5, 12):
        page.fill("#cut-number", str(number))
        wanted = f"finds about {excess(suspicions)[number - 1]} wrong annotations, a guess"
        assert wanted in page.inner_text("#cut-finds")
        assert page.input_value("#cut") == str(number)
    page.focus("#cut")
    page.keyboard.press("ArrowLeft")
    assert page.input_value("#cut-number") == "11"
    box = page.locator("#histogram").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] - 12, box["y"] + 20)
    assert int(page.input_value("#cut-number")) < 3
    assert "median" in page.inner_text("#cut-how")


def test_decisions_make_the_estimate(tab: Tab, tmp_path: Path) -> None:
    invented = qa_page_data.write(tmp_path, 16)
    page = opened(tab, invented.path)
    for place in range(12):
        page.keyboard.press("A" if place == 4 else "C" if place % 3 == 0 else "X")
        page.keyboard.press("n")
    page.fill("#cut-number", "14")
    saved(page, "#save", tmp_path / "decisions.json")
    decisions = read_decisions([tmp_path / "decisions.json"])
    reviews = [
        (image, review_of(image, invented.regions[image.name], decisions))
        for image in invented.ranking
    ]
    progress = progress_of(reviews, invented.ranking, decisions)
    assert (progress.wrong, progress.right, progress.ambiguous) == (4, 7, 1)
    assert progress.left is not None
    suspicions = [image.suspicion for image in invented.ranking]
    decided = [(suspicions[place], place % 3 == 0) for place in range(12) if place != 4]
    above = Curve(suspicions, decided).wrong_of(suspicions[12:14])
    how, finds = page.inner_text("#cut-how"), page.inner_text("#cut-finds")
    assert "a precision of 36 %" in how
    low, high = round(progress.left.low), round(progress.left.high)
    left = f"Of all 4 open images about {round(progress.left.count)} ({low} to {high})"
    assert left in how
    assert f"finds about {round(4 + above.count)} wrong annotations" in finds
    assert "4 of them are confirmed" in finds


def test_the_curve_is_pythons(tab: Tab) -> None:
    suspicions = [8.0, 5.5, 3.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -2.5]
    decided = [(8.0, True), (5.5, True), (3.0, False), (1.0, True), (-1.0, False)]
    page = tab.page
    page.set_content("<html lang='en'><title>a</title></html>")
    page.add_script_tag(content=script(["estimates"]) + "globalThis.parts = { Curve, excess };")
    told = [{"suspicion": suspicion, "isWrong": int(wrong)} for suspicion, wrong in decided]
    found = page.evaluate(
        """([suspicions, decided]) => {
          const curve = new parts.Curve(suspicions, decided);
          return { ...curve.wrongOf(suspicions.slice(3)), excess: parts.excess(suspicions) };
        }""",
        [suspicions, told],
    )
    wanted = Curve(suspicions, decided).wrong_of(suspicions[3:])
    assert found["count"] == pytest.approx(wanted.count, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    assert found["excess"] == excess(suspicions)


def test_decisions_stay_in_the_browser(tab: Tab, invented: InventedPage) -> None:
    page = opened(tab, invented.path)
    page.uncheck("#hide-settled")
    page.keyboard.press("c")
    page.keyboard.press("x")
    marks = ["annotation wrong", "annotation right", ""]
    expect(page.locator(".region .mark")).to_have_text(marks)
    come_through(page)
    page.reload()
    expect(page.locator("#regions li")).to_have_count(3)
    expect(page.locator("#not-kept")).to_be_hidden()
    page.uncheck("#hide-settled")
    expect(page.locator(".region .mark")).to_have_text(marks)
    other = page.context.new_page()
    other.goto(invented.path.as_uri())
    expect(other.locator("#regions li")).to_have_count(3)
    other.keyboard.press("3")
    other.keyboard.press("a")
    expect(page.locator(".region .mark").nth(2)).to_have_text("ambiguous")


def test_a_browser_that_keeps_nothing_is_told(tab: Tab, invented: InventedPage) -> None:
    tab.page.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }"
    )
    page = opened(tab, invented.path)
    assert not page.locator("#not-kept").is_visible()
    page.keyboard.press("c")
    assert page.locator("#not-kept").is_visible()


def test_saved_decisions_come_back(page: Page, invented: InventedPage, tmp_path: Path) -> None:
    page.keyboard.press("c")
    page.keyboard.press("x")
    page.keyboard.press("n")
    page.keyboard.press("A")
    document = json.loads(saved(page, "#save", tmp_path / "decisions.json"))
    assert (document["format"], document["version"]) == ("lossd-qa-decisions", 1)
    decisions = read_decisions([tmp_path / "decisions.json"])
    first = invented.ranking[0]
    of_regions = decisions.of_regions(first.name, invented.regions[first.name])
    verdicts = [None if each is None else each.verdict for each in of_regions]
    assert verdicts == ["confirmed", "rejected", None]
    assert of_regions[0] is not None
    assert of_regions[0].suspicion == first.suspicion
    second = decisions.of_image("street-0001", "labels-1")
    assert second is not None
    assert second.verdict == "ambiguous"
    page.evaluate("() => localStorage.clear()")
    come_through(page)
    page.reload()
    expect(page.locator("#regions li")).to_have_count(3)
    assert "0 of 12" in page.inner_text("#progress")
    page.set_input_files("#load-file", tmp_path / "decisions.json")
    expect(page.locator("#said")).to_have_text("decisions.json: 3 decisions added, 0 changed")
    assert "2 of 12 images decided: 1 wrong, 0 right, 1 ambiguous" in page.inner_text("#progress")
    again = json.loads(saved(page, "s", tmp_path / "again.json"))
    assert again == document


def test_contradictions_are_told_and_the_later_one_counts(page: Page, tmp_path: Path) -> None:
    page.keyboard.press("c")
    document = json.loads(saved(page, "s", tmp_path / "decisions.json"))
    (decision,) = document["decisions"]
    for time, verdict, counts in (
        ("2001-01-01T00:00:00.000Z", "rejected", "this page's counts"),
        ("2999-01-01T00:00:00.000Z", "ambiguous", "the file's counts"),
    ):
        decision.update(decided_at=time, verdict=verdict)
        (tmp_path / "other.json").write_text(json.dumps(document))
        page.set_input_files("#load-file", tmp_path / "other.json")
        notice = page.locator(".notice", has_text="contradict").last
        notice.locator("summary").click()
        assert counts in notice.inner_text()
        notice.get_by_label("close").click()
        expect(page.locator(".notice:visible")).to_have_count(0)
    page.uncheck("#hide-settled")
    assert page.locator(".region .mark").first.inner_text() == "ambiguous"


@pytest.mark.parametrize(
    "content",
    [
        *("no JSON", "[]", '{"format": "lossd-qa-decisions", "version": 2}'),
        '{"format": "lossd-qa-decisions", "version": 1, "decisions": [{"image": "a"}]}',
    ],
)
def test_what_is_no_file_of_decisions_is_refused(page: Page, tmp_path: Path, content: str) -> None:
    (tmp_path / "wrong.json").write_text(content)
    page.set_input_files("#load-file", tmp_path / "wrong.json")
    expect(page.locator(".notice:visible")).to_contain_text("wrong.json is no file of decisions")
    assert "0 of 12" in page.inner_text("#progress")


def test_decisions_of_an_earlier_report_are_offered(
    tab: Tab, invented: InventedPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened(tab, invented.path)
    page.keyboard.press("c")
    page.keyboard.press("X")
    expect(page.locator("#progress")).to_contain_text("1 of 12 images decided: 1 wrong")
    come_through(page)
    monkeypatch.setattr(qa_page_data, "REPORT_ID", "another")
    page = opened(tab, qa_page_data.write(tmp_path).path)
    assert "0 of 12" in page.inner_text("#progress")
    assert "2 decisions of an earlier report" in page.inner_text(".notice:visible")
    page.click("#take-earlier")
    assert "1 of 12 images decided: 1 wrong" in page.inner_text("#progress")
    expect(page.locator(".notice:visible")).to_have_count(0)


def confirmed(invented: InventedPage, decisions: Decisions, verdicts: set[str]) -> list[Region]:
    """Regions with one of the verdicts, from the file that the page saved."""
    found = []
    for image in invented.ranking:
        whole = decisions.of_image(image.name, image.item.labels_key)
        own = invented.regions[image.name]
        for region, decision in zip(own, decisions.of_regions(image.name, own), strict=True):
            counting = decision or whole
            if counting is not None and counting.verdict in verdicts:
                found.append(region)
    return sorted(found, key=lambda region: (region.image, -region.score))


def test_who_is_quicker_than_the_pictures_decides_what_is_about_to_be_there(
    page: Page, invented: InventedPage, tmp_path: Path
) -> None:
    """All keys in one task of the browser: no picture can open between them."""
    page.evaluate(
        """() => {
          for (const key of ["n", "c", "n", "n", "x", "x"])
            document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        }"""
    )
    saved(page, "#save", tmp_path / "decisions.json")
    decisions = read_decisions([tmp_path / "decisions.json"])
    for image, wanted in zip(
        invented.ranking,
        (["", "", ""], ["confirmed", "", ""], [], ["rejected", "rejected", ""]),
        strict=False,
    ):
        assert decisions.of_image(image.name, image.item.labels_key) is None
        made = decisions.of_regions(image.name, invented.regions[image.name])
        assert [one.verdict if one else "" for one in made] == wanted


def test_an_image_that_opens_is_not_said_to_have_no_regions(page: Page) -> None:
    """The second has some and the third has none; told in the task that the key was pressed in."""
    told = page.evaluate(
        """() => ["n", "n"].map((key) => {
          document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
          const [none, more] = document.querySelectorAll("#no-regions, #more-regions");
          return [none.hidden, more.textContent];
        })"""
    )
    assert told == [[True, "9 smaller ones are not shown"], [False, ""]]


def test_a_broken_part_of_the_report_is_told_and_holds_nothing_up(
    page: Page, invented: InventedPage, tmp_path: Path
) -> None:
    page.evaluate("document.getElementById('r4').textContent = 'not JSON'")
    for key in "nnn":
        page.keyboard.press(key)
    expect(page.locator("#said")).to_contain_text("street-0003 cannot be shown")
    expect(page.locator("#no-regions")).to_be_hidden()
    for key in "cnc":
        page.keyboard.press(key)
    saved(page, "#save", tmp_path / "decisions.json")
    decisions = read_decisions([tmp_path / "decisions.json"])
    assert set(decisions.by_image) == {"street-0004"}
    made = decisions.of_regions("street-0004", invented.regions["street-0004"])
    assert [one.verdict if one else "" for one in made] == ["confirmed", "", ""]


@pytest.mark.parametrize(
    "verdicts", ["confirmed", "confirmed ambiguous", "confirmed rejected ambiguous"]
)
def test_exports_are_those_of_python(
    page: Page, invented: InventedPage, tmp_path: Path, verdicts: str
) -> None:
    for keys in ("cc", "xcA", "C", "acX", "C"):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("n")
    saved(page, "s", tmp_path / "decisions.json")
    decisions = read_decisions([tmp_path / "decisions.json"])
    regions = confirmed(invented, decisions, set(verdicts.split()))
    with_regions = {region.image for region in regions}
    images = [image.reviewed() for image in invented.ranking if image.name in with_regions]
    page.locator("summary", has_text="Export").click()
    page.select_option("#export-verdicts", verdicts)
    coco = json.loads(saved(page, "#export-coco", tmp_path / "coco.json"))
    assert coco == json.loads(json.dumps(coco_document(regions, images, invented.classes)))
    issues, problems = cvat_issues(regions, images)
    assert json.loads(saved(page, "#export-cvat", tmp_path / "cvat.json")) == issues
    assert len(problems) == 1
    assert "1 images are left out" in page.inner_text("#said")
    tasks = json.loads(saved(page, "#export-label-studio", tmp_path / "tasks.json"))
    assert tasks == json.loads(json.dumps(label_studio_tasks(regions, images)))


def test_the_table_has_every_decision(page: Page, invented: InventedPage, tmp_path: Path) -> None:
    for keys in ("cc", "xX", "C"):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("n")
    text = saved(page, "#export-csv", tmp_path / "decisions.csv")
    rows = list(csv.DictReader(text.splitlines()))
    told = [(row["image"], row["region"], row["verdict"]) for row in rows]
    ids = {
        image.name: [region_id(region) for region in invented.regions[image.name]]
        for image in invented.ranking
    }
    assert told == [
        *[("street-0000", one, "confirmed") for one in ids["street-0000"][:2]],
        *[("street-0001", one, "rejected") for one in ids["street-0001"]],
        ("street-0002", "", "confirmed"),
    ]
    assert rows[0]["reason"] == 'labelled "road", predicted <car>'
    assert (rows[0]["annotator"], rows[0]["job"]) == ("ana", "31")


def test_it_has_no_accessibility_faults(tab: Tab, invented: InventedPage) -> None:
    page = opened(tab, invented.path)
    page.keyboard.press("c")
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.uncheck("#hide-settled")
    page.set_input_files("#load-file", invented.path)  # a notice
    expect(page.locator(".notice:visible")).to_have_count(1)
    assert tab.accessibility_faults() == []
    page.keyboard.press("?")
    assert tab.accessibility_faults() == []


def test_the_tab_key_goes_through_everything_once(page: Page) -> None:
    order: list[str] = []
    page.evaluate("() => document.body.focus()")
    while len(order) < 100 and order[-1:] != ["BODY"]:
        page.keyboard.press("Tab")
        told = "({ id, className, tagName }) => id || className || tagName"
        order.append(page.evaluate(f"() => ({told})(document.activeElement)"))
    assert order[:3] == ["skip", "save", "load"]
    assert order.count("card") == 1  # arrows go on from there
    places = [
        order.index(id_) for id_ in ("cut-number", "filter-class", "previous", "decide-confirmed")
    ]
    assert places == sorted(places)


def test_two_thousand_images_open_at_once(tab: Tab, tmp_path: Path) -> None:
    invented = qa_page_data.write(tmp_path, 2000, views=60)
    page = opened(tab, invented.path)
    # The markup, the styles, the scripts and what is known of all images are all that the first
    # picture waits for; photos and layers come behind.
    text = invented.path.read_text(encoding="utf-8")
    assert text.index('id="r1"') < 1_000_000
    assert page.locator(".card").count() == 60
    page.locator("#cards-end").scroll_into_view_if_needed()
    expect(page.locator(".card")).to_have_count(120)
    page.fill("#filter-name", "1999")
    page.locator(".card").click()
    expect(page.locator("#image-name")).to_have_text("street-1999")
    expect(page.locator("#no-view")).to_be_visible()
    assert page.locator(".card img").evaluate(
        "(image) => image.decode().then(() => image.naturalWidth)"
    )
    page.keyboard.press("X")
    expect(page.locator(".card .mark")).to_have_text("✗ right")
    page.click("#filter-reset")
    expect(page.locator(".card[aria-current]")).to_contain_text("street-1999")
    for _ in range(12):
        page.keyboard.press("b")
    assert tab.errors == []
