"""Compiled functions that are kept on disk whole.

What `torch.compile` keeps by itself is machine code. A process that starts still has to trace every
function through its frames, which takes a second each and is most of a start. A function that is
kept whole is read in some hundredths of a second. Called with tensors of other dtypes or shapes
than it was made for, it raises an error instead of compiling. It asks for nothing else: what a
program may set of torch besides, like deterministic algorithms, is nothing to code that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor

IS_AVAILABLE: Final = hasattr(torch.compiler, "load_compiled_function")
"""Whether this torch can; its interface is young."""

Function = Callable[..., Any]


class _Kept(Protocol):
    """What torch makes of a function ahead of time."""

    def __call__(self, *arguments: Tensor) -> Any: ...

    def save_compiled_function(self, path: str) -> object: ...


def compile_ahead(
    function: Function, arguments: Sequence[Tensor], options: Mapping[str, Any], path: Path
) -> Function:
    """A function compiled for arguments like these, and written to a file.

    Args:
        function: of tensors.
        arguments: their dynamic axes marked.
        options: of torch's compiler.
        path: is written whole or not at all.
    """
    options = {**options, "guard_filter_fn": _those_of_tensors}
    traced = torch.compile(function, dynamic=True, fullgraph=True, options=options)
    # Python's numbers are constants of the graph; as inputs each of them would be traced twice.
    with torch._dynamo.config.patch(specialize_float=True):  # noqa: SLF001 - its documented entry
        kept = cast("_Kept", cast("Any", traced).aot_compile((tuple(arguments), {})))
    kept.save_compiled_function(str(path))
    return kept


def _those_of_tensors(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for guard in guards]


def read(path: Path) -> Function:
    """The function that such a file holds.

    Raises:
        FileNotFoundError: there is none.
        Exception: of any kind: it is of another torch, or is no such file.
    """
    with path.open("rb") as file:
        return torch.compiler.load_compiled_function(file)
