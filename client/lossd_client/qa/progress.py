"""How far a run is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

from tqdm import tqdm

Progress = Literal["auto", "bar", "lines", "none"]
"""`auto`: a bar where standard error is a terminal, lines elsewhere."""

Done = Callable[[int, int], None]
"""Called with the images and pixels that were finished since."""

_LINE_EVERY_S = 10.0
_PIXELS_PER_MEGAPIXEL = 1e6


def stage(title: str, images: int, progress: Progress) -> AbstractContextManager[Done]:
    """Shows one stage of a run on standard error.

    Args:
        title: what is done.
        images: how many images there are to do.
        progress: in which way.

    Returns:
        A context that gives what counts images as done.

    Example:
        >>> with stage("observing", 2, "none") as done:
        ...     done(2, 1_000_000)
    """
    if progress == "none" or not images:
        return nullcontext(_ignored)
    is_bar = sys.stderr.isatty() if progress == "auto" else progress == "bar"
    return _bar(title, images) if is_bar else _lines(title, images)


def _ignored(images: int, pixels: int) -> None:
    del images, pixels


@contextmanager
def _bar(title: str, images: int) -> Iterator[Done]:
    pace = _Pace()
    with tqdm(desc=title, total=images, unit=" images", dynamic_ncols=True) as bar:

        def done(count: int, pixels: int) -> None:
            pace.add(count, pixels)
            bar.set_postfix_str(f"{pace.megapixels_per_s():.1f} Mpixel/s", refresh=False)
            bar.update(count)

        yield done


@contextmanager
def _lines(title: str, images: int) -> Iterator[Done]:
    pace = _Pace()
    told_s = time.monotonic()

    def done(count: int, pixels: int) -> None:
        nonlocal told_s
        pace.add(count, pixels)
        if pace.images == images or time.monotonic() - told_s >= _LINE_EVERY_S:
            told_s = time.monotonic()
            _say(f"{title}: {pace.told(images)}")

    yield done


class _Pace:
    """What was done since it was made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._pixels = 0
        self.images = 0

    def add(self, images: int, pixels: int) -> None:
        self.images += images
        self._pixels += pixels

    def megapixels_per_s(self) -> float:
        return self._pixels / _PIXELS_PER_MEGAPIXEL / self._passed_s()

    def told(self, of: int) -> str:
        """Numbers and rates, and the time left while there is any."""
        passed_s = self._passed_s()
        rates = f"{self.images / passed_s:.1f} images/s, {self.megapixels_per_s():.1f} Mpixel/s"
        left_s = passed_s / self.images * (of - self.images) if self.images else 0.0
        left = f", {left_s:.0f} s left" if self.images < of else f" in {passed_s:.1f} s"
        return f"{self.images} of {of} images, {rates}{left}"

    def _passed_s(self) -> float:
        return max(time.monotonic() - self._began_s, 1e-9)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
