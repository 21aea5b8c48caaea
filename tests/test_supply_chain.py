"""What the images are made of is pinned, hashed and licensed; nothing here is fetched."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from supply_chain import audit
from supply_chain.licences import PAGE, listed, policy, refused
from supply_chain.lock import ENVIRONMENTS, Environment, cpu_torch, is_torch
from supply_chain.locked import (
    OURS,
    REQUIREMENTS,
    Pin,
    build_requirements,
    constrained_versions,
    load_test_requirements,
    read,
    service_requirements,
    text,
)

OF_CONSTRAINTS = ["service.txt", "torch-cuda.txt", "torch-cpu.txt", "build.txt", "loadtest.txt"]


def pins(name: str) -> dict[str, Pin]:
    return {pin.name: pin for pin in read(REQUIREMENTS / name)}


def needed(requirements: Iterable[Requirement]) -> set[str]:
    """The requirements and what they need in turn, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        one = waiting.pop()
        if (name := canonicalize_name(one.name)) not in found:
            found.add(name)
            below = map(Requirement, metadata.requires(name) or [])
            waiting += [other for other in below if applies(other, one.extras)]
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def test_every_locked_file_is_read_by_somebody() -> None:
    locked = {path.name for path in REQUIREMENTS.glob("*.txt")}
    assert locked == {*OF_CONSTRAINTS, "supply-chain.txt"}
    assert {*audit.LOCKED, "torch-cpu.txt"} == locked


@pytest.mark.parametrize("name", [*OF_CONSTRAINTS, "supply-chain.txt"])
def test_every_line_is_a_pin_with_hashes(name: str) -> None:
    found = read(REQUIREMENTS / name)
    assert found
    assert all(pin.digests for pin in found)
    assert [pin.name for pin in found] == sorted({pin.name for pin in found})
    assert not OURS & {pin.name for pin in found}  # nobody else may publish under our names


@pytest.mark.parametrize("name", OF_CONSTRAINTS)
def test_versions_are_those_of_constraints(name: str) -> None:
    constrained = constrained_versions()
    for pin in read(REQUIREMENTS / name):
        assert SpecifierSet(f"=={constrained[pin.name]}").contains(pin.version), pin.name


def test_the_image_gets_what_is_required_and_nothing_else() -> None:
    torch = "torch-cpu.txt" if "+cpu" in metadata.version("torch") else "torch-cuda.txt"
    locked = {**pins("service.txt"), **pins(torch)}
    here = {name for name, pin in locked.items() if applies(Requirement(_line(pin)), set())}
    assert here == needed(service_requirements()), "run make lock"


def _line(pin: Pin) -> str:
    return f"{pin.name}=={pin.version}" + (f" ; {pin.marker}" if pin.marker else "")


@pytest.mark.parametrize(
    ("names", "requirements"),
    [
        (["service.txt", "torch-cuda.txt"], service_requirements()),
        (["build.txt"], build_requirements()),
        (["loadtest.txt"], load_test_requirements()),
    ],
    ids=["service", "build", "loadtest"],
)
def test_every_direct_requirement_is_locked(
    names: list[str], requirements: list[Requirement]
) -> None:
    locked = {name: pin for file in names for name, pin in pins(file).items()}
    assert requirements
    for one in requirements:
        pin = locked[canonicalize_name(one.name)]
        assert one.specifier.contains(pin.version, prereleases=True), one


def test_torch_and_its_cuda_runtime_stand_apart() -> None:
    assert not [name for name in pins("service.txt") if is_torch(name)]
    assert all(map(is_torch, pins("torch-cuda.txt")))
    assert {"torch", "nvidia-cublas", "triton"} <= set(pins("torch-cuda.txt"))


def test_the_cpu_build_is_the_same_torch_with_the_digests_on_record() -> None:
    recorded = cpu_torch(read(REQUIREMENTS / "torch-cuda.txt"))
    (locked,) = read(REQUIREMENTS / "torch-cpu.txt")
    assert locked.version == recorded.version
    assert set(locked.digests) == set(recorded.digests)
    with pytest.raises(ValueError, match=r"torch-cpu.sha256 is not of torch 1.0"):
        cpu_torch([Pin("torch", "1.0", None, ())])


def test_the_tools_have_an_environment_of_their_own() -> None:
    asked = (REQUIREMENTS / "supply-chain.in").read_text(encoding="utf-8").split()
    locked = pins("supply-chain.txt")
    for line in asked:
        name, version = line.split("==")
        assert locked[name].version == version
        assert name not in {**pins("service.txt"), **constrained_versions()}


@pytest.mark.parametrize(
    "bad",
    [
        "numpy==2.4.6\n",
        "numpy>=2 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "numpy==2.4.6 \\\n    --hash=md5:" + "0" * 32 + "\n",
        "numpy==2.4.6 \\\n    --hash=sha256:" + "0" * 64 + " \\\n",
        "--index-url https://example.org/simple\n",
    ],
    ids=["no hash", "no pin", "weak hash", "cut off", "another index"],
)
def test_a_line_that_pins_nothing_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(bad, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.txt"):
        read(path)


def test_a_locked_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = [
        Pin("a", "1", None, ("0" * 64, "f" * 64)),
        Pin("b-c", "2.0+cpu", "python_full_version < '3.13'", ("1" * 64,)),
    ]
    path = tmp_path / "good.txt"
    path.write_text(text("Why.\nAnd where.", reversed(written)), encoding="utf-8")
    assert read(path) == written


@pytest.mark.parametrize(
    ("wheel", "environments"),
    [
        ("a-1-py3-none-any.whl", ENVIRONMENTS),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", [Environment(12, "aarch64")]),
        ("a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", ENVIRONMENTS[:1]),
        (
            "a-1-cp310-abi3-manylinux1_x86_64.whl",
            [one for one in ENVIRONMENTS if one.machine == "x86_64"],
        ),
        ("a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", []),
        ("a-1-cp312-cp312-manylinux_2_40_x86_64.whl", []),
        ("a-1-cp312-cp312-musllinux_1_2_x86_64.whl", []),
        ("a-1-cp312-cp312-win_amd64.whl", []),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", []),
    ],
)
def test_a_wheel_is_listed_where_pip_would_take_it(
    wheel: str, environments: list[Environment]
) -> None:
    assert [one for one in ENVIRONMENTS if one.installs(wheel)] == environments


def test_a_marker_decides_where_a_package_is_needed() -> None:
    assert not [one for one in ENVIRONMENTS if one.needs("sys_platform == 'win32'")]
    old = [one.python_minor for one in ENVIRONMENTS if one.needs("python_version < '3.12'")]
    assert old == [11, 11]


def test_the_list_of_licences_is_of_what_is_locked() -> None:
    locked = {**pins("torch-cuda.txt"), **pins("service.txt")}
    rows = {row.name: row.version for row in listed(PAGE.read_text(encoding="utf-8"))}
    assert rows == {name: pin.version for name, pin in locked.items()}, "run make licences"


def test_every_licence_is_allowed_and_every_project_has_a_home() -> None:
    for row in listed(PAGE.read_text(encoding="utf-8")):
        assert not refused(row.licence, policy()["allowed"]), row
        home = urlsplit(row.home)
        assert home.scheme.startswith("http"), row
        assert not home.path.startswith("/project/"), "a page of an index is no home"


def test_what_a_person_read_is_of_the_locked_version() -> None:
    locked = {**pins("torch-cuda.txt"), **pins("service.txt")}
    for name, entry in policy()["packages"].items():
        assert entry["version"] == locked[name].version, name
        assert entry["read_from"]


def test_one_licence_that_is_not_allowed_is_enough() -> None:
    allowed = ["MIT", "Apache-2.0 WITH LLVM-exception"]
    assert not refused("MIT AND Apache-2.0 WITH LLVM-exception", allowed)
    assert refused("MIT AND (GPL-3.0-only OR MIT)", allowed) == ["GPL-3.0-only"]
    assert refused("Apache-2.0", allowed) == ["Apache-2.0"]
    assert refused("no licence as SPDX", allowed)


def report(**known: list[dict[str, Any]] | str) -> dict[str, Any]:
    """A report of pip-audit: vulnerabilities by package, or why a package was skipped."""
    return {
        "dependencies": [
            {"name": name, "skip_reason": told}
            if isinstance(told, str)
            else {"name": name, "version": "1", "vulns": told}
            for name, told in known.items()
        ]
    }


FOUND = {"id": "PYSEC-1", "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (None, 0, "audit skipped"),
        (report(a="not found", b="not found"), 0, "audit skipped"),
        (report(a=[], b=[]), 0, "10 packages audited by pypi"),
        (report(a=[FOUND], b=[]), 1, "a 1: PYSEC-1, mended in 2"),
        (report(a=[FOUND], b="not found"), 1, "b: not known to pypi"),
        (report(a=[], b="not found"), 2, "b: not known to pypi"),
    ],
    ids=["nobody answers", "all unknown", "none", "found", "found and unknown", "one unknown"],
)
def test_the_audit_fails_where_something_is_found_or_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: dict[str, Any] | None,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(audit, "_report", lambda *_: answer)
    assert audit.main() == status
    assert said in capsys.readouterr().out


def test_only_a_missing_answer_counts_as_unreachable() -> None:
    lost = "Traceback …\nrequests.exceptions.ConnectionError: Failed to resolve 'example.org'"
    assert audit.unreachable(lost)
    assert not audit.unreachable("")
    assert not audit.unreachable("ERROR:pip_audit._cli:package a has duplicate requirements")
    assert not audit.unreachable(f"{lost}\nKeyError: 'vulnerabilities'")
