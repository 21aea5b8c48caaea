"""Write the two files that README.md's curl command sends, from the image `coins-2`.

`curl/prediction.npy` holds the segmenter's logits as float16 `[1, H, W]`, `curl/mask.png` the
mask as it was drawn. They are committed; run this again after a change of segmenter or drawing.
"""

import numpy as np
from PIL import Image

from annotations import HERE, read
from demo import load_image
from segmenter import segment

NAME = "coins-2"


def main() -> None:
    """Write both files."""
    image = load_image(NAME)
    np.save(HERE / "curl" / "prediction.npy", segment(image).astype(np.float16))
    mask = read().images[NAME].drawn(*image.shape[:2])
    Image.fromarray(mask).save(HERE / "curl" / "mask.png", optimize=True)


if __name__ == "__main__":
    main()
