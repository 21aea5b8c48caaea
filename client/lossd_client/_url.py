"""The address of a service and how it is called."""

import math

import httpx


def checked_url(url: str, *, timeout_s: float, retries: int) -> str:
    """The URL without a slash at its end, once the settings of a client make sense.

    Args:
        url: `http://` or `https://`, a host, optionally a port and a path prefix.
        timeout_s: seconds, above 0.
        retries: at least 0.

    Raises:
        ValueError: one of them does not.

    Example:
        >>> checked_url("http://127.0.0.1:8000/", timeout_s=60.0, retries=3)
        'http://127.0.0.1:8000'
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"url must be http(s)://host[:port][/prefix], not {parsed!r}")
    if parsed.userinfo:
        # It would be shown in messages and logs; a key has its own parameter.
        raise ValueError("url must not carry a password; use api_key")
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, not {retries}")
    return url.rstrip("/")
