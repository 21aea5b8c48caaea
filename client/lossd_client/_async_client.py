"""The asynchronous client: sockets and sleeping; the rest is in `_protocol` and `_retry`."""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from lossd_client._protocol import (
    CATALOGUE,
    LIMITS,
    READY,
    InputObject,
    Losses,
    Reply,
    Request,
    client_headers,
    evaluate_request,
    read_catalogue,
    read_document,
    read_result,
)
from lossd_client._result import Result
from lossd_client._retry import Attempts, Outcome, is_ready, settle
from lossd_client._stream import (
    READ_AHEAD_FACTOR,
    Call,
    OnError,
    Progress,
    check_options,
    common_arguments,
    progress_bar,
)
from lossd_client._tensors import TensorLike
from lossd_client._url import checked_url
from lossd_client.wire import Aggregate, Gradient, GradientDtype, Preset, Task

_Item = TypeVar("_Item")


class AsyncClient:
    """A lossd service, as seen by asyncio code; the same methods as `Client`.

    Args:
        url: where the service is, e.g. `http://127.0.0.1:8000`; a path prefix is kept.
        api_key: sent as `Authorization: Bearer …`; never shown, never taken from the
            environment.
        timeout_s: time of one call in seconds, retries and waiting included.
        retries: how often a call is repeated after 429, 503 or a failed connection.
        transport: way to the service, for Unix sockets or certificates of one's own; httpx's
            default if None.

    Raises:
        ValueError: as for `Client`.

    Example:
        >>> async def dice_of(logits, target):
        ...     async with AsyncClient("http://127.0.0.1:8000") as client:
        ...         result = await client.evaluate("dice", logits=logits, target=target)
        ...     return result["dice"]
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = checked_url(url, timeout_s=timeout_s, retries=retries)
        self._timeout_s = timeout_s
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=client_headers(api_key),
            limits=httpx.Limits(),  # the caller's concurrency is the bound
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._http.aclose()

    async def evaluate(
        self,
        losses: Losses,
        *,
        logits: TensorLike | None = None,
        target: TensorLike | None = None,
        mask: TensorLike | None = None,
        weight_map: TensorLike | None = None,
        probabilities: TensorLike | None = None,
        task: Task | None = None,
        ignore_index: int | None = None,
        gradient: Gradient = "none",
        gradient_dtype: GradientDtype | None = None,
        maps: bool = False,
        per_class: bool = False,
        statistics: bool = False,
        aggregate: Aggregate = "sample",
        spacing: Sequence[float] | None = None,
        preset: Preset | None = None,
        timeout_ms: float | None = None,
        request_id: str | None = None,
        inputs: Sequence[InputObject] | None = None,
        **tensors: TensorLike | None,
    ) -> Result:
        """Losses of every sample; arguments, result and errors as in `Client.evaluate`.

        Tensors are fetched from an accelerator and laid out before anything is awaited.
        """
        request = evaluate_request(
            losses,
            tensors={
                "logits": logits,
                "target": target,
                "mask": mask,
                "weight_map": weight_map,
                "probabilities": probabilities,
                **tensors,
            },
            inputs=inputs,
            options={
                "task": task,
                "ignore_index": ignore_index,
                "gradient": gradient,
                "gradient_dtype": gradient_dtype,
                "maps": maps,
                "per_class": per_class,
                "statistics": statistics,
                "aggregate": aggregate,
                "spacing": spacing,
                "preset": preset,
                "timeout_ms": timeout_ms,
            },
            request_id=request_id,
        )
        return read_result(await self._exchange(request), input_count=request.input_count)

    @overload
    def evaluate_many(
        self,
        requests: Iterable[Call] | AsyncIterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: Literal["raise"] = "raise",
        **common: object,
    ) -> AsyncGenerator[Result, None]: ...

    @overload
    def evaluate_many(
        self,
        requests: Iterable[Call] | AsyncIterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: Literal["return"],
        **common: object,
    ) -> AsyncGenerator[Result | Exception, None]: ...

    def evaluate_many(
        self,
        requests: Iterable[Call] | AsyncIterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: OnError = "raise",
        **common: object,
    ) -> AsyncGenerator[Result | Exception, None]:
        """Results of many requests, in their order; as in `Client.evaluate_many`.

        Args:
            requests: keyword arguments of one `evaluate` each, from an iterable or an
                asynchronous iterable.
            losses: losses of every request that names none.
            concurrency: requests under way at a time, at least 1.
            progress: a bar on standard error, with rate, or none.
            on_error: `raise` an item's error when its turn comes, or `return` it in the place of
                its result.
            **common: further arguments of `evaluate` for every request that does not state them.

        Returns:
            An asynchronous iterator of results. Closing it cancels what is under way.

        Raises:
            ValueError: `concurrency`, `progress` or `on_error` has no meaning.
        """
        check_options(concurrency, progress, on_error)
        return self._many(
            requests, common_arguments(losses, common), concurrency, progress, on_error
        )

    async def losses(self) -> list[dict[str, Any]]:
        """Catalogue of the service, as in `Client.losses`."""
        return read_catalogue(await self._exchange(CATALOGUE))

    async def limits(self) -> dict[str, Any]:
        """Limits of the service, as in `Client.limits`."""
        document: dict[str, Any] = read_document(await self._exchange(LIMITS))
        return document

    async def ready(self) -> bool:
        """Whether the service can be reached and takes work, as in `Client.ready`."""
        attempts = Attempts(retries=0, timeout_s=self._timeout_s)
        return is_ready(await self._attempt(READY, attempts), self._url)

    async def _exchange(self, request: Request) -> Reply:
        attempts = Attempts(retries=self._retries, timeout_s=self._timeout_s)
        while True:
            outcome = await self._attempt(request, attempts)
            delay_s = attempts.delay_s(outcome)
            if delay_s is None:
                return settle(outcome, self._url)
            await asyncio.sleep(delay_s)

    async def _attempt(self, request: Request, attempts: Attempts) -> Outcome:
        try:
            async with (
                asyncio.timeout(attempts.remaining_s()),
                self._http.stream(
                    request.method,
                    request.path,
                    headers=request.headers,
                    content=_each(request.pieces()) if request.parts else None,
                    timeout=attempts.remaining_s(),
                ) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                return Reply(response.status_code, response.headers, body)
        except (httpx.RequestError, TimeoutError) as error:
            return error

    async def _many(
        self,
        requests: Iterable[Call] | AsyncIterable[Call],
        common: Mapping[str, Any],
        concurrency: int,
        progress: Progress,
        on_error: OnError,
    ) -> AsyncGenerator[Result | Exception, None]:
        source = _each(requests)
        slots = asyncio.Semaphore(concurrency)
        waiting: deque[asyncio.Task[Result]] = deque()
        with progress_bar(requests, progress) as bar:
            try:
                while True:
                    free = READ_AHEAD_FACTOR * concurrency - len(waiting)
                    for item in await _taken(source, free):
                        task = asyncio.create_task(self._evaluate_item(item, common, slots))
                        waiting.append(task)
                    if not waiting:
                        return
                    outcome = await _outcome(waiting[0], on_error)
                    waiting.popleft()
                    bar.update()
                    yield outcome
            finally:
                await _cancelled(waiting)

    async def _evaluate_item(
        self, item: Call, common: Mapping[str, Any], slots: asyncio.Semaphore
    ) -> Result:
        async with slots:
            return await self.evaluate(**{**common, **item})


async def _each(items: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _taken(source: AsyncIterator[_Item], count: int) -> list[_Item]:
    """The next items, at most `count`; fewer at the end."""
    items: list[_Item] = []
    while len(items) < count:
        try:
            items.append(await anext(source))
        except StopAsyncIteration:
            break
    return items


async def _outcome(task: asyncio.Task[Result], on_error: OnError) -> Result | Exception:
    await asyncio.wait([task])
    error = task.exception()
    if on_error == "return" and isinstance(error, Exception):
        return error
    return task.result()


async def _cancelled(tasks: Iterable[asyncio.Task[Result]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
