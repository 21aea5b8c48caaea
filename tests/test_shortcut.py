"""The way past routing: who takes it, and what it does with errors."""

from typing import Any

import anyio
import httpx
import pytest
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from lossd.shortcut import Shortcut
from lossd_client.errors import InvalidInputError


async def endpoint(request: Request) -> Response:
    if await request.body() == b"bad":
        raise InvalidInputError("no such thing")
    return Response("short")


async def common(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("common")(scope, receive, send)


async def asked(method: str, path: str, body: bytes = b"") -> tuple[httpx.Response, Scope]:
    shortcut = Shortcut(common, {("POST", "/work"): APIRoute("/work", endpoint, methods=["POST"])})
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"request_id": "an id", "body_ended": True}
        seen.update(scope=scope)
        await shortcut(scope, receive, send)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://lossd") as client:
        return await client.request(method, path, content=body), seen["scope"]


@pytest.mark.parametrize(
    ("method", "path", "way"),
    [
        ("POST", "/work", "short"),
        ("GET", "/work", "common"),
        ("POST", "/work/", "common"),
        ("POST", "/", "common"),
    ],
)
def test_only_the_very_method_and_address_take_it(method: str, path: str, way: str) -> None:
    answer, scope = anyio.run(asked, method, path)
    assert answer.text == way
    # Accounts name the route.
    assert getattr(scope.get("route"), "path", None) == ("/work" if way == "short" else None)


def test_errors_become_problems() -> None:
    answer, scope = anyio.run(asked, "POST", "/work", b"bad")
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_input"
    assert answer.json()["request_id"] == "an id"
    assert scope["state"]["code"] == "invalid_input"
