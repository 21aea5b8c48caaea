"""Which of twelve annotations to look at first, and where: annotation QA on real photos.

Run by `make demo`. Twelve photos have masks drawn by hand; three masks are spoiled on purpose. A
small segmenter predicts every photo from the photo alone, and `lossd_client.qa` scores masks
against predictions through the service, as `lossd-client qa` does. The spoiled three should be
among the first of the ranking. The exit status is 0 if they are, 1 if they are not, and 2 if the
service could not be started or did not do its work.
"""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from annotations import HERE, IGNORED, Annotations, read
from lossd_client import Client
from lossd_client.errors import LossdError
from lossd_client.qa import RankedImage, Report, score
from segmenter import segment
from service_process import ServiceStartError, running_service, tail

IMAGES: Final = HERE / "images"
FIRST: Final = 4
"""The spoiled masks should be among so many of the ranking."""


def main() -> int:
    """Run the demo; the process's exit status."""
    arguments = parse_arguments()
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped too
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log_path = out / "service.log"
    url: str | None = arguments.url
    annotations = read()
    write_data_set(annotations, out)
    try:
        with ExitStack() as stack:
            url = url or stack.enter_context(running_service(log_path, console))
            report = score_all(url, out)
    except ServiceStartError as error:
        console.print(str(error), markup=False)
        return 2
    except LossdError as error:
        console.print(f"{type(error).__name__}: {error}", markup=False)
        if not arguments.url:
            console.print(tail(log_path), markup=False)
        return 2
    spoiled = {name: one.spoil.reads for name, one in annotations.images.items() if one.spoil}
    console.print(table(report.ranking, spoiled))
    for name, path in report.paths.items():
        console.print(f"{name:13} {path.resolve()}", markup=False, soft_wrap=True)
    return verdict([image.name for image in report.ranking], spoiled, console)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score real annotations and rank them.")
    parser.add_argument("--url", help="a running service; without it, one is started and stopped")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="where masks and report go"
    )
    return parser.parse_args()


def write_data_set(annotations: Annotations, out: Path) -> None:
    """What a team would have: masks as index PNGs, a model's logits, names of the classes.

    Args:
        annotations: the drawn masks, three of them spoiled.
        out: gets `masks/NAME.png`, `predictions/NAME.npy` float32 `[H, W]`, and `classes.txt`.
    """
    masks, predictions = out / "masks", out / "predictions"
    masks.mkdir(exist_ok=True)
    predictions.mkdir(exist_ok=True)
    for name, annotation in annotations.images.items():
        image = load_image(name)
        Image.fromarray(annotation.given(*image.shape[:2])).save(masks / f"{name}.png")
        np.save(predictions / f"{name}.npy", segment(image)[0])
    names = [name for label, name in sorted(annotations.classes.items()) if label != IGNORED]
    (out / "classes.txt").write_text("\n".join(names), encoding="utf-8")


def load_image(name: str) -> NDArray[np.uint8]:
    """The photo of that name as `[H, W, 3]` sRGB."""
    with Image.open(IMAGES / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


def score_all(url: str, out: Path) -> Report:
    """The report of the data set in `out`, written to `out/report`, by the service at `url`."""
    with Client(url) as client:
        return score(
            images=IMAGES,
            annotations=out / "masks",
            predictions=out / "predictions",
            classes=out / "classes.txt",
            ignore_index=IGNORED,
            client=client,
            out=out / "report",
            start="fresh",
        )


def table(ranking: Sequence[RankedImage], spoiled: Mapping[str, str]) -> Table:
    """The ranking for the terminal."""
    view = Table(title="Worst first", box=None, padding=(0, 1), pad_edge=False)
    for column in ("#", "suspicion", "disputed px"):
        view.add_column(column, justify="right")
    for column in ("image", "probably", "spoiled by us"):
        view.add_column(column, no_wrap=True)
    for image in ranking:
        numbers = (str(image.rank), f"{image.suspicion:.2f}", f"{image.disputed_pixels:,}")
        reads = spoiled.get(image.name, "")
        style = "bold" if reads else ""
        view.add_row(*numbers, image.name, image.kind or "", reads, style=style)
    return view


def verdict(names: Sequence[str], spoiled: Mapping[str, str], console: Console) -> int:
    """Say whether the spoiled masks are among the first; the exit status.

    Args:
        names: of the images, in the order of the ranking.
        spoiled: what was done to which mask.
        console: where to.
    """
    ranks = sorted(names.index(name) + 1 for name in spoiled)
    told = ", ".join(map(str, ranks))
    console.print(f"The {len(spoiled)} masks that were spoiled on purpose are at places {told}.")
    if ranks[-1] <= FIRST:
        return 0
    console.print(f"They should be among the first {FIRST}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
