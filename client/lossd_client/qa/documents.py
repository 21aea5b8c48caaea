"""JSON and XML files of unknown origin, and the fields in them.

XML is read by expat, and a document type declaration ends the reading: entities, which can grow a
kilobyte to gigabytes or name other files, can only be declared there, and no annotation tool
writes one.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from lossd_client.qa.problems import DataError

_CHUNK_BYTES = 1 << 16
_SHOWN_CHARACTERS = 64

Record = Mapping[str, Any]
Hook = Callable[[dict[str, Any]], Any]


def read_json(path: Path, *, hook: Hook | None = None) -> Any:
    """Content of a JSON file.

    Args:
        path: the file, UTF-8.
        hook: gets every object when it is complete, and what it returns takes the object's place;
            with it a reader keeps large lists in less room.

    Returns:
        What the file says.

    Raises:
        DataError: it cannot be opened, or is no JSON, or holds NaN or an infinity.
    """

    def refuse(constant: str) -> NoReturn:
        raise DataError(str(path), f"{constant} is no JSON number")

    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_hook=hook, parse_constant=refuse)
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(str(path), "is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as JSON: {error}") from error


def read_xml(path: Path) -> Element:
    """Root of a small XML file.

    Args:
        path: the file.

    Returns:
        Its root element.

    Raises:
        DataError: it cannot be opened, is no XML, or has a document type declaration.
    """
    (element,) = XmlFile(path).elements(depth=0)
    return element


class XmlFile:
    """An XML file of which one element at a time is in memory.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def elements(self, *, depth: int = 1) -> Iterator[Element]:
        """Elements at a depth, each complete, in the order of the file.

        Args:
            depth: 0 for the root, 1 for its children.

        Yields:
            Elements; what lies around them is left out.

        Raises:
            DataError: as `read_xml`.
        """
        parse = _Parse(depth)
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    parse.parser.Parse(chunk)
                    yield from parse.take()
                parse.parser.Parse(b"", True)
            yield from parse.take()
        except (OSError, expat.ExpatError, ValueError, LookupError) as error:
            raise DataError(str(self._path), f"cannot be read as XML: {error}") from error


class _Parse:
    """A run of expat that keeps the elements of one depth."""

    def __init__(self, depth: int) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self._wanted = depth
        self._depth = 0
        self._builder: TreeBuilder | None = None
        self._done: list[Element] = []

    def take(self) -> list[Element]:
        """Elements that are complete since the last call."""
        done, self._done = self._done, []
        return done

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError("a document type declaration, which may declare entities, is not read")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._depth == self._wanted:
            self._builder = TreeBuilder()
        if self._builder is not None:
            self._builder.start(tag, attributes)
        self._depth += 1

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if self._builder is not None:
            self._builder.end(tag)
            if self._depth == self._wanted:
                self._done.append(self._builder.close())
                self._builder = None

    def _text(self, text: str) -> None:
        if self._builder is not None:
            self._builder.data(text)


def record(value: Any, file: str) -> Record:
    """A JSON object.

    Args:
        value: what stands there.
        file: where it stands, for messages.

    Returns:
        The object.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, dict):
        raise DataError(file, f"holds {_shortened(value)} where an object belongs")
    return value


def items(source: Record, key: str, file: str) -> Sequence[Any]:
    """A JSON list of an object.

    Args:
        source: the object.
        key: the list's key; a missing one or null is an empty list.
        file: where it stands, for messages.

    Returns:
        The list.

    Raises:
        DataError: it is none.
    """
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(file, f"{key!r} is {_shortened(value)} where a list belongs")
    return value


def whole(source: Record, key: str, file: str) -> int:
    """A whole number of a JSON object, or of an XML element's attributes.

    Args:
        source: the object.
        key: the number's key.
        file: where it stands, for messages.

    Returns:
        The number.

    Raises:
        DataError: it is missing or none.
    """
    value = source.get(key)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise DataError(file, f"{key!r} is {_shortened(value)} where a whole number belongs")


def number(source: Record, key: str, file: str, *, default: float | None = None) -> float:
    """A finite number of a JSON object, or of an XML element's attributes.

    Args:
        source: the object.
        key: the number's key.
        file: where it stands, for messages.
        default: the number if the key is missing; None if it must be there.

    Returns:
        The number.

    Raises:
        DataError: it is missing, none, or not finite.
    """
    value = source.get(key, default)
    found = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # which leave it as it is, and are told below
            found = float(value)
    if not math.isfinite(found):
        raise DataError(file, f"{key!r} is {_shortened(value)} where a number belongs")
    return found


def text(source: Record, key: str, file: str) -> str:
    """A text of a JSON object, or of an XML element's attributes.

    Args:
        source: the object.
        key: the text's key.
        file: where it stands, for messages.

    Returns:
        The text.

    Raises:
        DataError: it is missing or none.
    """
    value = source.get(key)
    if not isinstance(value, str):
        raise DataError(file, f"{key!r} is {_shortened(value)} where a text belongs")
    return value


def image_size(
    source: Record, file: str, *, height: str = "height", width: str = "width"
) -> tuple[int, int]:
    """Height and width that a record states.

    Args:
        source: the record.
        file: where it stands, for messages.
        height: key of the rows.
        width: key of the columns.

    Returns:
        Rows and columns.

    Raises:
        DataError: one of them is missing, no whole number, or not positive.
    """
    size = whole(source, height, file), whole(source, width, file)
    if min(size) < 1:
        raise DataError(file, f"an image of {size[0]} x {size[1]} (height x width)", kind="size")
    return size


def _shortened(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
