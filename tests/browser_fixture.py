"""A real browser for the tests of pages: Chromium without a window, driven by Playwright.

Chromium comes from the system's packages (`apt-get install chromium`), Playwright's own browsers
are not downloaded. Without it the tests are skipped, but not where `CI` is set.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_WINDOW_PX = (1400, 900)
_TIMEOUT_MS = 20_000.0
_INLINE = ("file:", "data:", "blob:", "about:")

expect.set_options(timeout=_TIMEOUT_MS)  # for what is expected, too


@dataclass
class Tab:
    """A page of the browser that shares nothing with another test's.

    Attributes:
        page: Playwright's page.
        errors: what the console said of errors, and exceptions that nobody caught.
        requests: addresses that were asked for and are neither files nor inline.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, address: str | Path) -> Page:
        """Opens an address or a file."""
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        return self.page

    def accessibility_faults(self, *ignored: str) -> list[str]:
        """What axe-core finds wrong with the page as it is, as `rule: element`.

        Args:
            ignored: rules that are not asked.
        """
        self.page.evaluate(AXE_SCRIPT)
        rules = {rule: {"enabled": False} for rule in ignored}
        options = {"resultTypes": ["violations"], "rules": rules}
        found: dict[str, Any] = self.page.evaluate("(options) => axe.run(options)", options)
        return [
            f"{violation['id']}: {' '.join(map(str, node['target']))} ({node['failureSummary']})"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(_INLINE):
            self.requests.append(request.url)

    def watch(self) -> None:
        """Begins to note what goes wrong."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)


def chromium_path() -> str | None:
    """Where Chromium is; None where it is not installed."""
    found: Sequence[str | None] = [shutil.which(name) for name in _NAMES]
    return next((path for path in found if path is not None), None)


# Not of the session: while it runs, Playwright's loop is the thread's, and `asyncio.run` refuses.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one module."""
    path = chromium_path()
    if path is None and "CI" not in os.environ:
        pytest.skip("no Chromium: apt-get install chromium")
    assert path is not None, "CI has to have Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A page of its own; errors that the test did not take out of `errors` fail it."""
    width, height = _WINDOW_PX
    context = browser.new_context(
        viewport={"width": width, "height": height}, accept_downloads=True
    )
    context.set_default_timeout(_TIMEOUT_MS)
    opened = Tab(context.new_page())
    opened.watch()
    yield opened
    context.close()
    assert opened.errors == []
