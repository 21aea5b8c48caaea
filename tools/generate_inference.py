"""Writes `service/lossd/inference/inference.desc` from the `.proto` beside it."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).parents[1] / "service" / "lossd" / "inference"
PROTO = FOLDER / "inference.proto"
DESCRIPTION = FOLDER / "inference.desc"


def write(path: Path) -> None:
    """Writes the description of the messages, as protobuf has it.

    Raises:
        ValueError: the file is no valid definition.
    """
    status = protoc.main(
        ["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={path}", PROTO.name]
    )
    if status:
        raise ValueError(f"protoc ended with {status}")


if __name__ == "__main__":
    write(DESCRIPTION)
    print(DESCRIPTION)
