"""An image with other labels, scored in the context of its data set."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import qa_data_set
from lossd_client import Client
from lossd_client._protocol import Request
from lossd_client.qa import DataError, Report, score
from lossd_client.qa_wire import SCORE_PATH
from lossd_client.wire import Array, decode_safetensors
from qa_data_set import DataSet, Watched, client_of, watched
from service_fixture import Served


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return qa_data_set.make(tmp_path_factory.mktemp("qa") / "set")


@pytest.fixture(scope="module")
def transport(served: Served) -> Iterator[Watched]:
    found = watched(str(served.client.base_url))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(data: DataSet, transport: Watched) -> Iterator[Report]:
    with client_of(transport) as client, score(**data.score_options(client=client)) as found:
        yield found


def given(data: DataSet, name: str) -> Array:
    return np.asarray(Image.open(data.path("annotations", name)))


def test_the_same_labels_have_the_same_place(data: DataSet, report: Report) -> None:
    for image in report:
        again = report.rescore(image.name, given(data, image.name))
        assert again.suspicion == image.suspicion
        assert again.rank == image.rank
        assert again.sub_scores == image.sub_scores
        assert again.points == image.points
        assert list(again.regions) == report.regions(image.name)
        assert (again.kind, again.disputed_pixels) == (image.kind, image.disputed_pixels)


def test_a_corrected_mask_falls_in_the_ranking(data: DataSet, report: Report) -> None:
    name = data.wrong[0]
    fixed = report.rescore(name, data.masks[name])
    assert fixed.suspicion < report[name].suspicion - 3
    assert fixed.rank > 3 >= report[name].rank
    assert fixed.disputed_pixels < report[name].disputed_pixels
    before = report.rescore(name, given(data, name))
    changed = given(data, name) != data.masks[name]
    assert before.heat_nats.shape == changed.shape
    assert before.heat_nats[changed].mean() > 4 * before.heat_nats[~changed].mean()
    assert fixed.heat_nats[changed].mean() < before.heat_nats[changed].mean() / 4


def test_a_spoilt_mask_rises(data: DataSet, report: Report) -> None:
    name = report.ranking[-1].name
    mask = data.masks[name].copy()
    mask[:12, :12] = 2
    assert report.rescore(name, mask).rank < report[name].rank


def test_the_prediction_is_sent_once(data: DataSet, report: Report, transport: Watched) -> None:
    name = data.names[5]
    report.rescore(name, data.masks[name])
    before = len(transport.requests)
    report.rescore(name, data.masks[name])
    report.rescore(name, data.masks[name])
    sent = transport.requests[before:]
    assert [request.path for request in sent] == [SCORE_PATH, SCORE_PATH]
    for request in sent:
        assert list(decode_safetensors(b"".join(request.parts))[0]) == ["target"]


def test_a_prediction_that_the_service_forgot_is_sent_again(
    data: DataSet, report: Report, transport: Watched
) -> None:
    name = data.names[6]
    before = report.rescore(name, data.masks[name])
    transport.forget_contexts()
    for use in [use for request in transport.requests for use in request.uses]:
        transport.send(Request("DELETE", f"/v1/tensors/{use.ref}"))
    assert report.rescore(name, data.masks[name]).suspicion == before.suspicion


def test_what_does_not_fit_is_told(data: DataSet, report: Report) -> None:
    name = data.names[0]
    with pytest.raises(KeyError, match="no image 'nothing' in this ranking of 12"):
        report.rescore("nothing", data.masks[name])
    with pytest.raises(DataError, match=r"39 x 56.* is 40 x 56"):
        report.rescore(name, data.masks[name][1:])
    wrong = data.masks[name].copy()
    wrong[4, 4] = 9
    with pytest.raises(DataError, match="1 pixels hold 9; allowed are 0 to 2"):
        report.rescore(name, wrong)


def test_a_report_without_a_folder_leaves_nothing(data: DataSet, served: Served) -> None:
    with Client(str(served.client.base_url)) as client:
        report = score(**data.score_options(client=client))
        folder = report._state.folder  # noqa: SLF001 - where it is does not matter to callers
        assert report.regions(data.wrong[0])
        assert folder.exists()
        report.close()
        assert not folder.exists()
