"""The benchmarks run to their end and write what they found; how fast is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lossd.losses import LOSSES

ROOT = Path(__file__).parents[1]
NAMES = [
    "core",
    "stages",
    "sample_losses",
    "mixed_sizes",
    "batch_sizes",
    "accuracy",
    "transfer",
    "client_transfer",
    "references",
    "never_seen",
    "memory",
    "where_time_goes",
    "event_loop",
    "cuda",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks", *NAMES]
    command += ["--quick", "--kernels", "eager", "--out", str(folder)]
    done = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    # 1 is a missed accuracy target too, which other tests hold; here every report has to be there
    assert len(list(folder.glob("*.json"))) == len(NAMES), done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_writes_rows_and_where_they_come_from(results: Path, name: str) -> None:
    report = json.loads((results / f"{name}.json").read_text())
    assert all(section["rows"] for section in report["sections"])
    assert {"torch", "device", "processor", "date", "torch_threads"} <= report["environment"].keys()


def test_accuracy_looks_at_every_loss_of_the_catalogue(results: Path) -> None:
    report = json.loads((results / "accuracy.json").read_text())
    assert {row["loss"] for row in report["sections"][0]["rows"]} == set(LOSSES)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")))
def test_a_stored_result_is_readable(path: Path) -> None:
    assert json.loads(path.read_text())["name"] == path.stem
