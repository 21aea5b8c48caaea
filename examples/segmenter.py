"""A small segmenter that finds the objects of a photo from the photo alone.

It knows one thing about the world: what touches the frame of the picture is mostly background.

1. Convert to CIE L*a*b* and smooth with a Gaussian of `sigma_px`.
2. Flatten the illumination: fit a quadratic surface to the colour along the frame, drop outliers,
   then refit it to every pixel that looks like background, and subtract it.
3. Divide each channel by its robust spread over the background; the length of what is left says
   how unlike the background a pixel is.
4. Cut that distance at Otsu's threshold times a factor, fill holes, remove specks.

Steps 1 to 4 run for every pair of smoothing and factor, and each run is one vote. The share of
votes, softened by a pixel because no run knows the outline better than that, becomes log-odds.
Runs agree in the middle of things and differ along unclear edges, so the confidence is earned
rather than assumed. Nothing is trained, nothing is random, and no mask is read.

Known mistakes: an object that fills most of the frame is taken for background, thin structures
(rigging, hair, the gaps of a tail) are rounded off, and shadows count as objects.

References:
    Otsu, "A threshold selection method from gray-level histograms", 1979,
    https://doi.org/10.1109/TSMC.1979.4310076
    Seung, Opper and Sompolinsky, "Query by committee", 1992,
    https://doi.org/10.1145/130385.130417 (disagreement of runs as a measure of doubt)
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import color, filters, morphology

SMOOTHINGS_PX: Final = (1.0, 1.5, 2.0)
THRESHOLD_FACTORS: Final = (0.5, 0.65, 0.8, 0.95, 1.1)
FRAME_WIDTH_PX: Final = 4
REFITS: Final = 4
OUTLIER_SPREADS: Final = 3.0
SPREAD_FLOOR_LAB: Final = 1.0
SPECK_SHARE: Final = 0.002
OUTLINE_DOUBT_PX: Final = 1.0

Pixels = NDArray[np.float64]
Flags = NDArray[np.bool_]


def segment(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Log-odds that each pixel belongs to an object.

    Args:
        image: `[H, W]` grey or `[H, W, 3]` sRGB.

    Returns:
        `[1, H, W]`, positive inside objects, within ±log(2 · runs + 1), which is ±3.4.
    """
    rgb = image if image.ndim == 3 else np.stack([image] * 3, axis=-1)  # noqa: PLR2004 (an RGB axis)
    lab = np.asarray(color.rgb2lab(rgb), dtype=np.float64)
    votes = np.zeros(lab.shape[:2])
    for sigma_px in SMOOTHINGS_PX:
        distance = distance_from_background(lab, sigma_px)
        otsu = float(filters.threshold_otsu(distance))
        for factor in THRESHOLD_FACTORS:
            votes += without_specks(distance > factor * otsu)
    runs = len(SMOOTHINGS_PX) * len(THRESHOLD_FACTORS)
    share = (ndimage.gaussian_filter(votes, OUTLINE_DOUBT_PX) + 0.5) / (runs + 1)
    return np.asarray(np.log(share / (1 - share))[np.newaxis], dtype=np.float32)


def distance_from_background(lab: Pixels, sigma_px: float) -> Pixels:
    """How many background spreads each pixel `[H, W]` lies from the background's colour.

    Cut at the 99th percentile, so that a few highlights do not move Otsu's threshold.
    """
    smooth = ndimage.gaussian_filter(lab, (sigma_px, sigma_px, 0))
    terms = quadratic_terms(*lab.shape[:2])
    background = frame(*lab.shape[:2])
    for _ in range(REFITS):
        surface, *_ = np.linalg.lstsq(terms[background], smooth[background], rcond=None)
        residual = smooth - terms @ surface
        distance = np.linalg.norm(residual / spread(residual[background]), axis=-1)
        background = distance < OUTLIER_SPREADS
    return np.asarray(np.minimum(distance, np.percentile(distance, 99)))


def quadratic_terms(height_px: int, width_px: int) -> Pixels:
    """1, x, y, x², xy, y² at each pixel, `[H, W, 6]`, with x and y in [-1, 1]."""
    y, x = np.meshgrid(np.linspace(-1, 1, height_px), np.linspace(-1, 1, width_px), indexing="ij")
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def frame(height_px: int, width_px: int) -> Flags:
    """The pixels within `FRAME_WIDTH_PX` of the picture's edge."""
    flags = np.ones((height_px, width_px), dtype=np.bool_)
    flags[FRAME_WIDTH_PX:-FRAME_WIDTH_PX, FRAME_WIDTH_PX:-FRAME_WIDTH_PX] = False
    return flags


def spread(residual: Pixels) -> Pixels:
    """The robust standard deviation of each channel of `[N, 3]`.

    The floor keeps a channel without colour, as in a grey photo, from dividing by zero.
    """
    deviation = np.median(np.abs(residual - np.median(residual, axis=0)), axis=0)
    return np.asarray(np.maximum(1.4826 * deviation, SPREAD_FLOOR_LAB))


def without_specks(flags: Flags) -> Flags:
    """`flags` with holes filled and regions below `SPECK_SHARE` of the picture removed."""
    filled = ndimage.binary_fill_holes(flags)
    return np.asarray(
        morphology.remove_small_objects(filled, max_size=int(SPECK_SHARE * flags.size))
    )
