"""What tests of the page do to it, and what they read from it."""

import re

import pytest
from playwright.sync_api import (
    FilePayload,
    Locator,
    Page,
    Position,
    expect,
)

from browser_fixture import Tab
from lossd_client import Result
from lossd_client.wire import Array

NETWORK = "Failed to load resource"


def refused(tab: Tab, statuses: str) -> None:
    """Takes the console's lines about refusals that were meant."""
    assert tab.errors
    assert all(re.search(f"{NETWORK}.*({statuses})", line) for line in tab.errors), tab.errors
    tab.errors.clear()


def choose(page: Page, field: str, *files: tuple[str, bytes]) -> None:
    payloads: list[FilePayload] = [
        {"name": name, "mimeType": "", "buffer": content} for name, content in files
    ]
    page.set_input_files(f"#try-{field}", payloads)


def choose_losses(page: Page, *names: str) -> None:
    while page.locator("#try-losses > li").count():
        page.click("#try-losses > li:first-child > button")
    for name in names:
        page.select_option("#try-loss", name)
        page.click("#try-add")


def compute(page: Page) -> None:
    page.click("#try-compute")
    expect(page.locator("#try-compute")).to_be_enabled()


def shown_values(page: Page) -> tuple[list[str], dict[str, list[str]]]:
    """Titles of the columns, and the cells of each row."""
    titles = page.locator("#try-values thead th").all_inner_texts()
    rows = page.locator("#try-values tbody tr, #try-values tfoot tr").all()
    cells = [row.locator("th, td").all_inner_texts() for row in rows]
    return titles, {name: numbers for name, *numbers in cells}


def assert_values(page: Page, result: Result, names: list[str]) -> None:
    titles, rows = shown_values(page)
    labels = list(result.losses)
    assert titles == ["sample", *labels, *(["weighted sum"] if len(labels) > 1 else [])]
    for sample, name in enumerate(names):
        numbers = [float(text) for text in rows[name]]
        expected = [*(result[label][sample] for label in labels), result.total[sample]]
        assert numbers == pytest.approx(expected[: len(numbers)], rel=1e-5)
    if len(names) > 1:
        numbers = [float(text) for text in rows["mean"] if text]
        assert numbers == pytest.approx([result.mean[label] for label in labels], rel=1e-5)


def figure(page: Page, what: str) -> Locator:
    return page.locator("figure.picture", has=page.locator(f"figcaption:text-matches('^{what} ')"))


def assert_picture(shown: Locator, numbers: Array) -> None:
    """The picture has the size of the numbers, and says them under the pointer and the arrows."""
    canvas = shown.locator("canvas")
    height, width = numbers.shape
    assert canvas.get_attribute("width") == str(width)
    assert canvas.get_attribute("height") == str(height)
    box = canvas.bounding_box()
    assert box is not None
    for row, column in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        canvas.hover(
            position=Position(
                x=(column + 0.5) * box["width"] / width, y=(row + 0.5) * box["height"] / height
            )
        )
        assert_reading(shown, numbers, row, column)
    if width > 1:
        canvas.focus()
        canvas.press("ArrowRight")
        assert_reading(shown, numbers, height // 2, width // 3 + 1)
    assert f"most {float(f'{numbers.max():.4g}'):g}"[:8] in shown.inner_text()


def assert_reading(shown: Locator, numbers: Array, row: int, column: int) -> None:
    found = re.fullmatch(r"row (\d+), column (\d+): (.*)", shown.locator("output").inner_text())
    assert found is not None
    assert (int(found[1]), int(found[2])) == (row, column)
    assert float(found[3]) == pytest.approx(numbers[row, column], rel=1e-5)


def colour(shown: Locator, row: int, column: int) -> list[int]:
    script = "(c, [y, x]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
    found: list[int] = shown.locator("canvas").evaluate(script, [row, column])
    return found
