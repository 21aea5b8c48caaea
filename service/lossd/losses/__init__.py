"""The catalogue of losses: one function each, one file per family.

Importing this package files every loss in `LOSSES`.
"""

from lossd.losses import compound, distribution, region
from lossd.losses.declare import ALIASES, LOSSES, Loss, Options, find_loss
from lossd.losses.sums import Sums, Task

__all__ = [
    "ALIASES",
    "LOSSES",
    "Loss",
    "Options",
    "Sums",
    "Task",
    "compound",
    "distribution",
    "find_loss",
    "region",
]
