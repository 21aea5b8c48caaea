"""Keys that callers show: their file, and whose a shown key is. Knows nothing of HTTP.

A key is `lossd_<id>_<secret>`. The file holds the SHA-256 of the secret and never the secret:

    {"keys": [{"id": "4f1c22ab", "name": "lab-a", "sha256": "…", "created": "2026-11-25",
               "allowance": {"requests_per_minute": 600}}]}

What an entry does not allow is the service's default.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lossd.callers import ANONYMOUS, Allowance, Caller

log = structlog.get_logger(__name__)

NAME_PATTERN: Final = r"^[a-z0-9-]{1,40}$"
_PREFIX: Final = "lossd"
_SECRET_BYTES: Final = 32
_LOOK_EVERY_S: Final = 1.0


class KeysError(Exception):
    """The keys cannot be read or written as asked; the message is for the operator."""


class Key(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    # Neither salt nor a slow hash: those protect secrets that can be guessed, not 256 random bits.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: dt.date
    allowance: Allowance = Allowance()


class Keys(BaseModel):
    """The keys that are valid at one time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        # One set for both: a key is revoked by either.
        said = Counter(text for key in self.keys for text in (key.id, key.name))
        twice = [text for text, count in said.items() if count > 1]
        if twice:
            msg = f"more than one key is called {twice[0]}"
            raise ValueError(msg)
        if ANONYMOUS.name in said:
            msg = f"{ANONYMOUS.name} is what requests without a key are called"
            raise ValueError(msg)
        return self


class Owners:
    """Tells whose a shown key is, in the same steps whether it is anybody's or nobody's."""

    def __init__(self, keys: Keys) -> None:
        self._known: dict[str, tuple[Caller | None, bytes]] = {
            key.id: (Caller(name=key.name, allowance=key.allowance), bytes.fromhex(key.sha256))
            for key in keys.keys
        }
        # What no id leads to is compared as well. Nobody knows a secret of this digest.
        self._nobody = (None, secrets.token_bytes(hashlib.sha256().digest_size))

    def owner(self, shown: str) -> Caller | None:
        """Whose the key is, None if it is not valid."""
        prefix, _, rest = shown.partition("_")
        key_id, _, secret = rest.partition("_")
        caller, digest = self._known.get(key_id if prefix == _PREFIX else "", self._nobody)
        return caller if hmac.compare_digest(_digest(secret), digest) else None


class KeyFile:
    """The keys of a file that is read again when it changes; for one thread.

    Raises:
        KeysError: the file cannot be read now. Later that is logged, and the last keys stay valid.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._state = _state(path)  # before it is read: what changes meanwhile is seen next time
        self._owners = Owners(read_keys(path))
        self._readable = True
        self._next_look_s = clock() + _LOOK_EVERY_S

    def owners(self) -> Owners:
        """Those of the file as it was at most a second ago."""
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_EVERY_S
            self._look()
        return self._owners

    def _look(self) -> None:
        state = _state(self._path)
        changed = state != self._state
        # An unreadable file is tried again: permissions change without any of what is compared.
        if not changed and self._readable:
            return
        self._state = state
        try:
            keys = read_keys(self._path)
        except KeysError as error:
            self._readable = False
            if changed:
                log.error("keys_unreadable", reason=str(error))  # noqa: TRY400 - no traceback
            return
        self._readable = True
        self._owners = Owners(keys)
        log.info("keys_read", keys=len(keys.keys))


def read_keys(path: Path) -> Keys:
    """The keys in a file; none in an empty one.

    Raises:
        KeysError: it cannot be read or is not what this module writes.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise KeysError(msg) from error
    if not text.strip():
        return Keys()
    return _checked(path, text)


def add_key(path: Path, name: str, allowance: Allowance | None = None) -> str:
    """Writes a new key into a file, which need not exist, and returns the key: only now.

    Raises:
        KeysError: the name is taken, or the file cannot be read or written.
    """
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    with _locked(path):
        keys = read_keys(path) if path.exists() else Keys()
        taken = {ANONYMOUS.name, *(text for key in keys.keys for text in (key.id, key.name))}
        if name in taken:
            msg = f"{path}: the name {name} is taken"
            raise KeysError(msg)
        key_id = next(free for free in _ids() if free not in taken | {name})
        added = Key(
            id=key_id,
            name=name,
            sha256=_digest(secret).hex(),
            created=dt.datetime.now(dt.UTC).date(),
            allowance=allowance or Allowance(),
        )
        _write(path, Keys(keys=(*keys.keys, added)))
    return f"{_PREFIX}_{key_id}_{secret}"


def limit_key(path: Path, called: str, change: Callable[[Allowance], Allowance]) -> Key:
    """Changes what the key of that name or id may use, and returns what is kept of it now.

    Raises:
        KeysError: there is none, or the file cannot be read or written.
    """
    with _locked(path):
        keys = read_keys(path)
        found = _found(path, keys, called)
        changed = found.model_copy(update={"allowance": change(found.allowance)})
        _write(path, Keys(keys=tuple(changed if key is found else key for key in keys.keys)))
    return changed


def revoke_key(path: Path, called: str) -> Key:
    """Takes the key of that name or id out of a file, and returns what was kept of it.

    Raises:
        KeysError: there is none, or the file cannot be read or written.
    """
    with _locked(path):
        keys = read_keys(path)
        revoked = _found(path, keys, called)
        _write(path, Keys(keys=tuple(key for key in keys.keys if key is not revoked)))
    return revoked


def _found(path: Path, keys: Keys, called: str) -> Key:
    for key in keys.keys:
        if called in (key.id, key.name):
            return key
    msg = f"{path}: there is no key called {called}"
    raise KeysError(msg)


def _checked(path: Path, text: bytes) -> Keys:
    try:
        return Keys.model_validate_json(text)
    except ValidationError as error:
        # Neither values nor the names of unknown fields: someone may have written a secret there.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        known = [part for part in first["loc"] if isinstance(part, int) or part in _FIELDS]
        where = ".".join(str(part) for part in known) or "file"
        msg = f"{path}: {where}: {first['msg']}"
        # Not `from error`, which shows the values.
        raise KeysError(msg) from None


_FIELDS: Final = {*Keys.model_fields, *Key.model_fields, *Allowance.model_fields}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _ids() -> Iterator[str]:
    while True:
        yield secrets.token_hex(4)


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None if nothing can be learnt of it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other commands from the file; those who only read it need no lock."""
    target = path.resolve()  # one file has one lock, whatever links lead to it
    # Not the file itself: each writer puts a new one in its place.
    lock = target.parent / f"{target.name}.lock"
    try:
        with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
    except OSError as error:
        msg = f"{error.filename or path}: {error.strerror}"
        raise KeysError(msg) from error


def _write(path: Path, keys: Keys) -> None:
    """Puts a file with mode 0600 in the place of another, whole or not at all."""
    target = path.resolve()  # a link stays one
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as written:
            written.write(keys.model_dump_json(indent=2, exclude_defaults=True) + "\n")
            written.flush()
            _keep_owner(descriptor, target)
            os.fsync(descriptor)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)  # of an attempt that failed
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep_owner(descriptor: int, target: Path) -> None:
    """Leaves the file to whom it belonged: root may add a key for a service that is not root."""
    if not target.exists():
        return
    old, new = target.stat(), os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
