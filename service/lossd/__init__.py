"""lossd: a loss daemon for segmentation masks and logits, and its engine as a library.

Importing this package imports neither torch nor the engine; the first use of a name below does.

Example:
    >>> import lossd
    >>> sorted(lossd.__all__)
    ['Evaluator', 'Result', '__version__', 'evaluate']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossd.evaluator import Evaluator
    from lossd.in_process import evaluate
    from lossd.result import Result

__all__ = ["Evaluator", "Result", "__version__", "evaluate"]

__version__ = "0.1.0"

_HOMES = {
    "Evaluator": "lossd.evaluator",
    "Result": "lossd.result",
    "evaluate": "lossd.in_process",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
