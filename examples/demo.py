"""Score real annotations with the service and show which to look at first.

Run by `make demo`. Twelve photos have masks drawn by hand; three masks are spoiled on purpose. A
small segmenter predicts every photo from the photo alone, the service compares prediction and
mask, and the spoiled three should come out on top. The exit status is 0 if they do, 1 if they do
not, and 2 if the service could not be started or did not do its work.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from annotations import HERE, IGNORED, Annotation, read
from lossd_client import Client, losses
from lossd_client.errors import LossdError
from overlays import Scored, overlay, overview
from segmenter import segment
from service_process import ServiceStartError, running_service, tail

WORST_SHARE: Final = 0.01
LOSSES: Final = (losses.CrossEntropy(), losses.Dice(), "focal")
LOSS_NAMES: Final = ("cross_entropy", "dice", "focal")


def main() -> int:
    """Run the demo; the process's exit status."""
    arguments = parse_arguments()
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped too
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log_path = out / "service.log"
    url: str | None = arguments.url
    try:
        with ExitStack() as stack:
            url = url or stack.enter_context(running_service(log_path, console))
            ranking = rank(score_all(url, console))
    except ServiceStartError as error:
        console.print(str(error), markup=False)
        return 2
    except LossdError as error:
        console.print(f"{type(error).__name__}: {error}", markup=False)
        if not arguments.url:
            console.print(tail(log_path), markup=False)
        return 2
    console.print(table(ranking))
    write_pictures(ranking, out)
    console.print(f"Pictures: {out.resolve()}/ (start with overview.png)", soft_wrap=True)
    return verdict(ranking, console)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score real annotations and rank them.")
    parser.add_argument("--url", help="a running service; without it, one is started and stopped")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="where the pictures go"
    )
    return parser.parse_args()


def score_all(url: str, console: Console) -> list[Scored]:
    """Every image of the annotations, predicted here and scored by the service at `url`."""
    annotations = read().images
    loaded = list(load_all(annotations))
    requests = [
        {"logits": logits[np.newaxis], "target": mask[np.newaxis]} for _, mask, logits in loaded
    ]
    with Client(url) as client:
        results = list(
            client.evaluate_many(
                requests,
                losses=LOSSES,
                progress="none",
                task="binary",
                ignore_index=IGNORED,
                maps=True,
            )
        )
    for warning in sorted({warning for result in results for warning in result.warnings}):
        console.print(f"The service warns: {warning}", markup=False)
    console.print(f"Scored {len(results)} images on {results[0].device}.")
    scored = []
    for (name, annotation), (image, mask, logits), result in zip(
        annotations.items(), loaded, results, strict=True
    ):
        loss_map = result.maps["cross_entropy"][0]
        scored.append(
            Scored(
                name=name,
                image=image,
                mask=mask,
                logits=logits,
                loss_map=loss_map,
                losses={label: float(result[label][0]) for label in LOSS_NAMES},
                suspicion=suspicion(loss_map, mask != IGNORED),
                spoiled=annotation.spoil.reads if annotation.spoil else "",
            )
        )
    return scored


def load_all(
    annotations: dict[str, Annotation],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]]:
    """Image `[H, W, 3]`, given mask `[H, W]` and predicted logits `[1, H, W]` of each name."""
    for name, annotation in annotations.items():
        image = load_image(name)
        yield image, annotation.given(*image.shape[:2]), segment(image)


def load_image(name: str) -> NDArray[np.uint8]:
    """The photo of that name as `[H, W, 3]` sRGB."""
    with Image.open(HERE / "images" / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


def suspicion(loss_map: NDArray[np.floating], valid: NDArray[np.bool_]) -> float:
    """How much the mask deserves a second look: mean loss over its worst pixels.

    A mean over the whole image drowns a small mistake in thousands of good pixels, so only the
    worst `WORST_SHARE` of the valid pixels counts, at least one. The share is the same
    for all images.

    Args:
        loss_map: `[H, W]` per-pixel cross-entropy in nats.
        valid: `[H, W]`, False where the pixel is ignored.
    """
    values = np.sort(loss_map[valid].astype(np.float64))
    return float(values[-max(1, round(WORST_SHARE * values.size)) :].mean())


def rank(scored: list[Scored]) -> list[Scored]:
    """Worst first; those that look equal in the table are ordered by their mean cross-entropy."""
    return sorted(
        scored,
        key=lambda item: (round(item.suspicion, 2), item.losses["cross_entropy"]),
        reverse=True,
    )


def table(ranking: list[Scored]) -> Table:
    """The ranking for the terminal."""
    title = f"Worst first, by the mean loss of the worst {WORST_SHARE:.0%} of pixels"
    view = Table(title=title, box=None, padding=(0, 1), pad_edge=False)  # fits 80 columns
    for column in ("#", "image", "size", "suspicion", *LOSS_NAMES):
        view.add_column(column, justify="left" if column == "image" else "right", no_wrap=True)
    view.add_column("spoiled by us", no_wrap=True)
    for place, item in enumerate(ranking, start=1):
        height, width = item.mask.shape
        view.add_row(
            str(place),
            item.name,
            f"{width}x{height}",
            f"{item.suspicion:.2f}",
            *(f"{item.losses[label]:.3f}" for label in LOSS_NAMES),
            item.spoiled,
            style="bold" if item.spoiled else "",
        )
    return view


def write_pictures(ranking: list[Scored], out: Path) -> None:
    """One picture for each image and one of all of them, on one scale, into `out`."""
    ceiling = max(1.0, *(float(item.loss_map.max()) for item in ranking))
    for place, item in enumerate(ranking, start=1):
        overlay(item, place, len(ranking), ceiling).save(out / f"{item.name}.png")
    overview(ranking, ceiling).save(out / "overview.png")


def verdict(ranking: list[Scored], console: Console) -> int:
    """Say whether the spoiled masks lead; the exit status."""
    count = sum(bool(item.spoiled) for item in ranking)
    if all(item.spoiled for item in ranking[:count]):
        console.print(f"The {count} masks that were spoiled on purpose lead the list.")
        return 0
    console.print(f"The {count} masks that were spoiled on purpose do NOT lead the list.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
