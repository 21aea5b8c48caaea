"""`lossd-client qa` and `lossd_client.qa.score` against a service: files, order, interruptions."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import qa_data_set
from lossd_client import Client
from lossd_client.__main__ import main
from lossd_client._protocol import Reply, Request
from lossd_client.qa import RefusedError, score
from lossd_client.qa.files import RANKING_COLUMNS
from lossd_client.qa.journal import Journal
from lossd_client.qa_wire import SCORE_PATH
from qa_data_set import DataSet, Watched, client_of, watched
from service_fixture import Served

SHARED = Path(__file__).parents[2] / "shared" / "qa"


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return str(served.client.base_url)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return qa_data_set.make(tmp_path_factory.mktemp("qa") / "set")


@pytest.fixture
def transport(url: str) -> Iterator[Watched]:
    found = watched(url)
    yield found
    found.close()


def run(data: DataSet, out: Path, url: str, *more: str) -> int:
    return main(data.arguments(out, "--url", url, *more))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "ranking.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content(out: Path) -> tuple[bytes, bytes]:
    return (out / "ranking.csv").read_bytes(), (out / "regions.json").read_bytes()


@pytest.fixture(scope="module")
def reference(data: DataSet, url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run with one worker."""
    out: Path = tmp_path_factory.mktemp("qa") / "report"
    assert run(data, out, url, "--workers", "1", "--overlays", "2", "--export", "label-studio") == 0
    return out


def test_wrong_annotations_come_first(data: DataSet, reference: Path) -> None:
    ranking = rows(reference)
    assert tuple(ranking[0]) == RANKING_COLUMNS
    assert [row["rank"] for row in ranking] == [str(place) for place in range(1, 13)]
    assert sorted(row["name"] for row in ranking) == data.names
    assert sorted(row["name"] for row in ranking[:3]) == data.wrong
    suspicions = [float(row["suspicion"]) for row in ranking]
    assert suspicions == sorted(suspicions, reverse=True)
    assert all(int(row["disputed_pixels"]) >= 100 for row in ranking[:3])
    assert all(row["probable_kind"] and row["reason"] for row in ranking[:3])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_regions_are_coco_annotations_of_the_wrong_pixels(data: DataSet, reference: Path) -> None:
    document = json.loads((reference / "regions.json").read_text())
    images = {image["id"]: image for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert [image["id"] for image in document["images"]] == list(range(1, 13))
    assert tuple(names.values()) == qa_data_set.CLASSES
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        inside = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert inside.shape == (image["height"], image["width"])
        assert inside.sum() == annotation["area"]
        left, top, width, height = annotation["bbox"]
        found = np.argwhere(inside)
        assert found.min(axis=0).tolist() == [top, left]
        assert (found.max(axis=0) - found.min(axis=0) + 1).tolist() == [height, width]
        assert names[annotation["category_id"]] == annotation["predicted_class"]
        name = Path(image["file_name"]).stem
        given = np.asarray(Image.open(data.path("annotations", name)))
        assert (given[inside] == qa_data_set.CLASSES.index(annotation["given_class"])).all()
    worst = images[1]
    changed = np.asarray(Image.open(data.path("annotations", Path(worst["file_name"]).stem)))
    wrong = changed != data.masks[Path(worst["file_name"]).stem]
    assert 1 <= len(worst["points"]) <= 5
    x, y = worst["points"][0]
    assert wrong[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any()


def test_the_worst_have_pictures_and_the_tasks_are_label_studios(reference: Path) -> None:
    names = [row["name"] for row in rows(reference)]
    pictures = sorted(path.stem for path in (reference / "overlays").iterdir())
    assert pictures == sorted(names[:2])
    with Image.open(reference / "overlays" / f"{names[0]}.png") as picture:
        assert picture.width > 1000
    tasks = json.loads((reference / "label_studio.json").read_text())
    assert tasks[0]["data"]["image"] == f"{names[0]}.png"
    assert tasks[0]["predictions"][0]["result"]


def test_order_and_workers_change_no_byte(
    data: DataSet, reference: Path, url: str, tmp_path: Path
) -> None:
    assert run(data, tmp_path, url, "--workers", "7", "--overlays", "none") == 0
    assert content(tmp_path) == content(reference)


def test_parts_that_were_observed_apart_make_the_same_report(
    data: DataSet, reference: Path, url: str, tmp_path: Path, transport: Watched
) -> None:
    for part in ("2/3", "1/3", "3/3"):
        assert run(data, tmp_path, url, "--shard", part) == 0
        assert not (tmp_path / "ranking.csv").exists()
    with client_of(transport) as client:
        score(**data.score_options(client=client, out=tmp_path))
    assert content(tmp_path) == content(reference)
    assert all("context" in document for document, _ in transport.bodies())  # no first pass


class Ended(BaseException):
    """The process ends in the middle, as far as a process that goes on can know."""


@pytest.mark.parametrize("after", [1, 3, 8])
def test_a_run_that_was_ended_goes_on(
    data: DataSet, reference: Path, url: str, tmp_path: Path, after: int
) -> None:
    def end(_: Request, seen: Watched) -> Reply | None:
        if len([each for each in seen.requests if each.path == SCORE_PATH]) == after:
            raise Ended
        return None

    going_on = watched(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lossd_client.qa.passes._GROUP_IMAGES", 2)
        with client_of(watched(url, end)) as client, pytest.raises(Ended):
            score(**data.score_options(client=client, out=tmp_path, workers=1))
        assert not (tmp_path / "ranking.csv").exists()
        with client_of(going_on) as client:
            score(**data.score_options(client=client, out=tmp_path))
    assert content(tmp_path) == content(reference)
    assert len(going_on.bodies()) == 12 - after


def test_a_finished_run_scores_nothing_again(
    data: DataSet, reference: Path, tmp_path: Path, transport: Watched
) -> None:
    shutil.copytree(reference, tmp_path / "report")
    with client_of(transport) as client:
        score(**data.score_options(client=client, out=tmp_path / "report"))
    assert transport.bodies() == []
    assert content(tmp_path / "report") == content(reference)


def test_a_fresh_run_forgets(
    data: DataSet, reference: Path, tmp_path: Path, transport: Watched
) -> None:
    shutil.copytree(reference, tmp_path / "report")
    with client_of(transport) as client:
        score(**data.score_options(client=client, out=tmp_path / "report", start="fresh"))
    assert len(transport.bodies()) == 2
    assert content(tmp_path / "report") == content(reference)


def test_what_changed_is_scored_again(url: str, tmp_path: Path) -> None:
    data = qa_data_set.make(tmp_path / "set", count=8)
    assert run(data, tmp_path / "report", url, "--overlays", "none") == 0
    before = {row["name"]: row["suspicion"] for row in rows(tmp_path / "report")}
    name = data.wrong[0]
    Image.fromarray(data.masks[name]).save(data.path("annotations", name))
    seen = watched(url)
    with client_of(seen) as client:
        report = score(**data.score_options(client=client, out=tmp_path / "report"))
    first = [tensors for document, tensors in seen.bodies() if "context" not in document]
    assert [list(tensors) for tensors in first] == [["prediction", "target"]]
    assert report[name].suspicion < float(before[name])
    apart = tmp_path / "apart"
    assert run(data, apart, url, "--overlays", "none") == 0
    assert content(apart) == content(tmp_path / "report")
    observed = Journal(tmp_path / "report/state/observed").keys()
    assert len(observed) == 8  # the record of the mask that was replaced has gone


def test_evidence_and_prediction_are_judged_alike(
    data: DataSet, reference: Path, url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lossd_client.qa.passes._is_replaced", lambda _: False)
    seen = watched(url)
    with client_of(seen) as client:
        score(**data.score_options(client=client, out=tmp_path))
    assert all("0/prediction" in tensors for _, tensors in seen.bodies())
    assert content(tmp_path) == content(reference)


def test_a_context_that_the_service_forgot_is_put_again(
    data: DataSet, reference: Path, url: str, tmp_path: Path
) -> None:
    forgotten: list[str] = []

    def forget(request: Request, seen: Watched) -> Reply | None:
        if request.method == "POST" and b'"context' in bytes(request.parts[0]).replace(b"\\", b""):
            path = f"{request.path} {len(seen.requests)}"
            if not any(each.startswith(request.path) for each in forgotten):
                forgotten.append(path)
                seen.forget_contexts()
        return None

    with client_of(watched(url, forget)) as client:
        score(**data.score_options(client=client, out=tmp_path))
    assert len(forgotten) == 2  # scores and suspicions
    assert content(tmp_path) == content(reference)


def whole_records(out: Path) -> list[str]:
    return Journal(out / "state/observed").keys()


def test_it_survives_being_killed(url: str, tmp_path: Path) -> None:
    # Every image fills a request, so that there is something to interrupt.
    data = qa_data_set.make(tmp_path / "set", count=5, dtype="float32", sizes=[(900, 900)])
    out = tmp_path / "report"
    command = [sys.executable, "-m", "lossd_client", *data.arguments(out, "--url", url)]
    more = ["--workers", "1", "--overlays", "none"]
    with subprocess.Popen([*command, *more], start_new_session=True) as process:  # noqa: S603 - ours
        until = time.monotonic() + 60
        while not whole_records(out) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "ranking.csv").exists()
    whole = whole_records(out)
    seen = watched(url)
    with client_of(seen) as client:
        score(**data.score_options(client=client, out=out))
    first = [document for document, _ in seen.bodies() if "context" not in document]
    assert 1 <= len(whole) < 5
    assert len(first) == 5 - len(whole)
    apart = tmp_path / "apart"
    assert run(data, apart, url, "--overlays", "none") == 0
    assert content(apart) == content(out)


def test_records_that_were_torn_are_made_again(
    data: DataSet, reference: Path, url: str, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "report")
    for shelf in ("observed", "judged"):
        (path,) = (tmp_path / "report/state" / shelf).iterdir()
        whole = len(Journal(path.parent).keys())
        path.write_bytes(path.read_bytes()[:-20])
        (path.parent / "empty.log").touch()
        assert len(Journal(path.parent).keys()) == whole - 1
    assert run(data, tmp_path / "report", url, "--overlays", "none") == 0
    assert content(tmp_path / "report") == content(reference)


@pytest.mark.parametrize("form", ["probabilities", "labels", "binary"])
def test_other_predictions_rank_too(form: qa_data_set.Form, url: str, tmp_path: Path) -> None:
    data = qa_data_set.make(tmp_path / "set", form=form)
    seen = watched(url)
    with client_of(seen) as client:
        report = score(**data.score_options(client=client, out=tmp_path / "report"))
    assert report.data.choice.kind == {"binary": "logits"}.get(form, form)
    assert sorted(image.name for image in report.ranking[:3]) == data.wrong
    sent_twice = form in {"labels", "binary"}  # as small as the evidence, or smaller
    assert all(
        ("0/prediction" in t) == (sent_twice or "context" not in d) for d, t in seen.bodies()
    )


def test_a_prediction_that_cannot_be_read_is_listed(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = qa_data_set.make(tmp_path / "set", count=8)
    spoilt = [data.path("predictions", data.names[0]), data.path("predictions", data.names[2])]
    spoilt[0].write_bytes(spoilt[0].read_bytes()[:-100])
    values = np.load(spoilt[1])
    values[0, 3, 3] = np.nan
    np.save(spoilt[1], values)
    data.path("images", data.names[4]).write_bytes(b"no picture")
    assert run(data, tmp_path / "report", url, "--export", "cvat") == 1
    told = capsys.readouterr().err
    with (tmp_path / "report/problems.csv").open(newline="") as file:
        listed = {row["file"]: row["detail"] for row in csv.DictReader(file)}
    for path in (*spoilt, data.path("images", data.names[4])):
        assert str(path) in listed
        assert str(path) in told
    left = {row["name"] for row in rows(tmp_path / "report")}
    assert left == set(data.names) - {data.names[0], data.names[2], data.names[4]}


def spoil_mask(data: DataSet) -> Path:
    path = data.path("annotations", data.names[3])
    mask = np.array(Image.open(path))
    mask[0, :3] = 200
    Image.fromarray(mask).save(path)
    return path


def spoil_classes(data: DataSet) -> Path:
    path = data.path("predictions", data.names[1])
    np.save(path, np.load(path)[:2])
    return path


def spoil_size(data: DataSet) -> Path:
    path = data.path("predictions", data.names[2])
    np.save(path, np.load(path)[:, :-1])
    return path


def spoil_mask_size(data: DataSet) -> Path:
    path = data.path("annotations", data.names[2])
    Image.fromarray(np.array(Image.open(path))[1:]).save(path)
    return path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_mask, "3 pixels hold 200; allowed are 0 to 2 and the ignored 255"),
        (spoil_classes, "scores of 2 classes"),
        (spoil_size, "63 x 47"),
        (spoil_mask_size, "63 x 47"),
    ],
)
def test_contradictions_are_told_by_file_before_anything_is_sent(
    spoil: Any, told: str, tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = qa_data_set.make(tmp_path / "set", count=5)
    path = spoil(data)
    assert run(data, tmp_path / "report", url) == 2
    error = capsys.readouterr().err
    assert f"{path}: " in error
    assert told in error
    assert "nothing was scored" in error
    assert not (tmp_path / "report").exists()
    seen = watched(url)
    with client_of(seen) as client, pytest.raises(RefusedError, match=path.name):
        score(**data.score_options(client=client))
    assert seen.requests == []


def test_an_undeclared_255_is_told_and_the_map_declares_it(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = qa_data_set.make(tmp_path / "set", count=4)
    arguments = data.arguments(tmp_path / "report", "--url", url, "--overlays", "none")
    at = arguments.index("--ignore-index")
    del arguments[at : at + 2]
    assert main(arguments) == 2
    assert "hold 255; allowed are 0 to 2" in capsys.readouterr().err
    assert main([*arguments, "--map", "255:ignore"]) == 0


def test_unknown_class_names_are_told(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = qa_data_set.make(tmp_path / "set", count=2)
    document = {
        "images": [
            {"id": place, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
            for place, (name, size) in enumerate(zip(data.names, qa_data_set.SIZES, strict=False))
        ],
        "categories": [{"id": 1, "name": "lamp"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]}
        ],
    }
    shutil.rmtree(data.root / "annotations")
    (data.root / "annotations").mkdir()
    (data.root / "annotations/coco.json").write_text(json.dumps(document))
    assert run(data, tmp_path / "report", url) == 2
    error = capsys.readouterr().err
    assert "'lamp'" in error
    assert "coco.json" in error


def test_a_service_that_is_not_there_is_told(
    data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("lossd_client.qa.command._RETRIES", 0)
    assert run(data, tmp_path, "http://127.0.0.1:9") == 3
    assert "run again to go on" in capsys.readouterr().err


def test_the_key_comes_from_a_file(data: DataSet, tmp_path: Path, url: str) -> None:
    missing = str(tmp_path / "key")
    assert run(data, tmp_path, url, "--key-file", missing) == 2
    Path(missing).write_text("lossd-something\n")
    assert run(data, tmp_path, url, "--key-file", missing, "--overlays", "none") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--workers", "0"], ["--disputed-margin", "1.5"], ["--overlays", "some"]),
        *(["--shard", "3/2"], ["--map", "1"], ["--export", "voc"]),
    ],
)
def test_options_without_meaning_are_refused(
    wrong: list[str], data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(data.arguments(tmp_path, *wrong))
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_margin_decides_what_is_disputed(data: DataSet, url: str) -> None:
    with Client(url) as client:
        strict = score(**data.score_options(client=client, disputed_margin=1.0))
        loose = score(**data.score_options(client=client, disputed_margin=0.0))
    with strict, loose:
        assert sum(image.disputed_pixels for image in strict) == 0
        assert sum(image.disputed_pixels for image in loose) > 300


def test_tables_tell_classes_annotators_and_files(
    data: DataSet, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, url, "--top", "3", "--overlays", "none") == 0
    told = capsys.readouterr()
    for word in (*qa_data_set.CLASSES, *data.wrong, "Dice", str(tmp_path / "ranking.csv")):
        assert word in told.out
    assert "predictions are logits" in told.err


def test_class_rows_add_up(data: DataSet, url: str) -> None:
    with Client(url) as client, score(**data.score_options(client=client)) as report:
        total = sum(row.pixels for row in report.per_class)
        assert total == sum(image.pixels for image in report)
        disputed = sum(row.disputed_pixels for row in report.per_class)
        assert disputed == sum(image.disputed_pixels for image in report)
        given = [np.asarray(Image.open(data.path("annotations", name))) for name in data.names]
        predicted = [np.load(data.path("predictions", name)).argmax(axis=0) for name in data.names]
        for row in report.per_class:
            own = sum(int((mask == row.label).sum()) for mask in given)
            both = sum(
                int(((mask == row.label) & (guess == row.label)).sum())
                for mask, guess in zip(given, predicted, strict=True)
            )
            said = sum(
                int(((guess == row.label) & (mask != qa_data_set.IGNORED)).sum())
                for mask, guess in zip(given, predicted, strict=True)
            )
            assert (row.pixels, row.predicted_pixels) == (own, said)
            assert row.dice == pytest.approx(2 * both / (own + said), abs=1e-12)


def test_annotators_and_jobs_have_rows(url: str, tmp_path: Path) -> None:
    data = qa_data_set.make(tmp_path / "set", count=4)
    tasks = [
        {
            "id": place,
            "data": {"image": f"/data/upload/1/{name}.png"},
            "annotations": [{"completed_by": 7 + place % 2, "result": []}],
        }
        for place, name in enumerate(data.names)
    ]
    shutil.rmtree(data.root / "annotations")
    (data.root / "tasks.json").write_text(json.dumps(tasks))
    (data.root / "classes.txt").write_text("background\nhouse\ntree\n")
    options = data.score_options(annotations=data.root / "tasks.json")
    with Client(url) as client, score(client=client, **options) as report:
        assert sorted(row.name for row in report.per_annotator) == ["7", "8"]
        assert sum(row.images for row in report.per_annotator) == 4


@pytest.mark.skipif(not SHARED.exists(), reason="the benchmark set is not beside the repository")
def test_real_images_with_known_errors_rank_above_chance(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for command in (["make_set.py", "1", str(folder)],):
        subprocess.run([sys.executable, str(SHARED / command[0]), *command[1:]], check=True)  # noqa: S603 - beside the project
    arguments = [
        *("qa", "--images", str(folder / "images"), "--annotations", str(folder / "annotations")),
        *("--predictions", str(folder / "predictions.npz"), "--ignore-index", "11"),
        *("--classes", str(folder / "classes.txt"), "--out", str(tmp_path / "report")),
        *("--url", url, "--progress", "none", "--overlays", "none"),
    ]
    assert main(arguments) == 0
    evaluated = subprocess.run(  # noqa: S603 - beside the project
        [sys.executable, str(SHARED / "evaluate.py"), "1", str(tmp_path / "report/ranking.csv")],
        check=True,
        capture_output=True,
        text=True,
    )
    figures = evaluated.stdout.splitlines()[0].split()
    assert figures[:2] == ["all", "AUROC"]
    assert float(figures[2]) > 0.65


def test_the_pages_example_runs(service_url: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "qa.md").read_text(encoding="utf-8")
    block = page.split("### In Python", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    done = subprocess.run(  # noqa: S603 - our own page
        [sys.executable, "-W", "error", "-c", block.replace("http://127.0.0.1:8000", service_url)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, _, last = done.stdout.splitlines()
    assert first.startswith("street-3 missing ")
    before, after = map(float, last.split()[:2])
    assert after < before
