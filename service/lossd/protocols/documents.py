"""JSON texts inside and around bodies, read strictly: no NaN, no lone surrogates, one object."""

from __future__ import annotations

from typing import Any

import orjson

from lossd.protocols.files import Budget
from lossd_client.errors import MalformedBodyError

Text = str | bytes | bytearray | memoryview


def parse(text: Text, what: str, budget: Budget) -> Any:
    """Value of a JSON text.

    Raises:
        MalformedBodyError: it is not JSON; the message says which text (`what`) and where.
        TooLargeError: its lists and objects could take more memory than the budget has for them.
    """
    budget.take_json(text, what)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        msg = f"{what} is not JSON: {error}"
        raise MalformedBodyError(msg) from error


def parse_object(text: Text, what: str, budget: Budget) -> dict[str, Any]:
    """Object of a JSON text.

    Raises:
        MalformedBodyError: it is not JSON, or not an object.
        TooLargeError: its lists and objects could take more memory than the budget has for them.
    """
    document = parse(text, what, budget)
    if not isinstance(document, dict):
        msg = f"{what} is not a JSON object"
        raise MalformedBodyError(msg)
    return document


def read_losses(text: str, what: str, budget: Budget) -> list[Any]:
    """Losses of a text: names between commas, or JSON.

    Raises:
        MalformedBodyError: it begins like JSON and is none.
        TooLargeError: likewise, and it takes more than the budget.

    Example:
        >>> read_losses('dice, focal', "losses", Budget(1 << 20))
        ['dice', 'focal']
        >>> read_losses('{"name": "dice"}', "losses", Budget(1 << 20))
        [{'name': 'dice'}]
    """
    if text.lstrip().startswith(("[", "{")):
        given = parse(text, what, budget)
        return given if isinstance(given, list) else [given]
    return [name.strip() for name in text.split(",") if name.strip()]
