"""Who may ask: decided from the head of a request, before its body is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.callers import ANONYMOUS, Caller
from lossd.http_protocol import PROBES
from lossd.keys import KeyFile
from lossd.loopback import is_sent_from_here
from lossd.pages.serving import is_page
from lossd_client.errors import UnauthorizedError

_METRICS: Final = "/metrics"


WithoutKey = Literal["refused", "anonymous"]
"""What becomes of requests that show no key. A wrong one is always refused."""


class Access:
    """Lets those in who show a valid key, and notes whose it is.

    Args:
        app: what is behind.
        keys: those that are valid.
        without_key: what becomes of requests that show none.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile, without_key: WithoutKey) -> None:
        self._app = app
        self._keys = keys
        self._without_key = without_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has.

        Raises:
            UnauthorizedError: it shows no valid key and needs one.
        """
        if scope["type"] == "http" and scope["path"] not in PROBES:
            scope["state"]["caller"] = self._caller(scope)
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        open_to_all = is_page(scope) or (scope["path"] == _METRICS and is_sent_from_here(scope))
        without_key = "anonymous" if open_to_all else self._without_key
        return find_caller(self._keys, without_key, scope["headers"])


def find_caller(
    keys: KeyFile, without_key: WithoutKey, headers: Iterable[tuple[bytes, bytes]]
) -> Caller:
    """Whose a request with these headers is.

    Raises:
        UnauthorizedError: they show no valid key and must.
    """
    shown = shown_key(headers)
    if shown is None and without_key == "anonymous":
        return ANONYMOUS
    caller = keys.owners().owner(shown or "")
    if caller is None:
        raise UnauthorizedError
    return caller


def shown_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key in the headers of a request.

    Returns:
        None if no header is meant to show one; an empty text if one is malformed or two differ.

    Example:
        >>> shown_key([(b"authorization", b"Bearer lossd_1_a"), (b"x-api-key", b"lossd_1_a")])
        'lossd_1_a'
        >>> shown_key([(b"authorization", b"Bearer lossd_1_a"), (b"x-api-key", b"lossd_2_b")])
        ''
    """
    shown = set()
    for name, value in headers:
        text = value.decode("latin-1")
        if name == b"x-api-key":
            shown.add(text)
        elif name == b"authorization":
            scheme, _, credentials = text.partition(" ")
            shown.add(credentials.strip() if scheme.lower() == "bearer" else "")
    if not shown:
        return None
    return shown.pop() if len(shown) == 1 else ""
