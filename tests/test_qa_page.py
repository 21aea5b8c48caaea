"""`report.html` as a file: its parts, what it holds, and that it does not grow in memory."""

import json
import re
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qa_page_data
from lossd_client.qa.export import Region
from lossd_client.qa.overlays import Overlay
from lossd_client.qa.page import Card, View, card_of, view_of, write_page
from lossd_client.qa.page.assets import markup, script, style
from lossd_client.wire import Array

CLIENT = Path(__file__).parents[1] / "client"
PAGE = CLIENT / "lossd_client" / "qa" / "page"
DECLARED = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|const|let|class) ([A-Za-z_]\w*)", re.MULTILINE
)


def element(text: str, name: str) -> str:
    found = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return found[1]


def index_in(text: str) -> list[dict[str, Any]]:
    columns, *rows = json.loads(element(text, "index"))
    return [dict(zip(columns, row, strict=True)) for row in rows]


def overlay(labels: Array, heat: Array | None = None, ignored: int = 255) -> Overlay:
    photo = Image.new("RGB", (labels.shape[1], labels.shape[0]), (200, 100, 50))
    heat = np.zeros(labels.shape, np.float32) if heat is None else heat
    return Overlay("", "", photo, labels, labels[:, ::-1], heat, (), (), ignored)


def labels_of(view: View, dtype: str = "u1") -> tuple[Array, Array]:
    values = np.frombuffer(zlib.decompress(view.labels), dtype)
    given, predicted = values.reshape(2, *view.labels_size)
    return given, predicted


def test_scripts_share_one_scope_without_a_name_twice() -> None:
    names: list[str] = []
    for path in sorted((PAGE / "script").glob("*.js")):
        names += DECLARED.findall(path.read_text(encoding="utf-8"))
    assert len(names) > 60
    assert sorted(names) == sorted(set(names))
    whole = script()
    assert not re.search(r"^(import|export) ", whole, re.MULTILINE)
    assert sorted(DECLARED.findall(whole)) == sorted(names)  # main needs every module
    assert "</script" not in whole


def test_a_script_comes_behind_what_it_imports() -> None:
    whole = script(["exports"])
    assert 0 <= whole.index("function maskOf") < whole.index("function cocoOf")
    assert "class Viewer" not in whole


def test_every_element_that_scripts_ask_for_is_there() -> None:
    asked = set(re.findall(r'byId\("([a-z-]+)"\)', script()))
    there = set(re.findall(r' id="([a-z-]+)"', markup()))
    assert len(asked) > 40
    assert asked <= there


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = markup() + style() + script()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)


def test_names_cannot_end_their_element(tmp_path: Path) -> None:
    text = qa_page_data.write(tmp_path).path.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert json.loads(element(text, "head"))["classes"][2] == "tree & <b>shrub</b>"
    assert len(index_in(text)) == 12


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    text = qa_page_data.write(tmp_path, 2).path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]


def test_small_images_keep_every_label() -> None:
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
    labels[0] = 255
    given, predicted = labels_of(view_of(overlay(labels), 5))
    assert (given == labels).all()
    assert (predicted == labels[:, ::-1]).all()


def test_what_does_not_count_is_the_largest_number() -> None:
    labels = np.array([[0, 299, -1]], np.int16)
    view = view_of(overlay(labels, ignored=-1), 300)
    given, _ = labels_of(view, "<u2")
    assert given.tolist() == [[0, 299, 65535]]


def test_large_images_are_bounded() -> None:
    labels = np.zeros((1500, 3000), np.uint8)
    labels[:, 1500:] = 1
    heat: Any = np.zeros(labels.shape, np.float32)
    heat[700, 2990] = 7.3
    view = view_of(overlay(labels, heat), 2)
    assert view.labels_size == (480, 960)
    given, _ = labels_of(view)
    assert (given[:, :480] == 0).all()
    assert (given[:, 480:] == 1).all()
    # 3000 px are more than six times 480: squares of 7, of which the hottest pixel stays.
    assert (view.heat_side_px, view.heat_size) == (7, (215, 429))
    steps = np.frombuffer(zlib.decompress(view.heat), np.uint8).reshape(view.heat_size)
    assert steps[100, 427] == 29  # 7.3 nats in quarters
    assert (steps > 0).sum() == 1
    with Image.open(BytesIO(view.photo)) as photo:
        assert photo.size == (960, 480)


def test_the_page_holds_what_it_was_given(tmp_path: Path) -> None:
    invented = qa_page_data.write(tmp_path, 5, views=2)
    text = invented.path.read_text(encoding="utf-8")
    index = index_in(text)
    assert [entry["name"] for entry in index] == [image.name for image in invented.ranking]
    assert [len(entry["regions"]) for entry in index] == [3, 3, 0, 3, 3]
    first = json.loads(element(text, "r1"))
    told = [region.counts for region in invented.regions["street-0000"]]
    assert [region["counts"] for region in first] == told
    view = json.loads(element(text, "v2"))
    with Image.open(BytesIO(b64decode(view["photo"]))) as photo:
        assert (photo.format, photo.size) == ("WEBP", (64, 48))
    assert 'id="v3"' not in text
    assert 'id="t5"' in text


def test_a_photo_that_is_gone_leaves_its_regions(tmp_path: Path) -> None:
    invented = qa_page_data.write(tmp_path, 1)
    card = card_of(1, None, invented.regions["street-0000"], None)
    write_page(tmp_path / "gone.html", {"data_set": "a"}, [], [card])
    text = (tmp_path / "gone.html").read_text(encoding="utf-8")
    assert len(json.loads(element(text, "r1"))) == 3
    assert 'id="t1"' not in text


def test_a_page_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    before = qa_page_data.write(tmp_path, 2).path.read_bytes()

    def failing() -> Iterator[Card]:
        yield card_of(1, None, (), None)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_page(tmp_path / "report.html", {"data_set": "a"}, [], failing())
    assert (tmp_path / "report.html").read_bytes() == before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    photo = bytes(30_000)
    view = View(photo, (1, 1), photo, (1, 1), 1, photo)
    regions: tuple[Region, ...] = ()

    def peak_bytes(count: int) -> int:
        cards = (Card(rank, photo, regions, view) for rank in range(1, count + 1))
        tracemalloc.start()
        write_page(tmp_path / "report.html", {"data_set": "a"}, ({} for _ in range(count)), cards)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(5), peak_bytes(200)
    assert (tmp_path / "report.html").stat().st_size > 30_000_000
    assert many < few + 500_000


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=CLIENT, check=True, capture_output=True)  # noqa: S603 - ours
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    parts = [path for path in PAGE.rglob("*") if path.suffix in {".html", ".css", ".js"}]
    assert len(parts) > 15
    assert {path.relative_to(CLIENT).as_posix() for path in parts} <= packed
