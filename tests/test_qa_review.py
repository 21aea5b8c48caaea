"""`lossd-client qa` writes the page, and takes the decisions that were made on it back."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import annotations as drawn_annotations
import qa_data_set
import qa_export
from lossd_client.__main__ import main
from lossd_client.qa.decisions import decided_region
from lossd_client.qa.export import Region
from qa_data_set import DataSet
from service_fixture import Served
from test_qa_page import element, index_in

Json = dict[str, Any]
AT = "2026-01-01T10:00:00.000Z"


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return str(served.client.base_url)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return qa_data_set.make(tmp_path_factory.mktemp("qa") / "set")


@pytest.fixture(scope="module")
def reference(data: DataSet, url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run with one worker, with views of seven of its twelve images."""
    out: Path = tmp_path_factory.mktemp("qa") / "report"
    more = ("--workers", "1", "--export", "label-studio")
    assert run(data, out, url, *more) == 0
    return out


def run(data: DataSet, out: Path, url: str, *more: str) -> int:
    base = ("--url", url, "--overlays", "2", "--views", "7")
    return main(data.arguments(out, *base, *more))


def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def head_and_index(out: Path) -> tuple[Json, list[Json]]:
    text = page(out)
    return json.loads(element(text, "head")), index_in(text)


def ranking(out: Path) -> list[dict[str, str]]:
    with (out / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def annotations(out: Path, name: str) -> list[Json]:
    document = json.loads((out / "regions.json").read_text())
    (number,) = (each["id"] for each in document["images"] if each["file_name"] == f"{name}.png")
    return [each for each in document["annotations"] if each["image_id"] == number]


def decision(out: Path, place: int, verdict: str, region: int | None = 0) -> Json:
    """A decision as the page saves it, about the image of that place in the ranking."""
    _, index = head_and_index(out)
    image = index[place]
    told = None
    if region is not None:
        shown = json.loads(element(page(out), f"r{place + 1}"))[region]
        made = Region(
            image=image["name"],
            size=tuple(image["size"]),
            bbox=tuple(shown["bbox"]),
            counts=shown["counts"],
            area_px=shown["area"],
            given=shown["given"],
            predicted=shown["predicted"],
            score=shown["score"],
            kind=shown["kind"],
            reason=shown["reason"],
        )
        told = decided_region(made).model_dump(mode="json")
        assert told["id"] == shown["id"]
    known = {"image": image["name"], "region": told, "verdict": verdict, "decided_at": AT}
    return {**known, "suspicion": image["suspicion"], "labels": image["labels"]}


def written(path: Path, *decisions: Json) -> Path:
    document = {"format": "lossd-qa-decisions", "version": 1, "decisions": list(decisions)}
    path.write_text(json.dumps(document))
    return path


def test_the_page_has_every_image_and_the_first_closely(data: DataSet, reference: Path) -> None:
    text = page(reference)
    head, index = head_and_index(reference)
    assert [entry["name"] for entry in index] == [row["name"] for row in ranking(reference)]
    assert head["data_set"] == "set/images"
    assert head["classes"] == list(qa_data_set.CLASSES)
    assert sum(f'id="v{rank}"' in text for rank in range(1, 13)) == 7
    assert all(f'id="t{rank}"' in text for rank in range(1, 13))
    facts = dict(head["facts"])
    assert facts["disputed margin"] == "0.5"
    assert facts["predictions"].startswith(str(data.root / "predictions"))


def test_order_workers_parts_and_interruptions_change_no_byte_of_it(
    data: DataSet, reference: Path, url: str, tmp_path: Path
) -> None:
    apart = tmp_path / "apart"
    assert run(data, apart, url, "--shard", "2/2") == 0
    assert run(data, apart, url, "--workers", "7") == 0
    assert page(apart) == page(reference)
    resumed = tmp_path / "resumed"
    shutil.copytree(reference, resumed)
    for path in sorted((resumed / "state/judged").glob("*/*"))[:3]:
        path.unlink()
    assert run(data, resumed, url) == 0
    assert page(resumed) == page(reference)


def test_no_page_is_written_where_none_is_wanted(
    data: DataSet, reference: Path, url: str, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    shutil.copytree(reference, out)
    assert run(data, out, url, "--views", "none") == 0
    assert not (out / "report.html").exists()
    assert len(list((out / "overlays").iterdir())) == 2


def test_settled_regions_are_not_written_again(
    data: DataSet,
    reference: Path,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [row["name"] for row in ranking(reference)]
    before = {name: annotations(reference, name) for name in names[:3]}
    decisions = written(
        tmp_path / "decisions.json",
        decision(reference, 0, "confirmed"),
        decision(reference, 1, "rejected", region=None),
    )
    kept = decisions.read_bytes()
    out = tmp_path / "report"
    shutil.copytree(reference, out)
    assert run(data, out, url, "--decisions", str(decisions), "--export", "label-studio") == 0
    told = capsys.readouterr().out
    assert "decided: 1 images wrong, 1 right, 0 ambiguous" in told
    assert "precision so far: 50 %" in told.replace("50%", "50 %")
    assert "confirmed regions: 1 are as they were, 0 have changed" in told
    assert "no estimate of the errors left" in told
    assert decisions.read_bytes() == kept
    after = {name: annotations(out, name) for name in names[:3]}
    assert [each["bbox"] for each in after[names[0]]] == [
        each["bbox"] for each in before[names[0]][1:]
    ]
    assert after[names[1]] == []
    assert len(after[names[2]]) == len(before[names[2]])
    tasks = json.loads((out / "label_studio.json").read_text())
    assert f"{names[1]}.png" not in [task["data"]["image"] for task in tasks]
    verdicts = {row["name"]: row["verdict"] for row in ranking(out)}
    assert [verdicts[name] for name in names[:3]] == ["confirmed", "rejected", ""]
    head, index = head_and_index(out)
    assert {each["verdict"] for each in head["decisions"]} == {"confirmed", "rejected"}
    assert index[0]["regions"] == head_and_index(reference)[1][0]["regions"]  # still shown, decided


def test_a_corrected_mask_is_looked_at_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = qa_data_set.make(tmp_path / "set", count=8)
    out = tmp_path / "report"
    assert run(data, out, url) == 0
    name = ranking(out)[0]["name"]
    decisions = written(
        tmp_path / "decisions.json",
        decision(out, 0, "confirmed"),
        decision(out, 0, "rejected", region=None),
        *(decision(out, place, "rejected", region=None) for place in range(1, 8)),
    )
    assert run(data, out, url, "--decisions", str(decisions)) == 0
    assert annotations(out, name) == []
    # Corrected, but with another error at another place.
    mask = data.masks[name].copy()
    mask[18:30, 30:40] = np.where(mask[18:30, 30:40] == 0, 1, 0)
    Image.fromarray(mask).save(data.path("annotations", name))
    capsys.readouterr()
    assert run(data, out, url, "--decisions", str(decisions)) == 0
    told = capsys.readouterr().out
    assert "confirmed regions: 0 are as they were, 1 have changed" in told
    assert {row["name"]: row["verdict"] for row in ranking(out)}[name] == ""
    assert annotations(out, name) != []


def test_contradictions_between_files_are_told(
    data: DataSet,
    reference: Path,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = written(tmp_path / "mine.json", decision(reference, 0, "confirmed"))
    later = {**decision(reference, 0, "rejected"), "decided_at": "2026-02-01T10:00:00.000Z"}
    yours = written(tmp_path / "yours.json", later)
    out = tmp_path / "report"
    shutil.copytree(reference, out)
    more = ("--decisions", str(mine), "--decisions", str(yours))
    assert run(data, out, url, *more) == 0
    error = capsys.readouterr().err
    assert f"{mine}: " in error
    assert f"rejected in {yours}" in error
    head, _ = head_and_index(out)
    assert len(head["conflicts"]) == 1
    assert [each["verdict"] for each in head["decisions"]] == ["rejected"]


def test_decisions_that_a_run_would_clear_are_refused(
    data: DataSet,
    reference: Path,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "report"
    shutil.copytree(reference, out)
    path = written(out / "overlays" / "decisions.json", decision(reference, 0, "confirmed"))
    assert run(data, out, url, "--decisions", str(path)) == 2
    assert "which runs clear; move it first" in capsys.readouterr().err
    assert path.exists()
    (tmp_path / "wrong.json").write_text("{}")
    assert run(data, out, url, "--decisions", str(tmp_path / "wrong.json")) == 2
    assert "is no file of decisions" in capsys.readouterr().err


def test_a_photo_that_went_is_listed_and_its_regions_stay(
    data: DataSet, reference: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossd_client.qa import report as module  # noqa: PLC0415 - put something in its place
    from lossd_client.qa.problems import DataError  # noqa: PLC0415 - likewise

    def gone(path: Path, *_: object) -> None:
        raise DataError(str(path), "cannot be read: gone")

    monkeypatch.setattr(module, "read_photo", gone)
    monkeypatch.setattr(module, "read_thumbnail", gone)
    out = tmp_path / "report"
    shutil.copytree(reference, out)
    assert run(data, out, url) == 1
    text = page(out)
    assert 'id="t1"' not in text
    assert json.loads(element(text, "r1"))
    assert "gone" in (out / "problems.csv").read_text()


def test_the_walk_of_the_documents(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = drawn_annotations.read().images
    given = {name: qa_export.given(each, name) for name, each in images.items()}
    qa_export.write_annotations(tmp_path, given)
    qa_export.write_predictions(tmp_path, list(images))
    command = [
        *("qa", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "report")),
        *("--annotations", str(tmp_path / "annotations.xml"), "--url", url, "--progress", "none"),
        *("--predictions", str(tmp_path / "predictions"), "--views", "0", "--overlays", "none"),
        *("--classes", str(tmp_path / "classes.txt")),
    ]
    assert main([*command, "--export", "cvat"]) == 0
    names = [row["name"] for row in ranking(tmp_path / "report")]
    spoilt = {name for name, each in images.items() if each.spoil is not None}
    assert spoilt <= set(names[:5])
    issues = json.loads((tmp_path / "report/cvat_issues.json").read_text())
    assert {issue["job"] for issue in issues} == {31, 32}
    decided = [
        decision(tmp_path / "report", place, "confirmed")
        if name in spoilt
        else decision(
            tmp_path / "report", place, "ambiguous" if name == "clock" else "rejected", region=None
        )
        for place, name in enumerate(names)
    ]
    decisions = written(tmp_path / "decisions.json", *decided)
    drawn = {name: qa_export.drawn(each, name) for name, each in images.items()}
    qa_export.write_annotations(tmp_path, drawn)
    capsys.readouterr()
    assert main([*command, "--decisions", str(decisions)]) == 0
    told = capsys.readouterr().out
    walk = (Path(__file__).parents[1] / "docs" / "annotation-qa.md").read_text(encoding="utf-8")
    for line in ("decided:", "precision so far:", "confirmed regions:", "errors left:"):
        (said,) = (each for each in told.splitlines() if each.startswith(line))
        assert said in walk
