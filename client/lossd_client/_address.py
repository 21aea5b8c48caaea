"""The address of a service, and which way leads there."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Route:
    """Which way leads to an address: straight, or through a proxy.

    Attributes:
        proxy: host and port of the proxy.
        target_prefix: what precedes the path in a request to the proxy.
        headers: headers for a proxy that reads every request.
        tunnel_headers: headers for a proxy that is asked for a tunnel.
    """

    proxy: tuple[str, int] | None = None
    target_prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tunnel_headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Address:
    """Where a service is.

    Attributes:
        scheme: `http` or `https`.
        host: name or number, IPv6 without brackets.
        port: where it listens.
        authority: host and port as they stand in the URL.
        prefix: path that precedes those of the service, without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    authority: str
    prefix: str

    @property
    def url(self) -> str:
        """The address in one line."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    def route(self) -> Route:
        """The way there that the environment asks for.

        `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured, as are the system's
        settings on macOS and Windows.

        Raises:
            ValueError: the proxy is none that speaks HTTP without TLS.
        """
        found = getproxies()
        text = found.get(self.scheme) or found.get("all")
        if not text or proxy_bypass(self.authority.rpartition("@")[2]):
            return Route()
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        if proxy.scheme != "http" or not proxy.hostname:
            raise ValueError(f"the environment names a proxy that is not http://, {proxy.scheme}")
        headers = _proxy_headers(proxy)
        place = (proxy.hostname, proxy.port or _PORTS["http"])
        if self.scheme == "https":
            return Route(place, tunnel_headers=headers)
        return Route(place, f"{self.scheme}://{self.authority}", headers)


def checked_address(url: str, *, timeout_s: float, retries: int) -> Address:
    """The address of a service, once the settings of a client make sense.

    Args:
        url: `http://` or `https://`, a host, optionally a port and a path prefix.
        timeout_s: seconds, above 0.
        retries: at least 0.

    Raises:
        ValueError: one of them does not.

    Example:
        >>> checked_address("http://[::1]:8000/", timeout_s=60.0, retries=3)
        Address(scheme='http', host='::1', port=8000, authority='[::1]:8000', prefix='')
    """
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, not {retries}")
    return _address(url)


def _address(url: str) -> Address:
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from error
    if split.username is not None or split.password is not None:
        # It would be shown in messages and logs; a key has its own parameter.
        raise ValueError("url must not carry a password; use api_key")
    odd = split.query or split.fragment or not url.isprintable() or " " in url
    if split.scheme not in _PORTS or not split.hostname or odd:
        raise ValueError(f"url must be http(s)://host[:port][/prefix], not {url!r}")
    host = _ascii(split.hostname)
    authority = f"[{host}]" if ":" in host else host
    authority += "" if port is None else f":{port}"
    prefix = _ascii_path(split.path)
    return Address(split.scheme, host, port or _PORTS[split.scheme], authority, prefix)


def _ascii(host: str) -> str:
    try:
        return host.encode("ascii").decode()
    except UnicodeEncodeError:
        return host.encode("idna").decode("ascii")


def _ascii_path(path: str) -> str:
    return quote(path.rstrip("/"), safe="/%:@!$&'()*+,;=~")


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
