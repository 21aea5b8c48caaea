"""The catalogue of losses: one function each, one file per family.

Importing this package files every loss in `LOSSES`: every module beside this file is imported.
"""

import importlib
import pkgutil

from lossd.losses.options import Options
from lossd.losses.registry import ALIASES, LOSSES, Loss, find_loss
from lossd.losses.sums import Sums, Task

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ALIASES", "LOSSES", "Loss", "Options", "Sums", "Task", "find_loss"]
