"""Folders of compiled kernels: whose they are, and what an image brings for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from structlog.testing import capture_logs
from torch.testing import assert_close

from lossd.core import compiled, kept
from lossd.core.compiled import Kernels, cache_folder, compile_kernels, example, seed_cache

CPU = torch.device("cpu")
KIND: tuple[compiled.Family, torch.dtype] = ("sigmoid", torch.float32)
needs_compiler = pytest.mark.skipif(
    compiled.choose_mode(CPU) == "eager", reason="needs a C++ compiler"
)


def _seed(seeds: Path, name: str, text: str = "kernel") -> None:
    (seeds / name / "deep").mkdir(parents=True)
    (seeds / name / "deep" / "kernel.so").write_text(text)


def test_another_processor_or_kernel_source_has_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cache_folder(tmp_path, CPU)
    assert mine == cache_folder(tmp_path, CPU)
    assert mine.parent == tmp_path
    monkeypatch.setattr(compiled, "_processor", lambda: "flags: of another machine")
    assert cache_folder(tmp_path, CPU) != mine


def test_an_absent_folder_is_filled_from_the_seed_of_its_name(tmp_path: Path) -> None:
    _seed(tmp_path / "seeds", "mine")
    _seed(tmp_path / "seeds", "of-another-processor")
    cache = tmp_path / "root" / "mine"
    assert seed_cache(cache, tmp_path / "seeds")
    assert (cache / "deep" / "kernel.so").read_text() == "kernel"
    assert [folder.name for folder in cache.parent.iterdir()] == ["mine"]


def test_the_seed_of_another_processor_is_never_read(tmp_path: Path) -> None:
    _seed(tmp_path / "seeds", "of-another-processor")
    cache = tmp_path / "root" / "mine"
    assert not seed_cache(cache, tmp_path / "seeds")
    assert not cache.exists()


def test_a_folder_that_exists_keeps_what_it_has(tmp_path: Path) -> None:
    _seed(tmp_path / "seeds", "mine", "older")
    _seed(tmp_path / "root", "mine", "newer")
    assert not seed_cache(tmp_path / "root" / "mine", tmp_path / "seeds")
    assert (tmp_path / "root" / "mine" / "deep" / "kernel.so").read_text() == "newer"


def test_of_two_processes_that_fill_it_at_once_the_second_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _seed(tmp_path / "seeds", "mine", "older")
    cache = tmp_path / "root" / "mine"
    rename = Path.rename

    def rename_after_another(source: Path, target: Path) -> Path:
        _seed(tmp_path / "root", "mine", "newer")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    assert not seed_cache(cache, tmp_path / "seeds")
    assert (cache / "deep" / "kernel.so").read_text() == "newer"
    assert [folder.name for folder in cache.parent.iterdir()] == ["mine"]


# -- kernels that are kept whole ------------------------------------------------------------------


@pytest.fixture
def may_compile() -> Iterator[None]:
    """Whatever kernels this process has made before."""
    with torch.compiler.set_stance("default"):
        yield


@pytest.fixture
def cache(tmp_path: Path, may_compile: None) -> Path:
    """A folder with the kernels of one kind."""
    del may_compile
    compile_kernels(CPU, tmp_path, [KIND])
    return tmp_path


def map_of(kernels: Kernels) -> torch.Tensor:
    logits, target, weight, gamma, _, pixel = example(*KIND, CPU, tiles=7, classes=3)
    with torch.no_grad():
        return kernels.value_map(logits, target, weight, gamma, pixel)


def compiles_nothing(*_: object) -> NoReturn:
    raise AssertionError


@needs_compiler
def test_a_later_process_reads_its_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "compile_ahead", compiles_nothing)
    monkeypatch.setattr(torch, "compile", compiles_nothing)
    found = compile_kernels(CPU, cache, [KIND])[KIND]
    assert_close(map_of(found), map_of(compiled.eager_kernels()[KIND]))


@needs_compiler
def test_where_torch_keeps_no_kernels_they_are_compiled_when_called(
    tmp_path: Path, may_compile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del may_compile
    monkeypatch.setattr(kept, "IS_AVAILABLE", False)
    found = compile_kernels(CPU, tmp_path, [KIND])[KIND]
    assert_close(map_of(found), map_of(compiled.eager_kernels()[KIND]))
    assert list(tmp_path.glob("*.kernel")) == []


@needs_compiler
@pytest.mark.parametrize("damage", [b"", b"no kernel"], ids=["cut off", "other"])
def test_kernels_that_cannot_be_read_are_compiled_anew(cache: Path, damage: bytes) -> None:
    (path,) = cache.glob("*.kernel")
    size = path.stat().st_size
    path.write_bytes(damage or path.read_bytes()[: size // 2])
    with capture_logs() as logs:
        found = compile_kernels(CPU, cache, [KIND])[KIND]
    assert [entry["family"] for entry in logs if entry["event"] == "kernel_unreadable"] == [KIND[0]]
    assert_close(map_of(found), map_of(compiled.eager_kernels()[KIND]))
    assert path.stat().st_size == pytest.approx(size, rel=0.01)


@needs_compiler
def test_kernels_of_other_threads_are_others(cache: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        compile_kernels(CPU, cache, [KIND])
    finally:
        torch.set_num_threads(threads)
    assert len(list(cache.glob("*.kernel"))) == 2


@needs_compiler
def test_a_kept_kernel_compiles_nothing_for_what_it_was_not_made_for(cache: Path) -> None:
    found = compile_kernels(CPU, cache, [KIND])[KIND]
    logits, target, weight, gamma, _, pixel = example(*KIND, CPU, tiles=7, classes=3)
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype mismatch"):
        found.value_map(logits.double(), target, weight, gamma, pixel)
