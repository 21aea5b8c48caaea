"""The calls of `/v1/tensors`: to keep tensors, to be given one, to keep one no longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import orjson
from starlette.requests import Request

from lossd.offload import decode, offload
from lossd.protocols.answers import encoding_asked
from lossd.protocols.files import Budget
from lossd.protocols.json_body import unknown_ref
from lossd.protocols.kept import read_tensors
from lossd.receiving import ReceivedBody, body_kind
from lossd.settings import Settings
from lossd.tensors import Finder, Kept, TensorStore
from lossd_client.wire import JSON, SAFETENSORS, encode_safetensors, encode_tensor


async def keep_tensors(
    request: Request, store: TensorStore, settings: Settings
) -> Mapping[str, Kept]:
    """Keeps the tensors of the body, by name.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    kind, content_type = body_kind(request)
    caller = request.state.caller
    find = Finder(store, caller)
    async with ReceivedBody(request, settings) as body:

        def keep(budget: Budget) -> Mapping[str, Kept]:
            return store.put(caller, read_tensors(body, kind, content_type, budget, find))

        return await decode(caller, body, kind, settings, keep)


def describe_kept(kept: Mapping[str, Kept]) -> dict[str, Any]:
    """What is answered about tensors that are kept."""
    described = {
        name: {
            "ref": one.ref,
            "dtype": one.dtype,
            "shape": list(one.shape),
            "nbytes": one.nbytes,
            "expires_in_s": round(one.expires_in_s, 3),
        }
        for name, one in kept.items()
    }
    refs = [one.ref for one in kept.values()]
    return {"tensors": described, **({"ref": refs[0]} if len(refs) == 1 else {})}


async def give_tensor(
    request: Request, store: TensorStore, ref: str
) -> tuple[list[bytes | memoryview], str]:
    """A tensor of the caller's as parts of a body, and their content type.

    Raises:
        UnknownRefError: there is none.
    """
    entry = store.find(request.state.caller, ref)
    if entry is None:
        _refuse(ref)
    array = entry.array
    if encoding_asked(request.headers.get("accept", ""), "json") == "safetensors":
        return encode_safetensors({"tensor": array}, {}), SAFETENSORS
    text = await offload(
        request.state.caller, array.nbytes, lambda: orjson.dumps(encode_tensor(array))
    )
    return [text], JSON


def forget_tensor(request: Request, store: TensorStore, ref: str) -> None:
    """Keeps a tensor of the caller's no longer.

    Raises:
        UnknownRefError: there is none.
    """
    if not store.delete(request.state.caller, ref):
        _refuse(ref)


def _refuse(ref: str) -> NoReturn:
    raise unknown_ref(ref, ("path", "ref"))
