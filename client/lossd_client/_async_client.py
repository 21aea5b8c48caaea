"""The asynchronous client: sockets and sleeping; the rest is in `_protocol` and `_retry`.

Exchanges run in threads, over the transport of the blocking client: that is faster than asyncio's
streams and the libraries on top of them, and there is one transport to get right.
"""

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from os import PathLike
from ssl import SSLContext
from typing import Any, Literal, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from lossd_client._address import checked_address
from lossd_client._opening import opened
from lossd_client._protocol import (
    CATALOGUE,
    LIMITS,
    READY,
    InputObject,
    Losses,
    Reply,
    Request,
    Tensor,
    client_headers,
    delete_request,
    evaluate_request,
    get_request,
    kept_array,
    put_request,
    read_catalogue,
    read_document,
    read_put,
    read_result,
    read_tensor,
    tensor_ref,
)
from lossd_client._refs import Keep, Renewals, TensorRef, Upload, Use
from lossd_client._result import Result
from lossd_client._retry import Attempts, Outcome, attempt, is_ready, settle
from lossd_client._shared_memory import SharedMemory
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
from lossd_client._transport import Cancellation, Transport
from lossd_client.errors import UnknownRefError
from lossd_client.wire import Aggregate, Array, Gradient, GradientDtype, Preset, Task

_Item = TypeVar("_Item")

_MOST_AT_A_TIME = 256


class AsyncClient:
    """A lossd service, as seen by asyncio code; the same methods as `Client`.

    At most 256 exchanges are under way at a time, each in a thread; further ones wait. A call that
    is cancelled cuts its connection, so that the service drops it.

    Args:
        url: where the service is, e.g. `http://127.0.0.1:8000`; a path prefix is kept.
        api_key: sent as `Authorization: Bearer …`; never shown, never taken from the
            environment.
        timeout_s: time of one call in seconds, retries and waiting included.
        retries: how often a call is repeated after 429, 503 or a failed connection.
        ssl_context: how the service's certificate is checked and which one is shown to it; the
            system's authorities if None.
        unix_socket: path of a Unix socket to connect to; the URL's host is then only a name.
        shared_memory: `auto` sends large bodies in shared memory to a service on this machine that
            allows it, `off` none.
        transport: something of one's own in the place of sockets, for tests; instead of the two
            above.

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
        ssl_context: SSLContext | None = None,
        unix_socket: str | PathLike[str] | None = None,
        shared_memory: SharedMemory = "auto",
        transport: Transport | None = None,
    ) -> None:
        address = checked_address(url, timeout_s=timeout_s, retries=retries)
        self._url = address.url
        self._timeout_s = timeout_s
        self._retries = retries
        self._headers = client_headers(api_key)
        self._transport = opened(
            transport,
            address,
            ssl_context=ssl_context,
            unix_socket=unix_socket,
            shared_memory=shared_memory,
        )
        self._threads = ThreadPoolExecutor(_MOST_AT_A_TIME, thread_name_prefix="lossd-client")
        self._locks: WeakKeyDictionary[TensorRef, asyncio.Lock] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._transport.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def evaluate(
        self,
        losses: Losses,
        *,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        mask: Tensor | None = None,
        weight_map: Tensor | None = None,
        probabilities: Tensor | None = None,
        task: Task | None = None,
        ignore_index: int | None = None,
        gradient: Gradient = "none",
        gradient_dtype: GradientDtype | None = None,
        maps: bool = False,
        per_class: bool = False,
        statistics: bool = False,
        aggregate: Aggregate | None = None,
        spacing: Sequence[float] | None = None,
        preset: Preset | None = None,
        timeout_ms: float | None = None,
        request_id: str | None = None,
        inputs: Sequence[InputObject] | None = None,
        **tensors: Tensor | None,
    ) -> Result:
        """Losses of every sample; arguments, result and errors as in `Client.evaluate`.

        Tensors are fetched from an accelerator and laid out before anything is awaited.
        """
        build = partial(
            evaluate_request,
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
        request, reply = await self._exchange_kept(build)
        return read_result(reply, input_count=request.input_count)

    async def put(self, tensor: TensorLike, *, keep: Keep = "array") -> TensorRef:
        """Have the service keep a tensor, as in `Client.put`."""
        array = kept_array(tensor, keep)
        upload = Upload(array if keep == "array" else None)
        return tensor_ref(read_put(await self._exchange(put_request(array))), upload)

    async def get(self, ref: TensorRef | str) -> Array:
        """Values of a tensor that the service keeps, as in `Client.get`."""
        return read_tensor(await self._exchange(get_request(ref)))

    async def delete(self, ref: TensorRef | str) -> None:
        """Have the service forget a tensor, as in `Client.delete`."""
        with suppress(UnknownRefError):
            await self._exchange(delete_request(ref))

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

    def _attempts(self) -> Attempts:
        return Attempts(retries=self._retries, timeout_s=self._timeout_s)

    async def _exchange_kept(self, build: Callable[[], Request]) -> tuple[Request, Reply]:
        """An exchange whose kept tensors are uploaded again where the service forgot them."""
        attempts, renewals = self._attempts(), Renewals()
        while True:
            request = build()
            try:
                return request, await self._exchange(request, attempts)
            except UnknownRefError as error:
                due = renewals.due(error, request.uses, attempts.made)
                if not due:
                    raise
                for use in due:
                    await self._renew(use, attempts, error)

    async def _renew(self, use: Use, attempts: Attempts, error: UnknownRefError) -> None:
        upload = use.tensor.upload
        async with self._locks.setdefault(use.tensor, asyncio.Lock()):
            if use.is_outdated:  # another task was quicker
                return
            array = upload.array()
            if array is None:
                raise error
            upload.done(read_put(await self._exchange(put_request(array), attempts)).ref)

    async def _exchange(self, request: Request, attempts: Attempts | None = None) -> Reply:
        attempts = attempts or self._attempts()
        while True:
            outcome = await self._attempt(request, attempts)
            delay_s = attempts.delay_s(outcome)
            if delay_s is None:
                return settle(outcome, self._url)
            await asyncio.sleep(delay_s)

    async def _attempt(self, request: Request, attempts: Attempts) -> Outcome:
        """One attempt in a thread, whose connection is cut where nobody waits for it any more."""
        cancellation = Cancellation()
        try:
            async with asyncio.timeout(attempts.remaining_s()):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads,
                    attempt,
                    self._transport,
                    request.under(self._headers),
                    attempts,
                    cancellation,
                )
        except TimeoutError as error:
            return error
        finally:
            cancellation.cancel()

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
