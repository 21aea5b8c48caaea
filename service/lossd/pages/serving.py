"""Files of the page: read once, sent with what lets a browser keep and trust them.

Nothing here depends on who asks: the page is the same text for everybody, and what it shows of the
service it asks for afterwards, with the key that somebody typed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from lossd_client.errors import NotFoundError
from lossd_client.wire import JSON

FILES_PATH: Final = "/page/"
"""Below it lies what the page loads."""

DOCS_PATH: Final = "/docs"
"""The page of every call. It needs no key; `/openapi.json`, which it shows, does."""

_HTML: Final = "text/html"
_MEDIA_TYPES: Final = {
    ".html": f"{_HTML}; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": JSON,
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".npy": "application/octet-stream",
}
_FOLDER: Final = Path(__file__).parent / "home"
_HEADERS: Final = {
    # Nothing inline and nothing from elsewhere; canvases and chosen files are the page's own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked for anew: after an upgrade no old script meets a new page.
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


@dataclass(frozen=True)
class PageFile:
    """What a browser is sent."""

    content: bytes
    media_type: str
    etag: str
    """Names the content, in quotes."""


@cache
def page_files() -> dict[str, PageFile]:
    """Every file of the page by its name."""
    return {path.name: _read(path) for path in sorted(_FOLDER.iterdir())}


def answer_file(request: Request, name: str) -> Response:
    """A file of the page, or only its headers if the browser has it already.

    Raises:
        NotFoundError: there is no such file.
    """
    file = page_files().get(name)
    if file is None:
        raise NotFoundError
    headers = {**_HEADERS, "ETag": file.etag}
    if _has_already(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def answer_page(request: Request) -> Response:
    """The page itself."""
    return answer_file(request, "index.html")


def wants_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether somebody with a browser asks: HTML is named and preferred to JSON.

    Example:
        >>> wants_page([(b"accept", b"text/html,application/xhtml+xml,*/*;q=0.8")])
        True
        >>> wants_page([(b"accept", b"*/*")]), wants_page([])
        (False, False)
        >>> wants_page([(b"accept", b"application/json, text/html;q=0.5")])
        False
    """
    accept = ",".join(value.decode("latin-1") for name, value in headers if name == b"accept")
    weights = dict(_weights(accept))
    return weights.get(_HTML, 0.0) > weights.get(JSON, 0.0)


def is_page(scope: Scope) -> bool:
    """Whether a request is for the page or its files, which are the same for everybody."""
    path: str = scope["path"]
    is_file = path == DOCS_PATH or path.startswith(FILES_PATH)
    is_one = is_file or (path == "/" and wants_page(scope["headers"]))
    return is_one and scope["method"] in ("GET", "HEAD")


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return PageFile(content, _MEDIA_TYPES[path.suffix], f'"{digest}"')


def _has_already(if_none_match: str, etag: str) -> bool:
    known = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return etag in known or "*" in known


def _weights(accept: str) -> Iterable[tuple[str, float]]:
    """Media types of an `Accept` header with their weights."""
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        given = [one[2:] for one in parameters if one.startswith("q=")]
        yield media_type, _weight(given[0]) if given else 1.0


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
