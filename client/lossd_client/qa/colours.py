"""Colours of classes and of heat, the same in every picture and on the page.

They are told apart with red-green blindness as well: neighbours differ in hue and lightness, and
the scale of heat grows steadily lighter, so that it also works in grey.
"""

import colorsys
from typing import Final

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

IGNORED_COLOUR: Final[Colour] = (0, 0, 0)
"""Pixels that do not count."""
HEAT_STOPS: Final[tuple[Colour, ...]] = (
    *((10, 8, 24), (88, 22, 106), (186, 54, 84), (245, 125, 21), (252, 250, 165)),
)
"""From cold to hot, evenly spaced."""
HOT_NATS: Final = 8.0
"""Heat at the light end of the scale."""

# Later classes go round the circle of hues again.
_FIRST_COLOURS: Final[tuple[Colour, ...]] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)),
    *((213, 94, 0), (204, 121, 167), (140, 86, 75), (148, 103, 189), (127, 127, 127)),
    *((153, 255, 153), (23, 190, 207), (227, 26, 28), (178, 223, 138)),
)
_GOLDEN_ANGLE: Final = 0.618033988749895


def class_colour(label: int) -> Colour:
    """Colour of a class, the same in every picture.

    Example:
        >>> class_colour(0), class_colour(20) != class_colour(21)
        ((230, 159, 0), True)
    """
    if label < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[label]
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_ANGLE % 1, 0.55 + label % 3 * 0.2, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)
