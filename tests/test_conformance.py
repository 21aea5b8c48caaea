"""Cases that other people's libraries computed, where they lie beside the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from lossd.losses import LOSSES

RUN = Path(__file__).parents[2] / "shared" / "conformance" / "run.py"


@pytest.mark.skipif(not RUN.exists(), reason="the conformance cases are not beside the repository")
def test_every_case_of_every_loss_passes(service_url: str) -> None:
    chosen = [word for name in LOSSES for word in ("--only", name)]
    done = subprocess.run(  # noqa: S603 - the project's own cases
        [sys.executable, RUN, service_url, *chosen], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
