"""cleanlab on arrays, in an environment that has it: `python cleanlab_worker.py`, orders on stdin.

An order is a line of JSON: `{"labels", "probabilities", "ignored", "scores"}`, paths of `[N, H, W]`
and `[N, C, H, W]` arrays, the label that does not count, and whether more than the time is wanted.
The answer, a line of JSON, has the suspicion of each image by each of cleanlab's two scores, points
in its largest regions, and seconds.

cleanlab knows no label that does not count: such pixels get the predicted class, which is never
flagged.
"""

import json
import sys
import time
from typing import Any

import numpy as np
from cleanlab import __version__  # type: ignore[import-not-found]
from cleanlab.segmentation.filter import (  # type: ignore[import-not-found]
    find_label_issues,
)
from cleanlab.segmentation.rank import (  # type: ignore[import-not-found]
    get_label_quality_scores,
)
from scipy import ndimage

_POINTS = 5
_NEIGHBOURS = np.ones((3, 3))


def main() -> None:
    """Answers orders until there are no more."""
    _say({"version": __version__})
    for line in sys.stdin:
        _say(_answer(json.loads(line)))


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    probabilities = np.load(order["probabilities"])
    labels = np.load(order["labels"]).astype(np.int64)
    ignored = labels == order["ignored"]
    labels[ignored] = np.argmax(probabilities, axis=1)[ignored]
    began, began_cpu = time.perf_counter(), time.process_time()
    flagged = find_label_issues(labels, probabilities, n_jobs=1, verbose=False)
    issues_s = time.perf_counter() - began
    answer: dict[str, Any] = {
        "find_label_issues_s": issues_s,
        "find_label_issues_cpu_s": time.process_time() - began_cpu,
    }
    if order["scores"]:
        softmin, _ = get_label_quality_scores(
            labels, probabilities, method="softmin", verbose=False
        )
        answer["softmin"] = (1 - softmin).tolist()
        answer["num_pixel_issues"] = flagged.mean(axis=(1, 2)).tolist()
        answer["points"] = [_points(each) for each in flagged]
    return answer


def _points(flagged: Any) -> list[list[int]]:
    """Innermost pixels of the largest flagged regions, columns and rows."""
    regions, count = ndimage.label(flagged, _NEIGHBOURS)
    sizes = ndimage.sum_labels(flagged, regions, np.arange(1, count + 1))
    found = []
    for number in np.argsort(-np.asarray(sizes), kind="stable")[:_POINTS] + 1:
        depth = ndimage.distance_transform_edt(np.pad(regions == number, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        found.append([int(column), int(row)])
    return found


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
