"""Takes the pictures of docs/annotation-qa.md: that page's walk, in a browser without a window.

    lossd serve &
    python tools/qa_pictures.py --url http://127.0.0.1:8000

Needs Chromium (`apt-get install chromium`).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
_WINDOW: ViewportSize = {"width": 1280, "height": 800}
_COLOURS = 128
_SETTLE_MS = 500


def main() -> None:
    """Walks, and writes the pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of docs/annotation-qa.md.")
    parser.add_argument("--url", required=True, help="a running service")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        work = Path(folder) / "walk"
        _run(ROOT / "examples" / "qa_export.py", str(work))
        _score(work, known.url)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport=_WINDOW)
        _walk(page, work, known.url)
        browser.close()


def _walk(page: Page, work: Path, url: str) -> None:
    _open(page, work)
    _take(page, "qa-overview")
    page.locator("#review").scroll_into_view_if_needed()
    _choose(page, "coins-2")
    _take(page, "qa-missing-coin")
    page.keyboard.press("c")
    page.keyboard.press("X")
    for name in ("cell", "horse"):
        _choose(page, name)
        page.keyboard.press("c")
        page.keyboard.press("X")
    _choose(page, "clock")
    page.keyboard.press("A")
    for name in ("coffee", *(f"coins-{number}" for number in (5, 1, 4, 3, 6)), "rocket", "retina"):
        _choose(page, name)
        page.keyboard.press("X")
    with page.expect_download() as download:
        page.keyboard.press("s")
    download.value.save_as(work / "decisions.json")
    _run(ROOT / "examples" / "qa_export.py", str(work), "--corrected")
    _score(work, url, "--decisions", str(work / "decisions.json"))
    _open(page, work)
    _take(page, "qa-after")


def _open(page: Page, work: Path) -> None:
    page.goto((work / "report" / "report.html").as_uri())
    page.locator("#image-name").wait_for()


def _choose(page: Page, name: str) -> None:
    page.locator(".card", has=page.get_by_text(name, exact=True)).click()
    page.wait_for_timeout(_SETTLE_MS)


def _take(page: Page, name: str) -> None:
    page.wait_for_timeout(_SETTLE_MS)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(path, optimize=True)
    sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB\n")


def _score(work: Path, url: str, *more: str) -> None:
    command = [sys.executable, "-m", "lossd_client", "qa", "--url", url, "--progress", "none"]
    for name in ("images", "predictions"):
        command += [f"--{name}", str(work / name)]
    command += ["--annotations", str(work / "annotations.xml")]
    command += ["--classes", str(work / "classes.txt"), "--out", str(work / "report"), *more]
    subprocess.run(command, check=True)  # noqa: S603 - our own command


def _run(script: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, str(script), *arguments], check=True)  # noqa: S603 - ours


if __name__ == "__main__":
    main()
