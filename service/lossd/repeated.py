"""What stands for a document that callers send again and again, so that it is read once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

_LONGEST_BYTES: Final = 4096
"""Of a text that is worth keeping; documents of requests have some hundred."""


def text_of(document: Mapping[str, Any]) -> bytes | None:
    """JSON text of a document, equal for equal ones; None where it cannot stand for it.

    That is where the document is long, or holds what JSON has no word for: orjson writes NaN as
    null, and would pass as that what is to be refused as NaN.

    Example:
        >>> text_of({"losses": ["dice"]}), text_of({"weight": float("nan")}), text_of({"at": {1}})
        (b'{"losses":["dice"]}', None, None)
    """
    try:
        text = orjson.dumps(document)
    except TypeError:
        return None
    return None if len(text) > _LONGEST_BYTES or b"null" in text else text
