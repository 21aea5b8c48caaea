"""The form of the service's own page in a real browser, against a running service."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import (
    Page,
    expect,
)

from browser_fixture import Tab
from generate_page import EXAMPLE
from lossd.catalogue import catalogue
from lossd_client import Client
from lossd_client.wire import Array
from page_fixture import (
    assert_picture,
    assert_values,
    choose,
    choose_losses,
    colour,
    compute,
    figure,
    refused,
    shown_values,
)
from service_fixture import Served, npy, npz, png

MASKS = [entry["name"] for entry in catalogue() if entry["kind"] == "pixel"]
RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return str(served.client.base_url)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, url: str) -> Page:
    """The page, loaded."""
    opened = tab.open(url)
    opened.wait_for_selector(".loss")
    return opened


# -- the form -------------------------------------------------------------------------------------


def test_the_example_comes_with_one_click(page: Page, client: Client) -> None:
    page.click("#try-example")
    page.wait_for_selector("#try-values")
    logits, target = read_example()
    result = client.evaluate(
        ["dice", "focal"], logits=logits, target=target, task="binary", gradient="total", maps=True
    )
    assert_values(page, result, ["example-prediction.npy"])
    expect(page.locator("#try-answer")).to_contain_text(result.numerics_version)
    assert_picture(figure(page, "mask"), target[0])
    assert_picture(figure(page, "logits"), logits[0, 0])
    assert_picture(figure(page, "map"), result.maps["focal"][0])
    gradient = result.gradient["logits"][0, 0]
    assert_picture(figure(page, "gradient"), gradient)
    # Blue is below 0 and orange above.
    low, high = (
        np.unravel_index(at, gradient.shape) for at in (gradient.argmin(), gradient.argmax())
    )
    red, _, blue, _ = colour(figure(page, "gradient"), int(low[0]), int(low[1]))
    assert blue > red
    red, _, blue, _ = colour(figure(page, "gradient"), int(high[0]), int(high[1]))
    assert red > blue


def read_example() -> tuple[Array, Array]:
    prediction, mask = EXAMPLE.values()
    return np.load(prediction)[None], np.asarray(Image.open(mask))[None]


def several_samples() -> list[dict[str, Array]]:
    """Inputs of three samples of two sizes, with ignored pixels."""
    samples: list[dict[str, Array]] = []
    for height, width in ((20, 30), (9, 7), (9, 7)):
        target = RNG.integers(0, 3, (height, width)).astype(np.uint8)
        target[0, :3] = 255
        samples.append(
            {
                "logits": RNG.normal(size=(3, height, width)).astype(np.float32),
                "target": target,
                "mask": (RNG.uniform(size=target.shape) > 0.2).astype(np.uint8),
                "weight_map": RNG.uniform(0, 2, target.shape).astype(np.float32),
            }
        )
    return samples


def choose_samples(page: Page, samples: list[dict[str, Array]]) -> None:
    page.click("summary:text('More inputs')")
    fields = {"prediction": "logits", **{name: name for name in ("target", "mask", "weight_map")}}
    for field, name in fields.items():
        write, suffix = (npy, "npy") if name in ("logits", "weight_map") else (png, "png")
        files = [(f"{n}.{suffix}", write(one[name])) for n, one in enumerate(samples)]
        choose(page, field, *files)


def test_files_of_several_sizes_with_every_option(page: Page, client: Client) -> None:
    samples = several_samples()
    choose_samples(page, samples)
    choose_losses(page, "tversky", "cross_entropy")
    page.click("#try-losses > li:nth-child(1) summary")
    page.fill("#param-tversky-fp_weight", "0.25")
    page.fill("#param-tversky-class_weights", "[1, 2, 0.5]")
    page.fill("#param-tversky-classes", "present")
    page.fill("#param-tversky-weight", "3")
    page.select_option("#param-tversky-include_background", "false")
    page.select_option("#try-task", "multiclass")
    page.fill("#try-ignore_index", "255")
    page.select_option("#try-gradient", "each")
    page.select_option("#try-preset", "torch")
    compute(page)
    params = {"fp_weight": 0.25, "class_weights": [1, 2, 0.5], "classes": "present"}
    result = client.evaluate(
        [
            {"name": "tversky", "params": {**params, "include_background": False}, "weight": 3},
            "cross_entropy",
        ],
        inputs=[{name: one[None] for name, one in sample.items()} for sample in samples],
        task="multiclass",
        ignore_index=255,
        gradient="each",
        preset="torch",
        maps=True,
    )
    assert_values(page, result, ["0.npy", "1.npy", "2.npy"])
    for sample in (0, 2):
        page.select_option("#picture-sample", str(sample))
        page.select_option("#picture-channel", "2")
        page.select_option("#picture-gradient", "tversky")
        assert_picture(figure(page, "mask"), samples[sample]["target"])
        assert_picture(figure(page, "logits"), samples[sample]["logits"][2])
        assert_picture(figure(page, "map"), result.maps["cross_entropy"][sample][0])
        gradient = result.gradient["logits"][sample]["tversky"][0, 2]
        assert_picture(figure(page, "gradient"), gradient)


def test_volumes_have_slices_and_rows_are_strips(page: Page, client: Client) -> None:
    volume = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
    labels = RNG.integers(0, 2, (4, 6, 5)).astype(np.int64)
    choose(page, "prediction", ("volume.npy", npy(volume)))
    choose(page, "target", ("labels.npy", npy(labels)))
    choose_losses(page, "focal")
    compute(page)
    result = client.evaluate(
        "focal", logits=volume[None], target=labels[None], gradient="total", maps=True
    )
    page.select_option("#picture-slice", "3")
    assert_picture(figure(page, "map"), result.maps["focal"][0, 3])
    assert_picture(figure(page, "gradient"), result.gradient["logits"][0, 0, 3])
    row, labels = volume.reshape(2, 1, 120), labels.reshape(1, 120)
    choose(page, "prediction", ("row.npy", npy(row)))
    choose(page, "target", ("row.npy", npy(labels)))
    compute(page)
    expect(page.locator("#picture-slice")).to_be_hidden()
    result = client.evaluate("focal", logits=row[None], target=labels[None], maps=True)
    assert_picture(figure(page, "map"), result.maps["focal"][0])


def test_probabilities_and_no_gradient(page: Page, client: Client) -> None:
    probabilities = RNG.uniform(0.05, 0.95, (1, 8, 8)).astype(np.float64)
    target = RNG.integers(0, 2, (8, 8)).astype(np.uint8)
    choose(page, "prediction", ("p.npy", npy(probabilities)))
    choose(page, "target", ("t.npy", npy(target)))
    page.select_option("#try-activation", "probabilities")
    choose_losses(page, "binary_cross_entropy")
    compute(page)
    given: dict[str, Any] = {"probabilities": probabilities[None], "target": target[None]}
    result = client.evaluate("binary_cross_entropy", **given, gradient="total", maps=True)
    assert_values(page, result, ["p.npy"])
    expect(figure(page, "gradient")).to_contain_text("with respect to probabilities")
    assert_picture(figure(page, "probabilities"), probabilities[0])
    assert_picture(figure(page, "gradient"), result.gradient["probabilities"][0, 0])
    page.select_option("#try-gradient", "none")
    compute(page)
    expect(figure(page, "gradient")).to_have_count(0)
    expect(figure(page, "map")).to_have_count(1)
    choose_losses(page, "dice")
    choose(page, "prediction", ("p.npz", npz(probabilities)))
    choose(page, "target", ("t.png", png(target, "P")))
    compute(page)
    assert_values(page, client.evaluate("dice", **given), ["p.npz"])
    expect(page.locator("#try-pictures")).to_be_hidden()  # only the service reads these


def test_what_numpy_writes_is_read_as_it_is(page: Page) -> None:
    dtypes = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
    arrays = [(RNG.uniform(size=(3, 4)) * 120).astype(dtype) for dtype in dtypes]
    arrays[0][0] = [np.inf, np.nan, 6e-8, -65504]
    arrays.append(np.arange(5, dtype=np.int16))
    read_npy = (
        "async (bytes) => { const { readInput } = await import('./page/inputs.js');"
        "return readInput(new File([new Uint8Array(bytes)], 'a.npy')); }"
    )
    for array in arrays:
        read = page.evaluate(read_npy, list(npy(array)))
        assert read["shape"] == list(array.shape)
        np.testing.assert_array_equal(read["numbers"], array.ravel().astype(np.float64))
    for array in (np.zeros((3, 4), ">f4"), np.asfortranarray(np.zeros((3, 4)))):
        assert page.evaluate(read_npy, list(npy(array))) is None
    assert page.evaluate(read_npy, list(npy(arrays[1])[:-1])) is None


def test_files_may_be_dropped(page: Page, client: Client) -> None:
    logits = np.array([[[2.0, -1.0], [0.5, -3.0]]], np.float32)
    target = np.array([[1, 0], [1, 0]], np.uint8)
    for field, name, content in (
        ("prediction", "p.npy", npy(logits)),
        ("target", "m.png", png(target)),
    ):
        data = page.evaluate_handle(
            "([name, bytes]) => { const t = new DataTransfer();"
            "t.items.add(new File([new Uint8Array(bytes)], name)); return t; }",
            [name, list(content)],
        )
        area = page.locator(".drop", has=page.locator(f"#try-{field}"))
        area.dispatch_event("dragover", {"dataTransfer": data})
        expect(area).to_have_class("drop over")
        area.dispatch_event("drop", {"dataTransfer": data})
        expect(area).to_have_class("drop")
        expect(area.locator(".chosen")).to_contain_text(name)
    choose_losses(page, "dice")
    compute(page)
    assert_values(
        page, client.evaluate("dice", logits=logits[None], target=target[None]), ["p.npy"]
    )


def test_every_loss_of_masks_is_offered(page: Page) -> None:
    offered = page.eval_on_selector_all("#try-loss option", "all => all.map((one) => one.value)")
    assert sorted(offered) == sorted(MASKS)
    choose_losses(page, "dice", "focal", "dice")
    request = json.loads(re.search(r"request=(\{.*\})'", page.inner_text("#try-curl"))[1])  # type: ignore[index]
    assert request["losses"] == ["dice", "focal"], "each of them once"


# -- what the service refuses ---------------------------------------------------------------------


def test_a_refusal_is_said_as_the_service_says_it(page: Page, tab: Tab, served: Served) -> None:
    page.click("#try-example")
    page.wait_for_selector("canvas")
    choose_losses(page, "focal")
    page.click("#try-losses > li summary")
    page.fill("#param-focal-gamma", "-1")
    page.fill("#param-focal-alpha", "heavy")
    compute(page)
    alert = page.get_by_role("alert")
    prediction, mask = EXAMPLE.values()
    losses = [{"name": "focal", "params": {"gamma": -1, "alpha": "heavy"}}]
    answer = served.client.evaluate_form(
        [
            ("logits", ("p.npy", prediction.read_bytes())),
            ("target", ("m.png", mask.read_bytes())),
        ],
        request=json.dumps({"losses": losses, "task": "binary"}),
    ).json()
    assert len(answer["errors"]) > 0
    for text in (answer["title"], answer["code"], str(answer["status"])):
        expect(alert).to_contain_text(text)
    for error in answer["errors"]:
        expect(alert).to_contain_text(".".join(str(part) for part in error["loc"]))
        expect(alert).to_contain_text(error["message"])
    expect(page.locator("#try-pictures")).to_be_hidden()
    page.fill("#param-focal-gamma", "")
    page.fill("#param-focal-alpha", "")
    compute(page)
    expect(alert).to_have_count(0)
    refused(tab, "422")


def test_a_form_without_files_or_losses_is_told_so(page: Page, tab: Tab) -> None:
    compute(page)
    expect(page.get_by_role("alert")).to_contain_text("a form needs files")
    choose_losses(page)
    choose(page, "prediction", ("<b>.npy", b"<img src=x onerror=alert(1)>"))
    compute(page)
    expect(page.get_by_role("alert")).to_contain_text("<b>.npy")
    assert page.locator("#try-answer b, #try-answer img").count() == 0
    refused(tab, "422|400")


def test_a_service_that_went_away_is_told(page: Page, tab: Tab) -> None:
    page.click("#try-example")
    page.wait_for_selector("canvas")
    page.route("**/v1/evaluate", lambda route: route.abort())
    compute(page)
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    page.unroute("**/v1/evaluate")
    page.route("**/v1/evaluate", lambda route: route.fulfill(status=502, body="<h1>Bad</h1>"))
    compute(page)
    expect(page.get_by_role("alert")).to_contain_text("502")
    refused(tab, "ERR_FAILED|502")


# -- curl -----------------------------------------------------------------------------------------


def test_the_command_for_a_shell_sends_the_same(page: Page, tmp_path: Path) -> None:
    page.click("#try-example")
    page.wait_for_selector("canvas")
    prediction, mask = EXAMPLE.values()
    awkward = 'it\'s; a, "mask" $HOME.png'
    (tmp_path / "prediction.npy").write_bytes(prediction.read_bytes())
    (tmp_path / awkward).write_bytes(mask.read_bytes())
    choose(page, "prediction", ("prediction.npy", prediction.read_bytes()))
    choose(page, "target", (awkward, mask.read_bytes()))
    page.click("#try-losses > li:nth-child(2) summary")
    page.fill("#param-focal-gamma", "1.5")
    compute(page)
    _, rows = shown_values(page)
    command = page.inner_text("#try-curl")
    done = subprocess.run(  # noqa: S602 - that it is for a shell is the point
        command, shell=True, cwd=tmp_path, capture_output=True, check=True
    )
    answer = json.loads(done.stdout)
    found = [float(text) for text in rows["prediction.npy"]]
    expected = [*(values[0] for values in answer["losses"].values()), answer["total"][0]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_command_is_copied_or_selected(page: Page, url: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page.click("#try-copy")
    expect(page.locator("#try-copied")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#try-curl")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(Error('no')); }")
    page.click("#try-copy")
    expect(page.locator("#try-copied")).to_contain_text("Selected")
    assert page.evaluate("String(getSelection())").strip() == page.inner_text("#try-curl").strip()
