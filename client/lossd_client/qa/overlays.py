"""Pictures of an image to be looked at: photo, given labels, predicted labels and heat.

Panels are two by two, the disputed regions outlined and numbered in all of them, the points to be
looked at first marked in the photo. What needs telling is written above and below, so that a
picture can be sent on alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lossd_client.qa.classes import ClassList
from lossd_client.qa.colours import HEAT_STOPS, HOT_NATS, IGNORED_COLOUR, Colour, class_colour
from lossd_client.qa.export import Region
from lossd_client.qa.painting import Mask

Rgb = npt.NDArray[np.uint8]

_PANEL_PX: Final = 640
"""Longer side of a panel, for images that are not larger."""
_LARGEST_PANEL_PX: Final = 1280
_GAP_PX: Final = 12
_TITLE_PX: Final = 22
_LINE_PX: Final = 20
_TEXT_PX: Final = 14
_HEADING_PX: Final = 19
_SWATCH_PX: Final = 14
_POINT_PX: Final = 6
_TINT: Final = 0.62
"""How much of a labelled pixel is its class's colour; the rest is the photo."""
_SHOWN_REASONS: Final = 5

_INK: Final = (25, 25, 25)
_QUIET: Final = (95, 95, 95)
_PAPER: Final = (255, 255, 255)
_OUTLINE: Final = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Overlay:
    """What a picture shows.

    Attributes:
        title: the image's name, place and suspicion.
        reason: why it is looked at.
        photo: the image, RGB.
        given: `[H, W]` labels of the annotation.
        predicted: `[H, W]` labels of the model.
        heat_nats: `[H, W]` how much each pixel is disputed.
        regions: the most disputed first.
        points: columns and rows of pixels to be looked at first.
        ignored_label: label that does not count.
    """

    title: str
    reason: str
    photo: Image.Image
    given: Mask
    predicted: Mask
    heat_nats: npt.NDArray[np.float32]
    regions: Sequence[Region]
    points: Sequence[tuple[int, int]]
    ignored_label: int


def draw(overlay: Overlay, classes: ClassList) -> Image.Image:
    """The picture.

    Args:
        overlay: what it shows.
        classes: names of the classes.

    Returns:
        RGB, about as wide as two panels.
    """
    size = _panel_size(overlay.photo.size)
    photo = overlay.photo.resize(size, Image.Resampling.LANCZOS)
    ignored = overlay.given == overlay.ignored_label
    panels = {
        "photo": photo,
        "given": _tinted(photo, overlay.given, ignored),
        "predicted": _tinted(photo, overlay.predicted, np.zeros_like(ignored)),
        f"heat, 0 to {HOT_NATS:.0f} nats": _heat(overlay.heat_nats, size),
    }
    _mark_points(panels["photo"], overlay)
    edges = [_edges(region.mask(), size) for region in overlay.regions]
    for panel in panels.values():
        _outline(panel, overlay, edges)
    return _sheet(panels, overlay, _legend(overlay, classes))


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    longer = max(size)
    scale = min(max(_PANEL_PX, longer), _LARGEST_PANEL_PX) / longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _tinted(photo: Image.Image, labels: Mask, ignored: npt.NDArray[np.bool_]) -> Image.Image:
    """The photo in grey with its classes' colours over it; nothing over what does not count."""
    known = np.where(ignored, 0, labels)
    table = np.array([class_colour(label) for label in range(int(known.max()) + 1)], np.uint8)
    colours = table[known]
    colours[ignored] = IGNORED_COLOUR
    tint = Image.fromarray(colours).resize(photo.size, Image.Resampling.NEAREST)
    return Image.blend(photo.convert("L").convert("RGB"), tint, _TINT)


def _heat(heat_nats: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    places = np.linspace(0, HOT_NATS, len(HEAT_STOPS))
    channels = [np.interp(heat_nats, places, channel) for channel in zip(*HEAT_STOPS, strict=True)]
    colours = np.stack(channels, axis=-1).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def _edges(inside: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """Mask of a region's outline at the size of a panel, outside of the region itself."""
    large = Image.fromarray(inside.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    core = np.pad(np.asarray(large) > 0, 1)
    near = core[:-2, 1:-1] | core[2:, 1:-1] | core[1:-1, :-2] | core[1:-1, 2:]
    return Image.fromarray(((near & ~core[1:-1, 1:-1]) * 255).astype(np.uint8))


def _outline(panel: Image.Image, overlay: Overlay, edges: Sequence[Image.Image]) -> None:
    draw_on = ImageDraw.Draw(panel)
    scale = panel.width / overlay.photo.width
    for number, (region, edge) in enumerate(zip(overlay.regions, edges, strict=True), start=1):
        panel.paste(_OUTLINE, mask=edge)
        left, top, width, height = (side * scale for side in region.bbox)
        box = [left - 2, top - 2, left + width + 1, top + height + 1]
        draw_on.rectangle(box, outline=_INK)
        place = (min(left + width + 3, panel.width - _TEXT_PX), max(top - 2, 0))
        draw_on.text(
            place, str(number), _OUTLINE, _font(_TEXT_PX), stroke_width=2, stroke_fill=_INK
        )


def _mark_points(panel: Image.Image, overlay: Overlay) -> None:
    draw_on = ImageDraw.Draw(panel)
    scale = panel.width / overlay.photo.width
    for column, row in overlay.points:
        x, y = (column + 0.5) * scale, (row + 0.5) * scale
        for radius, colour in ((_POINT_PX + 1, _INK), (_POINT_PX, (255, 64, 64))):
            box = [x - radius, y - radius, x + radius, y + radius]
            draw_on.ellipse(box, outline=colour, width=2)


def _legend(overlay: Overlay, classes: ClassList) -> list[tuple[Colour, str]]:
    """Classes that occur, and what the black pixels are."""
    given = set(np.unique(overlay.given).tolist())
    shown = given | set(np.unique(overlay.predicted).tolist())
    entries = [
        (class_colour(label), name) for label, name in enumerate(classes.names) if label in shown
    ]
    return [*entries, (IGNORED_COLOUR, "ignored")] if overlay.ignored_label in given else entries


def _sheet(
    panels: dict[str, Image.Image], overlay: Overlay, legend: Sequence[tuple[Colour, str]]
) -> Image.Image:
    width, height = next(iter(panels.values())).size
    sheet_width = 2 * width + 3 * _GAP_PX
    reasons = [
        f"{number}  {region.reason}"
        for number, region in enumerate(overlay.regions[:_SHOWN_REASONS], start=1)
    ]
    rows = _legend_rows(legend, sheet_width - 2 * _GAP_PX)
    top = _GAP_PX + _HEADING_PX + 6 + _LINE_PX
    bottom = top + 2 * (_TITLE_PX + height + _GAP_PX)
    lines = len(rows) + len(reasons)
    sheet = Image.new("RGB", (sheet_width, bottom + lines * _LINE_PX + _GAP_PX), _PAPER)
    draw_on = ImageDraw.Draw(sheet)
    draw_on.text((_GAP_PX, _GAP_PX), overlay.title, _INK, _font(_HEADING_PX))
    draw_on.text((_GAP_PX, _GAP_PX + _HEADING_PX + 6), overlay.reason, _QUIET, _font(_TEXT_PX))
    for place, (title, panel) in enumerate(panels.items()):
        left = _GAP_PX + place % 2 * (width + _GAP_PX)
        above = top + place // 2 * (_TITLE_PX + height + _GAP_PX)
        draw_on.text((left, above), title, _INK, _font(_TEXT_PX))
        sheet.paste(panel, (left, above + _TITLE_PX))
    for at, row in enumerate(rows):
        _draw_legend(draw_on, row, bottom + at * _LINE_PX)
    for at, reason in enumerate(reasons, start=len(rows)):
        draw_on.text((_GAP_PX, bottom + at * _LINE_PX), reason, _INK, _font(_TEXT_PX))
    return sheet


def _legend_rows(
    legend: Sequence[tuple[Colour, str]], width: int
) -> list[list[tuple[int, Colour, str]]]:
    """Entries with their left sides, as many in a row as fit."""
    rows: list[list[tuple[int, Colour, str]]] = [[]]
    left = 0
    for colour, name in legend:
        needed = _SWATCH_PX + 6 + round(_font(_TEXT_PX).getlength(name)) + 18
        if rows[-1] and left + needed > width:
            rows.append([])
            left = 0
        rows[-1].append((_GAP_PX + left, colour, name))
        left += needed
    return rows


def _draw_legend(
    draw_on: ImageDraw.ImageDraw, row: Sequence[tuple[int, Colour, str]], top: int
) -> None:
    for left, colour, name in row:
        box = [left, top + 2, left + _SWATCH_PX, top + 2 + _SWATCH_PX]
        draw_on.rectangle(box, fill=colour, outline=_INK)
        draw_on.text((left + _SWATCH_PX + 6, top), name, _INK, _font(_TEXT_PX))


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the pictures look the same everywhere."""
    return ImageFont.load_default(size_px)
