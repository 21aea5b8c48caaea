"""Which way to a service the settings of a client mean."""

import ssl
from os import PathLike

from lossd_client._address import Address
from lossd_client._shared_memory import SharedMemory, SharedMemoryTransport, is_on_this_machine
from lossd_client._transport import SocketTransport, Transport


def opened(
    transport: Transport | None,
    address: Address,
    *,
    ssl_context: ssl.SSLContext | None,
    unix_socket: str | PathLike[str] | None,
    shared_memory: SharedMemory,
) -> Transport:
    """The transport that a client's settings mean.

    Raises:
        ValueError: they contradict each other, or the environment's proxy cannot be used.
    """
    if shared_memory not in ("auto", "off"):
        raise ValueError(f"shared_memory must be 'auto' or 'off', not {shared_memory!r}")
    if transport is None:
        sockets = SocketTransport(address, ssl_context=ssl_context, unix_socket=unix_socket)
        straight = unix_socket is None and address.route().proxy is None
        if shared_memory == "auto" and straight and is_on_this_machine(address):
            return SharedMemoryTransport(sockets)
        return sockets
    if ssl_context is not None or unix_socket is not None:
        raise ValueError("a transport of your own knows no ssl_context and no unix_socket")
    return transport
