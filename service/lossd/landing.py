"""Large bodies: how much of one has arrived, and the memory that it lands in."""

from __future__ import annotations

import array
import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

ARRIVAL: Final = "lossd.arrival"
"""The ASGI extension that tells how much of a body has arrived: an `Arrival`."""

_WORTH_A_READ_BYTES: Final = 1 << 20
_AT_ONCE_BYTES: Final = 256 << 10
"""What is read in one or two pieces anyway."""


class Arrival:
    """How much of a body has arrived."""

    def __init__(self) -> None:
        self.arrived_bytes = 0
        self.is_whole = False
        """Whether the next message is all of it and can be had without waiting."""


class Landing:
    """Memory of a body whose length is known, and how far it is filled.

    Nothing can be done with a part of a body, so the system is asked not to wake anybody for less
    of it than a mebibyte, or its rest; a connection that ends wakes as ever. Who trickles then
    costs next to nothing, and who is fast a third of the reads.

    Args:
        body: where it goes, with the length that was announced.
        first: what came of it with its head.
        arrival: where to count.
        sock: what it comes from; a TCP socket or a Unix one.
    """

    def __init__(
        self,
        body: memoryview,
        first: bytes,
        arrival: Arrival,
        sock: TransportSocket,
    ) -> None:
        self.body = body
        self.body[: len(first)] = first
        self._arrival = arrival
        self._sock = sock
        self.ended = asyncio.get_running_loop().create_future()
        self._awaited_bytes = 1
        left = len(self.rest())
        if left > _AT_ONCE_BYTES and sys.platform == "linux":
            self._await(min(left, _WORTH_A_READ_BYTES))

    def rest(self) -> memoryview:
        """What is not filled yet."""
        return self.body[self._arrival.arrived_bytes :]

    def advance(self, nbytes: int) -> None:
        """So many more bytes were written."""
        self._arrival.arrived_bytes += nbytes
        left = len(self.rest())
        if not left:
            self._await(1)
            self.end()
        elif left < self._awaited_bytes:
            self._await(left)

    def is_full(self) -> bool:
        """Whether the whole body is there."""
        return self._arrival.arrived_bytes == self.body.nbytes

    def leave(self) -> None:
        """Hears of every byte again, and counts those that nobody was woken for."""
        if self._awaited_bytes > 1:
            self._arrival.arrived_bytes += min(_unread_bytes(self._sock), len(self.rest()))
            self._await(1)

    def end(self) -> None:
        """Nothing more will come."""
        if not self.ended.done():
            self.ended.set_result(None)

    def _await(self, nbytes: int) -> None:
        if nbytes == self._awaited_bytes:
            return
        self._awaited_bytes = nbytes
        if self._sock.fileno() >= 0:  # it may be closed
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)


def _unread_bytes(sock: TransportSocket) -> int:
    """What the system has received of a connection and nobody has read."""
    import fcntl  # noqa: PLC0415 - not every system has it
    import termios  # noqa: PLC0415

    if sock.fileno() < 0:
        return 0
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]
