"""Folders of compiled kernels: whose they are, and what an image brings for them."""

from pathlib import Path

import pytest
import torch

from lossd.core import compiled
from lossd.core.compiled import cache_folder, seed_cache

CPU = torch.device("cpu")


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
