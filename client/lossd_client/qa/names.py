"""Names that bring an image, its annotation and its prediction together.

An item's path name is its path below the folder, or what a tool's file says in its place, with `/`
between folders and without the extension.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from lossd_client.qa.problems import DataError

PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_SUFFIXES = PHOTO_SUFFIXES | {".npy", ".json", ".xml", ".txt"}

# Label Studio puts eight hexadecimal digits and a dash before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def path_name(text: str, file: str) -> str:
    r"""Path name out of a file name that a tool wrote.

    Args:
        text: file name, relative or absolute path, with `/` or `\`.
        file: where it stands, for messages.

    Returns:
        The name without root and known extension.

    Raises:
        DataError: an empty name, one with a NUL, or one with `..` in it.

    Example:
        >>> path_name("street\\left.0001.PNG", "annotations.json")
        'street/left.0001'
    """
    path = PurePosixPath(text.replace("\\", "/"))
    parts = [part for part in path.parts if part != "/"]
    if not parts or "\0" in text or ".." in parts:
        raise DataError(file, f"{text!r} is no name of a file below the folder", kind="unmatched")
    suffix = PurePosixPath(parts[-1]).suffix
    if suffix.lower() in _SUFFIXES:
        parts[-1] = parts[-1].removesuffix(suffix)
    return "/".join(parts)


def url_name(url: str, file: str) -> str:
    """Path name out of the address that Label Studio keeps of an image.

    Args:
        url: address or path; `?d=` names a file of local storage.
        file: where it stands, for messages.

    Returns:
        The name without host, without the digits that an upload is given, without extension.

    Raises:
        DataError: as `path_name`.

    Example:
        >>> url_name("/data/upload/7/0a1b2c3d-car.png", "tasks.json")
        'data/upload/7/car'
        >>> url_name("/data/local-files/?d=street/car.png", "tasks.json")
        'street/car'
    """
    try:
        parts = urlsplit(url)
        local = parse_qs(parts.query).get("d")
    except ValueError as error:
        raise DataError(file, f"{url!r} is no address: {error}", kind="unmatched") from error
    name = path_name(local[0] if local else unquote(parts.path), file)
    folder, slash, stem = name.rpartition("/")
    if "upload" in folder.split("/") or not folder:
        stem = _UPLOAD_PREFIX.sub("", stem)
    return f"{folder}{slash}{stem}"


def stem(name: str) -> str:
    """Last part of a path name."""
    return name.rpartition("/")[2]


def files_below(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files of a folder and the folders in it, in the order of their names.

    Args:
        folder: where to look; hidden files and folders are left out.
        suffixes: extensions with the dot, in lower case.

    Yields:
        Paths that begin with `folder`.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if not name.startswith("."))
        paths = (Path(place, name) for name in names)
        found += (path for path in paths if path.suffix.lower() in suffixes and path.is_file())
    yield from sorted(found)


def name_below(path: Path, folder: Path) -> str:
    """Path name of a file in a folder."""
    return path_name(path.relative_to(folder).as_posix(), str(path))
