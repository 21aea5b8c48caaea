"""What is looked at before a message arrives: who calls, and how long the message may take.

gRPC reads a message of a unary call before the method sees anything of the call. So every method
takes a stream of messages here, of which a unary one reads the first: on the wire it is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from lossd_client.errors import BodyTimeoutError, UnauthorizedError

Headers = Iterable[tuple[bytes, bytes]]
Unary = Callable[[Any, Any], Coroutine[Any, Any, Any]]
Stream = Callable[[Any, Any], AsyncIterator[Any]]

_OPEN_METHODS: Final = ("ServerLive", "ServerReady")
"""Need no key, as the health calls of HTTP."""


@dataclass(frozen=True)
class Gate:
    """The way in for every call.

    Attributes:
        check_key: raises UnauthorizedError for headers that do not let a caller in.
        message_timeout_s: how long the message of a unary call may take to arrive.
    """

    check_key: Callable[[Headers], object]
    message_timeout_s: float

    def unary(self, name: str, method: Unary) -> Unary:
        """A method of one message, as one that is called before its message is there."""

        async def call(requests: AsyncIterator[Any], context: Any) -> Any:
            await self._check(name, context)
            return await method(await self._first(requests, context), context)

        return call

    def stream(self, name: str, method: Stream) -> Stream:
        """A method of many messages; they may take their time."""

        async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            await self._check(name, context)
            async for answer in method(requests, context):
                yield answer

        return call

    async def _check(self, name: str, context: Any) -> None:
        if name in _OPEN_METHODS:
            return
        try:
            self.check_key(_headers(context))
        except UnauthorizedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.detail)

    async def _first(self, requests: AsyncIterator[Any], context: Any) -> Any:
        try:
            async with asyncio.timeout(self.message_timeout_s):
                return await anext(requests)
        except TimeoutError:
            text = f"{BodyTimeoutError.title()} No message in {self.message_timeout_s:g} s."
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        except StopAsyncIteration:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")


def _headers(context: Any) -> Headers:
    """Text of the metadata as headers of HTTP."""
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            yield name.encode(), value.encode("latin-1", "replace")
