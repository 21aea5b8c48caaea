"""The blocking client: sockets and sleeping; everything else is in `_protocol` and `_retry`."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from os import PathLike
from ssl import SSLContext
from typing import Any, Literal, Self, overload

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


class Client:
    """A lossd service, as seen by blocking code. Safe to share between threads.

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
        ValueError: the URL is not `http(s)://host…`, the key holds something a header cannot
            carry, or a number is out of range.

    Example:
        >>> import numpy as np
        >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     client.evaluate("dice", logits=np.zeros((1, 2, 8, 8)), target=np.zeros((1, 8, 8)))
        Result(samples=1, mean={'dice': 0.5})
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._transport.close()

    def evaluate(
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
        """Losses of every sample, and on request their gradients, maps and statistics.

        Tensors may be numpy arrays, torch tensors on any device, arrays with `__array__` or
        `__dlpack__`, or nested lists (floats become float64, integers int64); what `put` gave; or
        mappings in one of the forms that a tensor has in JSON: `{"rle": …}`, `{"png": …}`,
        `{"npy": …}`, `{"dtype", "shape", "base64"}`, `{"ref": …}`. `B` samples, `C` classes, `*S`
        one to three spatial axes.

        Args:
            losses: one loss or several: names, `lossd_client.losses` values, or mappings with
                `name`, `params`, `weight`, `label`.
            logits: `[B, C, *S]`; float16, bfloat16, float32 or float64; before the activation.
            target: `[B, *S]` integer labels, or `[B, C, *S]` in [0, 1].
            mask: `[B, *S]`; 0 removes the pixel.
            weight_map: `[B, *S]`; factor of each pixel in pixelwise losses.
            probabilities: `[B, C, *S]` in [0, 1], in place of `logits`; the gradient is then with
                respect to them.
            task: `binary`, `multiclass` or `multilabel`; the service decides by shape if None.
            ignore_index: label that removes a pixel from every sum and mean.
            gradient: `none`, of the weighted `total`, or of `each` loss.
            gradient_dtype: dtype in which gradients travel; half precision halves the answer
                and is returned as float32.
            maps: also the value of every pixel, for pixelwise losses.
            per_class: also the value of every class.
            statistics: also true and false positives and negatives of every class.
            aggregate: `sample`, or `batch` to sum region statistics over the request; `sample` if
                None, unless the preset says otherwise.
            spacing: physical size of a pixel along each of `*S`, for distances; ones if None.
            preset: library whose conventions hold where a loss is given no parameter; the
                result's `preset` says what was filled.
            timeout_ms: deadline on the service, in milliseconds; the service's own if None.
            request_id: id for the service's log; the service makes one if None.
            inputs: several input objects (images of different sizes) instead of tensors by
                keyword: mappings from input name to tensor.
            **tensors: inputs of other kinds of losses: `prediction`, `anchor`, `embeddings`, …

        Returns:
            One value per sample and loss; of several input objects in their order.

        Raises:
            TypeError: a tensor's dtype cannot travel; the message names the input.
            ValueError: an option, a loss or a mapping is malformed, and nothing was sent; or the
                service has forgotten a kept tensor whose array was changed since.
            UnknownRefError: a tensor is not kept, and there is no array to upload again.
            RequestError: the service rejects the request; subclasses say why.
            QueueFullError: the service has too much work, also after the retries.
            QuotaExceededError: the caller has used what it may, also after the retries.
            ServiceError: the service failed.
            UnreachableError: there was no answer within `timeout_s`.

        Example:
            >>> from lossd_client import losses
            >>> result = client.evaluate(  # doctest: +SKIP
            ...     [losses.Dice(), losses.Tversky(fn_weight=0.7), "focal"],
            ...     logits=logits, target=target, ignore_index=255, gradient="total",
            ... )
            >>> result["dice"].shape, result.gradient["logits"].shape  # doctest: +SKIP
            ((2,), (2, 4, 64, 64))
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
        request, reply = self._exchange_kept(build)
        return read_result(reply, input_count=request.input_count)

    def put(self, tensor: TensorLike, *, keep: Keep = "array") -> TensorRef:
        """Have the service keep a tensor, for requests that then need not send it.

        The result stands wherever a tensor may stand: predictions go up once, each edited mask is
        a small request. The service keeps a tensor within a budget and for a time
        (`limits()`); one that it has forgotten is uploaded again, once per call, without the
        caller's doing, if `keep` allows it.

        Args:
            tensor: as for `evaluate`; of any dtype that can travel.
            keep: `array` holds on to the array as long as the result lives, which must then not
                be written to; `nothing` frees it, and a forgotten tensor raises `UnknownRefError`.

        Returns:
            What stands for the tensor.

        Raises:
            TypeError: its dtype cannot travel, or it is no array.
            ValueError: `keep` has no meaning.
            TooLargeError: it is larger than what the service keeps for one caller.
            LossdError: as for `evaluate`.

        Example:
            >>> kept = client.put(logits)  # doctest: +SKIP
            >>> mask = {"rle": [[{"size": [64, 64], "counts": "04"}]], "labels": [[1]]}
            >>> client.evaluate("dice", logits=kept, target=mask)["dice"]  # doctest: +SKIP
            array([0.25])
        """
        array = kept_array(tensor, keep)
        upload = Upload(array if keep == "array" else None)
        return tensor_ref(read_put(self._exchange(put_request(array))), upload)

    def get(self, ref: TensorRef | str) -> Array:
        """Values of a tensor that the service keeps.

        Raises:
            UnknownRefError: it does not keep it (any more).
            LossdError: as for `evaluate`.
        """
        return read_tensor(self._exchange(get_request(ref)))

    def delete(self, ref: TensorRef | str) -> None:
        """Have the service forget a tensor; nothing happens where it has already.

        A `TensorRef` that holds its array can still be used and is then uploaded again.

        Raises:
            LossdError: as for `evaluate`, but for `UnknownRefError`.
        """
        with suppress(UnknownRefError):
            self._exchange(delete_request(ref))

    @overload
    def evaluate_many(
        self,
        requests: Iterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: Literal["raise"] = "raise",
        **common: object,
    ) -> Generator[Result, None, None]: ...

    @overload
    def evaluate_many(
        self,
        requests: Iterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: Literal["return"],
        **common: object,
    ) -> Generator[Result | Exception, None, None]: ...

    def evaluate_many(
        self,
        requests: Iterable[Call],
        *,
        losses: Losses | None = None,
        concurrency: int = 4,
        progress: Progress = "bar",
        on_error: OnError = "raise",
        **common: object,
    ) -> Generator[Result | Exception, None, None]:
        """Results of many requests, in their order, several under way at a time.

        Args:
            requests: keyword arguments of one `evaluate` each. Read as results are taken, at
                most `2 * concurrency` ahead, so that a generator may load images as it goes.
            losses: losses of every request that names none.
            concurrency: requests under way at a time, at least 1.
            progress: a bar on standard error, with rate, or none.
            on_error: `raise` an item's error when its turn comes, which ends the iteration, or
                `return` the exception in the place of its result.
            **common: further arguments of `evaluate` for every request that does not state them.

        Returns:
            An iterator of results. Closing it (or leaving its loop for good) drops requests not
            yet sent and waits for those under way.

        Raises:
            ValueError: `concurrency`, `progress` or `on_error` has no meaning.

        Example:
            >>> requests = ({"logits": logits, "target": target} for logits, target in pairs)
            ... # doctest: +SKIP
            >>> for result in client.evaluate_many(requests, losses="dice"):  # doctest: +SKIP
            ...     print(result["dice"])
        """
        check_options(concurrency, progress, on_error)
        return self._many(
            requests, common_arguments(losses, common), concurrency, progress, on_error
        )

    def losses(self) -> list[dict[str, Any]]:
        """Catalogue of the service: name, aliases, kind, parameters, formula of every loss.

        Raises:
            LossdError: as for `evaluate`.
        """
        return read_catalogue(self._exchange(CATALOGUE))

    def limits(self) -> dict[str, Any]:
        """Limits of the service: sizes, samples, classes and the caller's quotas.

        Raises:
            LossdError: as for `evaluate`.
        """
        document: dict[str, Any] = read_document(self._exchange(LIMITS))
        return document

    def ready(self) -> bool:
        """Whether the service can be reached and takes work; asked once, without retries.

        Raises:
            LossdError: the answer is neither yes nor no.
        """
        attempts = Attempts(retries=0, timeout_s=self._timeout_s)
        return is_ready(self._attempt(READY, attempts), self._url)

    def _attempts(self) -> Attempts:
        return Attempts(retries=self._retries, timeout_s=self._timeout_s)

    def _exchange_kept(self, build: Callable[[], Request]) -> tuple[Request, Reply]:
        """An exchange whose kept tensors are uploaded again where the service forgot them."""
        attempts, renewals = self._attempts(), Renewals()
        while True:
            request = build()
            try:
                return request, self._exchange(request, attempts)
            except UnknownRefError as error:
                due = renewals.due(error, request.uses, attempts.made)
                if not due:
                    raise
                for use in due:
                    self._renew(use, attempts, error)

    def _renew(self, use: Use, attempts: Attempts, error: UnknownRefError) -> None:
        upload = use.tensor.upload
        with upload.lock:
            if use.is_outdated:  # another thread was quicker
                return
            array = upload.array()
            if array is None:
                raise error
            upload.done(read_put(self._exchange(put_request(array), attempts)).ref)

    def _exchange(self, request: Request, attempts: Attempts | None = None) -> Reply:
        attempts = attempts or self._attempts()
        while True:
            outcome = self._attempt(request, attempts)
            delay_s = attempts.delay_s(outcome)
            if delay_s is None:
                return settle(outcome, self._url)
            time.sleep(delay_s)

    def _attempt(self, request: Request, attempts: Attempts) -> Outcome:
        return attempt(self._transport, request.under(self._headers), attempts, Cancellation())

    def _many(
        self,
        requests: Iterable[Call],
        common: Mapping[str, Any],
        concurrency: int,
        progress: Progress,
        on_error: OnError,
    ) -> Generator[Result | Exception, None, None]:
        source = iter(requests)
        waiting: deque[Future[Result]] = deque()
        with progress_bar(requests, progress) as bar, ThreadPoolExecutor(concurrency) as pool:
            try:
                while True:
                    free = READ_AHEAD_FACTOR * concurrency - len(waiting)
                    for item in islice(source, free):
                        waiting.append(pool.submit(self._evaluate_item, item, common))
                    if not waiting:
                        return
                    outcome = _outcome(waiting.popleft(), on_error)
                    bar.update()
                    yield outcome
            finally:
                pool.shutdown(cancel_futures=True)

    def _evaluate_item(self, item: Call, common: Mapping[str, Any]) -> Result:
        return self.evaluate(**{**common, **item})


def _outcome(future: Future[Result], on_error: OnError) -> Result | Exception:
    error = future.exception()
    if on_error == "return" and isinstance(error, Exception):
        return error
    return future.result()
