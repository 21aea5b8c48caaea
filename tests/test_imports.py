"""Imports go one way, and the two distributions know of each other only what they should."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "service" / "lossd"
CLIENT = ROOT / "client" / "lossd_client"

# What a module of the service may import of the service; packages stand for their modules.
LAYERS = [
    {
        "core.vocabulary",
        "core.checkpoint",
        "settings",
        "metrics",
        "callers",
        "keys",
        "quotas",
        "tracing",
        "device_memory",
        "event_loop",
        "body_memory",
        "cuda_memory",
        "batching",
        "tensors",
        "waiting",
        "busyness",
        "prediction",
        "torch_state",
        "repeated",
        "model_statistics",
        "loopback",
        "landing",
        "shared_memory",
    },
    {"losses"},
    {"core", "presets", "qa"},
    {
        "protocols",
        "engine",
        "kernels",
        "device_tensors",
        "catalogue",
        "formula",
        "listing",
        "logs",
        "api_description",
        "api_qa",
        "pages",
        "spans",
    },
    {
        "receiving",
        "sending",
        "error_bodies",
        "shared_bodies",
        "http_protocol",
        "offload",
        "handover",
        "result",
        "device_logits",
        "direct_route",
    },
    {"problems"},
    {"requests", "shortcut"},
    {"tensor_calls", "qa_calls", "sweeping", "gauges", "access", "metering", "accounting"},
    {"evaluator", "oip_calls"},
    {"in_process", "oip_routes", "oip_shared_memory", "inference"},
    {"app"},
    {"__main__"},
]


def modules(package: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def graph(package: Path) -> dict[str, set[str]]:
    trees = dict(modules(package))
    return {
        name: {other for other in imported(tree) if other in trees and other != name}
        for name, tree in trees.items()
    }


@pytest.mark.parametrize("package", [SERVICE, CLIENT], ids=["service", "client"])
def test_imports_have_no_cycle(package: Path) -> None:
    edges = graph(package)
    # A package's own __init__ collects its modules; importing a module passes through it.
    packages = {name for name in edges if any(other.startswith(name + ".") for other in edges)}
    direct = {
        name: {other for other in others if other not in packages}
        for name, others in edges.items()
        if name not in packages
    }
    assert list(TopologicalSorter(direct).static_order())


def layer(module: str) -> int:
    name = module.removeprefix("lossd.")
    for number, names in enumerate(LAYERS):
        if name in names or (name.partition(".")[0] in names and name not in LAYERS[0]):
            return number
    pytest.fail(f"{module} has no layer; say in {__file__} where it belongs")


def test_the_service_imports_downwards() -> None:
    edges = graph(SERVICE)
    packages = {name for name in edges if any(other.startswith(name + ".") for other in edges)}
    for name, others in edges.items():
        if name in packages:
            continue
        for other in others - packages:
            assert layer(other) <= layer(name), f"{name} imports {other}"


def test_the_client_imports_neither_the_service_nor_an_http_library() -> None:
    for name, tree in modules(CLIENT):
        roots = {other.partition(".")[0] for other in imported(tree)}
        assert not roots & {"lossd", "fastapi", "starlette", "httpx", "urllib3"}, name


def test_one_module_of_the_client_imports_torch_and_no_other_needs_it() -> None:
    trees = dict(modules(CLIENT))
    importing = {name for name, tree in trees.items() if "torch" in set(imported(tree))}
    assert importing == {"lossd_client.torch"}
    for name, tree in trees.items():
        assert "lossd_client.torch" not in set(imported(tree)), name


def test_the_service_imports_of_the_client_only_formats_and_errors() -> None:
    allowed = (
        "lossd_client.wire",
        "lossd_client.errors",
        "lossd_client.qa_wire",
        "lossd_client.coco_rle",
    )
    for name, tree in modules(SERVICE):
        for other in imported(tree):
            if other.startswith("lossd_client"):
                assert other.startswith(allowed), f"{name} imports {other}"


def test_the_core_knows_nothing_of_http() -> None:
    for package in ("core", "losses"):
        for name, tree in modules(SERVICE / package):
            roots = {other.partition(".")[0] for other in imported(tree)}
            assert not roots & {"fastapi", "starlette", "uvicorn", "httpx"}, name


def test_batching_knows_neither_torch_nor_http() -> None:
    (tree,) = [tree for name, tree in modules(SERVICE) if name == "lossd.batching"]
    roots = {other.partition(".")[0] for other in imported(tree)}
    assert not roots & {"torch", "numpy", "fastapi", "starlette"}


def test_only_one_module_knows_opentelemetry() -> None:
    knowing = {
        name
        for name, tree in modules(SERVICE)
        if any(other.partition(".")[0] == "opentelemetry" for other in imported(tree))
    }
    assert knowing == {"lossd.spans"}


def test_one_package_knows_grpc() -> None:
    knowing = {
        name
        for name, tree in modules(SERVICE)
        if any(other.partition(".")[0] in ("grpc", "google") for other in imported(tree))
    }
    assert knowing == {f"lossd.inference.{one}" for one in ("arriving", "messages", "server")}
