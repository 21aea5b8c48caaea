"""Pictures of scored images: photo, given mask, prediction and per-pixel loss side by side.

Colours are safe for colour-blind readers: the outline is a sky blue with a dark casing, ignored
pixels are yellow, and both scales grow steadily from dark to light, so they also work in grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import measure

from annotations import IGNORED, Mask

PANEL_PX: Final = 300
GAP_PX: Final = 14
TITLE_PX: Final = 24
CAPTION_PX: Final = 64
BAR_PX: Final = 30
OVERVIEW_COLUMNS: Final = 3
OVERVIEW_PANEL_PX: Final = 210

INK: Final = (25, 25, 25)
QUIET: Final = (95, 95, 95)
PAPER: Final = (255, 255, 255)
OUTLINE: Final = (86, 180, 233)
IGNORED_OUTLINE: Final = (240, 228, 66)
SPOILED: Final = (213, 94, 0)

PROBABILITY_STOPS: Final = (
    (0, 24, 62),
    (66, 78, 108),
    (124, 123, 120),
    (187, 173, 105),
    (254, 232, 69),
)
LOSS_STOPS: Final = ((10, 8, 24), (88, 22, 106), (186, 54, 84), (245, 125, 21), (252, 250, 165))

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scored:
    """One image with everything that is known about it.

    Attributes:
        name: the file's name without extension.
        image: `[H, W, 3]` sRGB.
        mask: `[H, W]`, as handed to the service.
        logits: `[1, H, W]`.
        loss_map: `[H, W]` per-pixel cross-entropy in nats, as the service answered.
        losses: value of each loss by name.
        suspicion: what the ranking sorts by, in nats; higher is looked at first.
        spoiled: what was done to the mask on purpose, or empty. Shown, never used to rank.
    """

    name: str
    image: Rgb
    mask: Mask
    logits: NDArray[np.float32]
    loss_map: NDArray[np.float32]
    losses: dict[str, float]
    suspicion: float
    spoiled: str


def overlay(scored: Scored, rank: int, of: int, loss_ceiling: float) -> Image.Image:
    """The four panels of one image with their scales and a caption.

    Args:
        scored: what to show.
        rank: place in the ranking, from 1.
        of: how many images there are.
        loss_ceiling: loss in nats at the light end of the scale, the same for all pictures.
    """
    panels = [
        photo(scored, PANEL_PX),
        outlined(scored, PANEL_PX),
        coloured(probability(scored), PROBABILITY_STOPS, PANEL_PX),
        coloured(scored.loss_map / loss_ceiling, LOSS_STOPS, PANEL_PX),
    ]
    titles = ["image", "given mask", "prediction", "loss of each pixel"]
    width, height = panels[0].size
    step = max(width, PANEL_PX // 2) + GAP_PX
    canvas = Image.new(
        "RGB",
        (4 * step + GAP_PX, CAPTION_PX + TITLE_PX + height + BAR_PX + GAP_PX),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    write_caption(draw, scored, f"{rank} of {of}")
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = GAP_PX + index * step
        draw.text((left, CAPTION_PX), title, INK, font(14))
        canvas.paste(panel, (left, CAPTION_PX + TITLE_PX))
    top = CAPTION_PX + TITLE_PX + height + 6
    paste_scale(canvas, (GAP_PX + 2 * step, top), width, PROBABILITY_STOPS, ("0", "P(object)", "1"))
    ends = ("0", "nats", f"{loss_ceiling:.1f}")
    paste_scale(canvas, (GAP_PX + 3 * step, top), width, LOSS_STOPS, ends)
    return canvas


def overview(ranking: Sequence[Scored], loss_ceiling: float) -> Image.Image:
    """All images, worst first, row by row: the given mask beside the loss of each pixel."""
    tile_width = 2 * OVERVIEW_PANEL_PX + 6 + 2 * GAP_PX
    rows = [
        ranking[start : start + OVERVIEW_COLUMNS]
        for start in range(0, len(ranking), OVERVIEW_COLUMNS)
    ]
    heights = [
        max(panel_size(scored.mask, OVERVIEW_PANEL_PX)[1] for scored in row) + 24 + 2 * GAP_PX
        for row in rows
    ]
    canvas = Image.new("RGB", (OVERVIEW_COLUMNS * tile_width, sum(heights)), PAPER)
    top = GAP_PX
    for row_index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, scored in enumerate(row):
            place = row_index * OVERVIEW_COLUMNS + column + 1
            paste_tile(canvas, (column * tile_width + GAP_PX, top), scored, place, loss_ceiling)
        top += height
    return canvas


def paste_tile(
    canvas: Image.Image, corner: tuple[int, int], scored: Scored, place: int, loss_ceiling: float
) -> None:
    """One image of the overview: a line of text, the given mask and the loss of each pixel."""
    left, top = corner
    draw = ImageDraw.Draw(canvas)
    title = f"{place}  {scored.name}  {scored.suspicion:.2f}"
    draw.text((left, top), title, INK, font(15))
    offset = draw.textlength(title + "   ", font(15))
    draw.text((left + offset, top), scored.spoiled, SPOILED, font(15))
    given = outlined(scored, OVERVIEW_PANEL_PX)
    heat = coloured(scored.loss_map / loss_ceiling, LOSS_STOPS, OVERVIEW_PANEL_PX)
    canvas.paste(given, (left, top + 24))
    canvas.paste(heat, (left + given.width + 6, top + 24))


def write_caption(draw: ImageDraw.ImageDraw, scored: Scored, place: str) -> None:
    """Name, place and values in two lines at the top of the picture."""
    heading = f"{scored.name}   {place}   suspicion {scored.suspicion:.2f}"
    draw.text((GAP_PX, 10), heading, INK, font(19))
    if scored.spoiled:
        offset = draw.textlength(heading + "   ", font(19))
        draw.text((GAP_PX + offset, 10), f"spoiled: {scored.spoiled}", SPOILED, font(19))
    height, width = scored.mask.shape
    values = "   ".join(f"{name} {value:.3f}" for name, value in scored.losses.items())
    draw.text((GAP_PX, 37), f"{width} x {height} px   {values}", QUIET, font(14))


def paste_scale(
    canvas: Image.Image,
    corner: tuple[int, int],
    width: int,
    stops: Sequence[tuple[int, int, int]],
    labels: tuple[str, str, str],
) -> None:
    """A colour bar with its two ends and its unit written below."""
    left, top = corner
    bar = paint_scale(np.linspace(0, 1, width)[np.newaxis].repeat(8, axis=0), stops)
    canvas.paste(Image.fromarray(bar), corner)
    draw = ImageDraw.Draw(canvas)
    places = zip(labels, (left, left + width // 2, left + width), ("la", "ma", "ra"), strict=True)
    for label, x, anchor in places:
        draw.text((x, top + 11), label, QUIET, font(12), anchor=anchor)


def photo(scored: Scored, panel_px: int) -> Image.Image:
    """The image, enlarged or reduced so that its longer side is `panel_px`."""
    size = panel_size(scored.mask, panel_px)
    return Image.fromarray(scored.image).resize(size, Image.Resampling.BICUBIC)


def outlined(scored: Scored, panel_px: int) -> Image.Image:
    """The image with the given mask's outline, and that of ignored pixels in yellow."""
    panel = photo(scored, panel_px)
    scale = panel.width / scored.mask.shape[1]
    draw = ImageDraw.Draw(panel)
    for label, colour in ((IGNORED, IGNORED_OUTLINE), (1, OUTLINE)):
        padded = np.pad(scored.mask == label, 1).astype(np.float64)
        for contour in measure.find_contours(padded, 0.5):
            line = [((x - 0.5) * scale, (y - 0.5) * scale) for y, x in contour]
            draw.line(line, INK, width=4)
            draw.line(line, colour, width=2)
    return panel


def probability(scored: Scored) -> NDArray[np.float64]:
    """The predicted probability of an object, `[H, W]`."""
    return np.asarray(1 / (1 + np.exp(-scored.logits[0].astype(np.float64))))


def coloured(
    values: NDArray[np.floating], stops: Sequence[tuple[int, int, int]], panel_px: int
) -> Image.Image:
    """`values` `[H, W]` in [0, 1] as colours, one flat square for each pixel."""
    size = panel_size(values, panel_px)
    return Image.fromarray(paint_scale(values, stops)).resize(size, Image.Resampling.NEAREST)


def paint_scale(values: NDArray[np.floating], stops: Sequence[tuple[int, int, int]]) -> Rgb:
    """Values in [0, 1] as sRGB, linear between the evenly spaced `stops`."""
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, places, channel) for channel in zip(*stops, strict=True)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def panel_size(like: NDArray[np.generic], panel_px: int) -> tuple[int, int]:
    """Width and height of a panel whose longer side is `panel_px`."""
    height, width = like.shape
    scale = panel_px / max(height, width)
    return round(width * scale), round(height * scale)


def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the pictures look the same everywhere."""
    return ImageFont.load_default(size_px)
