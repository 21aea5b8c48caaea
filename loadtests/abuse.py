"""Bodies that nobody should send, kept small: what they would cost is claimed, not carried."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import replace

import numpy as np

from loadtests.bodies import (
    Question,
    form,
    npy,
    png_of,
    samples,
    write_json,
    write_safetensors,
)

_SMALL = Question(channels=3, sizes=((48, 48),), losses=("dice", "cross_entropy"))
_PNG_SIDE = 60_000
_NPZ_UNFOLDS_TO_BYTES = 3 << 30
_LIED_NPZ_BYTES = 16 << 20


def good_json() -> bytes:
    """Nothing is wrong with the body itself."""
    return write_json(_SMALL, samples(_SMALL, 0))


def good_safetensors() -> bytes:
    """Nothing is wrong with the body itself."""
    return write_safetensors(_SMALL, samples(_SMALL, 0))


def empty() -> bytes:
    """No byte at all."""
    return b""


def malformed_json() -> bytes:
    """JSON that ends in the middle."""
    return good_json()[:-20]


def cut_safetensors() -> bytes:
    """A file that lost its last 100 bytes."""
    return good_safetensors()[:-100]


def unknown_loss() -> bytes:
    """A loss that does not exist, in an otherwise good request."""
    question = replace(_SMALL, losses=("dicee",))
    return write_json(question, samples(question, 0))


def wild_label() -> bytes:
    """One label is the number of classes, which is one too many."""
    (sample,) = samples(_SMALL, 0)
    target = sample.target.copy()
    target[0, 7, 11] = _SMALL.channels
    return write_safetensors(_SMALL, [replace(sample, target=target)])


def nan_logits() -> bytes:
    """One logit is NaN; found on the device, in a batch with others."""
    (sample,) = samples(_SMALL, 0)
    logits = sample.logits.copy()
    logits[0, 1, 20, 30] = np.nan
    return write_safetensors(_SMALL, [replace(sample, logits=logits)])


def png_bomb() -> bytes:
    """A form whose mask claims to be 3.6 gigapixels."""
    (sample,) = samples(_SMALL, 0)
    bomb = png_of(_PNG_SIDE, _PNG_SIDE, bytes(1 << 20))
    return form([("losses", b"dice"), ("logits", npy(sample.logits[0])), ("target", bomb)])


def zip_bomb() -> bytes:
    """A form whose prediction is an `.npz` that claims to unfold to 3 GiB."""
    return _form_with_npz(_npz(b"", claimed_bytes=_NPZ_UNFOLDS_TO_BYTES))


def zip_that_lies() -> bytes:
    """A form whose `.npz` claims to unfold to as much as it should, and unfolds to 16 MiB."""
    honest = npy(samples(_SMALL, 0)[0].logits[0])
    return _form_with_npz(_npz(honest + bytes(_LIED_NPZ_BYTES), claimed_bytes=len(honest)))


def not_an_object() -> bytes:
    """JSON, but not a request."""
    return json.dumps([1, 2, 3]).encode()


def _form_with_npz(npz: bytes) -> bytes:
    (sample,) = samples(_SMALL, 0)
    return form([("losses", b"dice"), ("logits", npz), ("target", npy(sample.target[0]))])


def _npz(content: bytes, claimed_bytes: int) -> bytes:
    """An archive of one array with a size of its own choice in both of its directories."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    data = bytearray(file.getvalue())
    for header, size_at in ((data.index(b"PK\x03\x04"), 22), (data.rindex(b"PK\x01\x02"), 24)):
        struct.pack_into("<I", data, header + size_at, claimed_bytes)
    return bytes(data)
