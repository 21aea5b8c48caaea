"""What comes from this machine, and from nowhere else."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

# A proxy on the same machine is a loopback peer, whoever it speaks for.
_FORWARDED: Final = {b"forwarded", b"x-forwarded-for"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address, or is reached by it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_sent_from_here(scope: Mapping[str, Any]) -> bool:
    """Whether a request, by its ASGI scope, was sent by this machine for itself."""
    client = scope.get("client")
    forwarded = any(name in _FORWARDED for name, _ in scope["headers"])
    return client is not None and not forwarded and is_loopback(client[0])
