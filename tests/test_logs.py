"""Lines of the log: what they hold, one level for all, and that none can fail a request."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from lossd.logs import configure_logs
from lossd.settings import Settings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        del text
        raise OSError("No space left on device")


def lines_to(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(Settings.model_validate({"log_level": level}))


def test_own_lines_and_those_of_logging_look_alike_and_have_one_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    lines_to(stream, monkeypatch, "warning")
    with bound_contextvars(request_id="an id"):
        structlog.get_logger("own").info("too quiet")
        structlog.get_logger("own").warning("ours", code=1)
        logging.getLogger("theirs").info("too quiet")
        logging.getLogger("theirs").warning("of %s", "others")
    ours, theirs = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert list(ours) == ["code", "event", "request_id", "level", "timestamp"]
    assert (ours["event"], ours["code"], ours["request_id"]) == ("ours", 1, "an id")
    assert theirs["event"] == "of others"
    assert {**theirs, "event": "", "timestamp": ""} == {
        "event": "",
        "request_id": "an id",
        "level": "warning",
        "timestamp": "",
    }


def test_an_error_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    lines_to(stream, monkeypatch, "error")
    try:
        int("lost")
    except ValueError:
        structlog.get_logger("own").exception("failed")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == ("failed", "error")
    assert "ValueError: " in line["exception"]


def test_a_line_that_cannot_be_written_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lines_to(FullDisk(), monkeypatch, "info")
    structlog.get_logger("own").info("lost")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (2**70, 2**70),
        ("Lücke\u2028\x9b2J", "Lücke\u2028\x9b2J"),
        ("\ud800", "\ud800"),
        ({1: "a key that is no text"}, {"1": "a key that is no text"}),
        (complex(1, 2), "(1+2j)"),
        (("a", None), ["a", None]),
    ],
)
def test_a_line_holds_any_value_in_ascii(
    monkeypatch: pytest.MonkeyPatch, value: object, read: object
) -> None:
    stream = io.StringIO()
    lines_to(stream, monkeypatch, "info")
    structlog.get_logger("own").info("said", value=value)
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["value"] == read
