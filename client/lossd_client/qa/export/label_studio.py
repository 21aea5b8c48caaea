"""Disputed regions as Label Studio tasks with predictions, to be imported as they are."""

from collections.abc import Sequence
from typing import Any

from lossd_client.qa.export.regions import Region, ReviewedImage, by_image, message
from lossd_client.qa.rle import encode_label_studio

MODEL_VERSION = "lossd"


def label_studio_tasks(
    regions: Sequence[Region],
    images: Sequence[ReviewedImage],
    *,
    from_name: str = "label",
    to_name: str = "image",
    image_key: str = "image",
) -> list[dict[str, Any]]:
    """Tasks of the images that have regions, each region a brush of the predicted class.

    Args:
        regions: of all images.
        images: with the addresses that the annotations' file has; else the file name is written.
        from_name: name of the `BrushLabels` tag in the project's labelling configuration.
        to_name: name of its `Image` tag.
        image_key: key of the address in a task's data, what `$` stands before in `value`.

    Returns:
        The list, ready for `json.dumps`. A prediction's score is the image's suspicion, or the
        highest score of its regions.

    Raises:
        ValueError: a region of an image that is not there, or a malformed one.
    """
    return [
        {
            "data": {image_key: image.url or image.file_name},
            "predictions": [
                {
                    "model_version": MODEL_VERSION,
                    "score": own[0].score if image.suspicion is None else image.suspicion,
                    "result": [
                        # The most disputed comes last, because later regions lie on top.
                        _result(region, f"{MODEL_VERSION}-{place}", from_name, to_name)
                        for place, region in enumerate(reversed(own))
                    ],
                }
            ],
        }
        for image, own in by_image(regions, images)
    ]


def _result(region: Region, number: str, from_name: str, to_name: str) -> dict[str, Any]:
    return {
        "id": number,
        "from_name": from_name,
        "to_name": to_name,
        "type": "brushlabels",
        "original_width": region.size[1],
        "original_height": region.size[0],
        "image_rotation": 0,
        "score": region.score,
        "meta": {"text": [message(region)]},
        "value": {
            "format": "rle",
            "rle": encode_label_studio(region.mask()),
            "brushlabels": [region.predicted],
        },
    }
