"""`lossd.evaluate`: an evaluator that the process has without making one."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from lossd.evaluator import Evaluator
from lossd.result import Result

P = ParamSpec("P")


class _OfTheProcess:
    """The evaluator of those who make none: made when it is first asked for, anew after a fork."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._evaluator: Evaluator | None = None

    def get(self) -> Evaluator:
        with self._lock:
            if self._evaluator is None:
                self._evaluator = Evaluator()
            return self._evaluator


_of_the_process = _OfTheProcess()


def _by_the_process(
    method: Callable[Concatenate[Evaluator, P], Result],
) -> Callable[P, Result]:
    """A method of the process's own evaluator as a function."""

    @functools.wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> Result:
        return method(_of_the_process.get(), *args, **kwargs)

    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())[1:]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


evaluate = _by_the_process(Evaluator.evaluate)
