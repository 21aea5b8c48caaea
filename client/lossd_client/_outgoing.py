"""A message on its way out: views of memory, many at a time, and files that the system sends."""

import os
import ssl
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from socket import socket

from lossd_client._files import FilePart, file_part

_VIEWS_AT_A_TIME = 64  # well below what any system takes in one call
_TLS_PIECE_BYTES = 1 << 18  # TLS repeats a write that was cut short; that should not be megabytes
_FILE_BYTES = 1 << 18  # for fewer, opening the file again takes longer than copying them


class Outgoing:
    """What is still to be sent of a message.

    Args:
        sock: a socket that never waits.
        parts: joined they are the message, but nothing joins them.
    """

    def __init__(self, sock: socket, parts: Sequence[bytes | memoryview]) -> None:
        self._sock = sock
        is_plain = not isinstance(sock, ssl.SSLSocket)
        self._gathers = is_plain and sys.platform != "win32"
        look = file_part if is_plain and hasattr(os, "sendfile") else _no_file
        views = [memoryview(part) for part in parts if len(part)]
        self._waiting: deque[memoryview | FilePart] = deque(
            (len(view) >= _FILE_BYTES and look(view)) or view for view in views
        )
        self._descriptor: int | None = None  # of the file that the first part lies in

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return bool(self._waiting)

    def send_some(self) -> None:
        """Send what can be sent at once.

        Raises:
            OSError: it would have to wait, the connection failed, or a file has become shorter.
        """
        first = self._waiting[0]
        if isinstance(first, FilePart):
            self._send_file(first)
        else:
            self._drop(self._send_views(first))

    def close(self) -> None:
        """Close the file that is being sent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _send_file(self, part: FilePart) -> None:
        if self._descriptor is None:
            self._descriptor = part.file.opened()
        count = None if self._descriptor is None else part.send(self._sock, self._descriptor)
        if count is None:
            self._waiting[0] = part.view
        elif count < len(part.view):
            self._waiting[0] = part.behind(count)
            return
        else:
            self._waiting.popleft()
        self.close()

    def _send_views(self, first: memoryview) -> int:
        if not self._gathers:
            return self._sock.send(first[:_TLS_PIECE_BYTES])
        views: list[memoryview] = []
        for part in islice(self._waiting, _VIEWS_AT_A_TIME):
            if isinstance(part, FilePart):
                break
            views.append(part)
        return self._sock.sendmsg(views)

    def _drop(self, count: int) -> None:
        """Take the first bytes off the views."""
        while count:
            first = self._waiting.popleft()
            if isinstance(first, FilePart):
                raise TypeError("no file was sent")
            if count < len(first):
                self._waiting.appendleft(first[count:])
                return
            count -= len(first)


def _no_file(_: memoryview) -> None:
    return None
