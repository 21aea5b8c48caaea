"""Writes a CycloneDX bill of materials of an image: `make sbom`, or `make sbom TORCH=cpu`.

cyclonedx-py reads the locked files, so that the CUDA runtime is in it without being installed. The
licences of docs/licences.md, our own client and what lossd needs itself are added.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from typing import Any

from cyclonedx.schema import SchemaVersion  # type: ignore[import-not-found] # not in .venv
from cyclonedx.validation.json import (  # type: ignore[import-not-found] # not in .venv
    JsonStrictValidator,
)
from packaging.utils import canonicalize_name

from supply_chain.licences import PAGE, listed
from supply_chain.locked import REQUIREMENTS, ROOT, service_requirements

TARGET = ROOT / "build" / "sbom.json"
_CLIENT_VERSION = ROOT / "client" / "lossd_client" / "_version.py"


def main() -> None:
    """Writes build/sbom.json, once it is valid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("torch", choices=["cuda", "cpu"])
    document = json.loads(_of_locked("service.txt", f"torch-{parser.parse_args().torch}.txt"))
    document["components"].append(_client())
    _add_licences(document["components"])
    _add_root_dependencies(document)
    written = json.dumps(document, indent=2) + "\n"
    schema = SchemaVersion.from_version(document["specVersion"])
    problem = JsonStrictValidator(schema).validate_str(written)
    if problem:
        sys.exit(f"not valid CycloneDX: {problem}")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(written, encoding="utf-8")
    components = len(document["components"])
    print(
        f"{TARGET.relative_to(ROOT)}: {components} components, CycloneDX {document['specVersion']}"
    )


def _of_locked(*names: str) -> str:
    pins = "".join((REQUIREMENTS / name).read_text(encoding="utf-8") for name in names)
    # It warns that the root has no dependencies, which are added below.
    command = [sys.executable, "-W", "ignore::UserWarning", "-m", "cyclonedx_py"]
    root = ["--pyproject", "service/pyproject.toml", "--mc-type", "application"]
    return subprocess.run(  # noqa: S603 - our own command
        [*command, "requirements", "-", *root, "--output-reproducible"],
        input=pins,
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _client() -> dict[str, Any]:
    (version,) = re.findall(
        r'^__version__ = "(.+)"', _CLIENT_VERSION.read_text(encoding="utf-8"), re.MULTILINE
    )
    own = {"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}
    return {
        "bom-ref": "lossd-client",
        "name": "lossd-client",
        "version": version,
        "type": "library",
        "licenses": [own],
    }


def _add_licences(components: list[dict[str, Any]]) -> None:
    rows = {row.name: row for row in listed(PAGE.read_text(encoding="utf-8"))}
    for component in components:
        row = rows.get(component["name"])
        if row:
            component["licenses"] = [{"acknowledgement": "declared", "expression": row.licence}]


def _add_root_dependencies(document: dict[str, Any]) -> None:
    needed = {canonicalize_name(one.name) for one in service_requirements()} | {"lossd-client"}
    references = [one["bom-ref"] for one in document["components"] if one["name"] in needed]
    root = document["metadata"]["component"]["bom-ref"]
    others = [one for one in document["dependencies"] if one["ref"] != root]
    own = [{"ref": "lossd-client"}, {"ref": root, "dependsOn": sorted(references)}]
    document["dependencies"] = [*others, *own]


if __name__ == "__main__":
    main()
