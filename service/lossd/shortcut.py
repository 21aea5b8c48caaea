"""The way of the requests that come most: to their endpoint, past what finds and wraps the rest.

For a small request, what Starlette and FastAPI do around an endpoint takes as long as reading it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lossd.problems import answer_problem
from lossd_client.errors import LossdError


class Shortcut:
    """Calls the endpoints of some routes itself; everything else takes the common way.

    Args:
        app: the common way.
        routes: routes without parameters whose endpoints take the request and nothing else, by
            method and path.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[tuple[str, str], APIRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has."""
        route = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except LossdError as error:
            response = await answer_problem(request, error)
        await response(scope, receive, send)
