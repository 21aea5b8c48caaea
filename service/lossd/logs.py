"""Log lines: one JSON object each, or lines for people; never tensors, never secrets."""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from structlog.typing import EventDict

    from lossd.settings import Settings

_AS_JSON_DOES: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def configure_logs(settings: Settings) -> None:
    """Sends this package's and uvicorn's lines through one renderer to standard error."""
    level = settings.log_level.upper()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_timestamp,
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=_json_line)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    journal = _Journal(handler)
    # Our own lines go past `logging`, whose records cost more than all the rest of a line.
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=lambda *_: journal,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(capture=True)
    # Every request has its own line here; uvicorn's would be a second one.
    logging.getLogger("uvicorn.access").disabled = True


def _json_line(event: Any, default: Callable[[Any], Any]) -> str:
    """A line in ASCII, which no terminal takes for commands."""
    try:
        line = orjson.dumps(event, option=_AS_JSON_DOES)
    except orjson.JSONEncodeError:  # integers beyond 64 bits, surrogates, what is for `default`
        line = b""
    if line and line.isascii():
        return line.decode()
    return json.dumps(event, default=default, separators=(",", ":"))


def _add_timestamp(_: object, __: str, event: EventDict) -> EventDict:
    """When it happened, in UTC to the microsecond (ISO 8601)."""
    seconds, ns = divmod(time.time_ns(), 1_000_000_000)
    event["timestamp"] = f"{_to_the_second(seconds)}.{ns // 1000:06d}Z"
    return event


@functools.lru_cache(maxsize=2)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _Journal:
    """Writes lines where a handler does, between its own.

    As with `logging`, a line that cannot be written is lost and fails nothing but itself: a request
    must not fail because a disk is full.
    """

    def __init__(self, handler: logging.StreamHandler[TextIO]) -> None:
        self._handler = handler

    def msg(self, line: str) -> None:
        """Writes a line."""
        handler = self._handler
        handler.acquire()
        try:
            handler.stream.write(line + handler.terminator)
            handler.flush()
        except Exception:  # noqa: BLE001 - as `logging.StreamHandler.emit` has it
            handler.handleError(logging.makeLogRecord({"msg": line}))
        finally:
            handler.release()

    debug = info = warning = error = critical = msg
