"""Which failed attempts are worth another, when, and until when.

An evaluation changes nothing on the service, and a tensor that is kept twice is kept once, so every
call may be repeated; it is repeated only where that helps: after 429 and 503, and where no answer
came because the connection failed.
"""

import random
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException

from lossd_client._protocol import Reply, Request, reply_error
from lossd_client._transport import Cancellation, Transport
from lossd_client.errors import UnreachableError

Outcome = Reply | Exception
"""What an attempt gave: a reply of any status, or the reason why there is none."""

_RETRIED_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_FAILURES = (OSError, HTTPException)
# The time of an attempt is all the time there is; a certificate stays what it is.
_FINAL_FAILURES = (TimeoutError, ssl.SSLCertVerificationError)
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_SHORTEST_TIMEOUT_S = 1e-3


class Attempts:
    """The attempts one call may still make: so many, and until a deadline.

    Args:
        retries: how many attempts may follow the first.
        timeout_s: time of the whole call in seconds, waiting included.
        clock: seconds, monotonic.
        jitter: number in [0, 1) that spreads the delays of many clients.
    """

    def __init__(
        self,
        *,
        retries: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._retries = retries
        self._clock = clock
        self._jitter = jitter
        self._end_s = clock() + timeout_s
        self._made = 0

    def remaining_s(self) -> float:
        """Seconds the next attempt may take."""
        return max(self._end_s - self._clock(), _SHORTEST_TIMEOUT_S)

    @property
    def made(self) -> int:
        """How many attempts failed so that another was due."""
        return self._made

    def delay_s(self, outcome: Outcome) -> float | None:
        """Seconds to wait before another attempt; None where there shall be none."""
        if not _may_retry(outcome):
            return None
        self._made += 1
        if self._made > self._retries:
            return None
        delay_s = retry_delay_s(self._made, asked_s=_asked_s(outcome), jitter=self._jitter())
        return delay_s if self._clock() + delay_s < self._end_s else None


def attempt(
    transport: Transport, request: Request, attempts: Attempts, cancellation: Cancellation
) -> Outcome:
    """One attempt, and what it gave."""
    timeout_s = attempts.remaining_s()
    try:
        return transport.exchange(request, timeout_s=timeout_s, cancellation=cancellation)
    except _FAILURES as error:
        return error


def retry_delay_s(made: int, *, asked_s: float | None, jitter: float) -> float:
    """Seconds to wait after a failed attempt.

    Args:
        made: attempts made so far, at least 1; the delay doubles with each, up to 5 s.
        asked_s: what the service asked for in `Retry-After`; never undercut.
        jitter: in [0, 1); takes up to half of a delay that the service did not ask for.

    Example:
        >>> retry_delay_s(1, asked_s=None, jitter=0.0), retry_delay_s(3, asked_s=None, jitter=0.0)
        (0.1, 0.4)
        >>> retry_delay_s(1, asked_s=2.0, jitter=0.0)
        2.0
    """
    # The exponent is bounded so that a caller with very many retries does not overflow a float.
    doubling_s = min(_FIRST_DELAY_S * 2.0 ** min(made - 1, 16), _LONGEST_DELAY_S)
    if asked_s is None:
        return doubling_s * (1 - jitter / 2)
    return asked_s + _FIRST_DELAY_S * jitter


def settle(outcome: Outcome, url: str) -> Reply:
    """The reply, if it succeeded.

    Args:
        outcome: what the last attempt gave.
        url: where it went, for the message.

    Raises:
        UnreachableError: there is no reply.
        LossdError: the error that the reply reports.
    """
    if isinstance(outcome, Exception):
        reason = f"{type(outcome).__name__} {outcome}".strip()
        raise UnreachableError(f"no answer from {url}: {reason}") from outcome
    error = reply_error(outcome)
    if error is not None:
        raise error
    return outcome


def is_ready(outcome: Outcome, url: str) -> bool:
    """Whether the reply to a readiness question says yes; no reply means no.

    Raises:
        LossdError: the reply says neither yes nor no, e.g. that the key is wrong.
    """
    if isinstance(outcome, Exception) or outcome.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return False
    settle(outcome, url)
    return True


def _may_retry(outcome: Outcome) -> bool:
    if isinstance(outcome, Exception):
        return not isinstance(outcome, _FINAL_FAILURES)
    return outcome.status in _RETRIED_STATUSES


def _asked_s(outcome: Outcome) -> float | None:
    error = None if isinstance(outcome, Exception) else reply_error(outcome)
    return None if error is None else error.retry_after_s
