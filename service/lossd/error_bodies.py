"""The body of an error: a problem document, or what the Open Inference Protocol has instead."""

from __future__ import annotations

import json
from typing import Final

from lossd_client.errors import LossdError
from lossd_client.wire import JSON, PROBLEM

INFERENCE: Final = "/v2"
"""Where the Open Inference Protocol is spoken."""


def is_inference(path: str) -> bool:
    """Whether an address is one of the Open Inference Protocol's."""
    return path == INFERENCE or path.startswith(f"{INFERENCE}/")


def error_body(error: LossdError, path: str) -> tuple[bytes, str]:
    """The body of an answer that tells an error, and its content type.

    Example:
        >>> error_body(LossdError("it is too large"), "/v2/models/dice/infer")
        (b'{"error":"it is too large"}', 'application/json')
    """
    # Escaped to ASCII: an error may repeat text of the caller's that UTF-8 cannot hold.
    if is_inference(path):
        return json.dumps({"error": error.detail}, separators=(",", ":")).encode(), JSON
    return json.dumps(error.problem()).encode(), PROBLEM
