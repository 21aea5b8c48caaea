"""The protocol's messages, made from their description.

They live in a pool of their own: a client of the protocol in this process brings the same names.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "inference.GRPCInferenceService"

POOL: Final = descriptor_pool.DescriptorPool()
"""All messages of the protocol."""

_DESCRIPTION = descriptor_pb2.FileDescriptorSet.FromString(
    files(__package__).joinpath("inference.desc").read_bytes()
)
for _file in _DESCRIPTION.file:
    POOL.Add(_file)


@cache
def message(name: str) -> Any:
    """Class of a message.

    Example:
        >>> message("ServerLiveResponse")(live=True).live
        True
    """
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))
