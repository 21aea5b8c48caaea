"""Every loss through every way in: JSON, safetensors, forms and the client give the same bits."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.row_inputs import ROW_LOSSES, differentiable, inputs_of
from jobs import case
from lossd.losses import LOSSES
from lossd_client import Client
from lossd_client.wire import SAFETENSORS, Array, decode_tensor
from service_fixture import Caller, Served, npy, read_answer, safetensors, tensor


def inputs_and_fields(name: str) -> tuple[dict[str, Array], dict[str, Any], tuple[str, ...]]:
    """Inputs of a loss in float32, the fields its request needs, and what has a gradient."""
    if name in ROW_LOSSES:
        return inputs_of(name, dtype=np.float32), {}, differentiable(name)
    one = case(LOSSES[name].tasks[-1], dtype=np.float32)
    return one.inputs, one.fields, ("logits",)


@pytest.mark.parametrize("name", list(LOSSES))
def test_all_ways_in_give_the_same_bits(served: Served, name: str) -> None:
    caller = served.client
    inputs, fields, inputs_with_gradient = inputs_and_fields(name)
    asked = {"gradient": "total", "maps": True, "per_class": True, **fields}
    document = {"losses": [name], **asked}

    by_json = caller.evaluate(
        {**document, "inputs": {key: tensor(array) for key, array in inputs.items()}}
    )
    by_file = caller.evaluate_bytes(safetensors(document, inputs), SAFETENSORS)
    by_form = caller.evaluate_form(
        [(key, (f"{key}.npy", npy(array))) for key, array in inputs.items()],
        losses=name,
        sample_axis="true",
        **{key: json.dumps(value) for key, value in asked.items()},
    )
    with Client(str(caller.base_url)) as client:
        result = client.evaluate(name, inputs=[inputs], **asked)

    answer, tensors = read_answer(by_file)
    assert answer["warnings"] == []
    for other in (by_json, by_form):
        got, values = read_answer(other)
        np.testing.assert_array_equal(values[f"loss/{name}"], tensors[f"loss/{name}"])
        for key in inputs_with_gradient:
            gradient = decode_tensor(got["gradients"][key])
            np.testing.assert_array_equal(gradient, tensors[f"gradient/{key}"])
    np.testing.assert_array_equal(result[name], tensors[f"loss/{name}"])
    for key in inputs_with_gradient:
        (gradient,) = result.gradient[key]
        np.testing.assert_array_equal(gradient, tensors[f"gradient/{key}"])
    assert set(result.maps) == ({name} if "maps" in LOSSES[name].returns else set())
    assert set(result.per_class) == ({name} if "per_class" in LOSSES[name].returns else set())


@pytest.mark.parametrize("name", list(LOSSES))
def test_refs_in_every_encoding_give_the_same_bits_and_stay_as_they_are(
    served: Served, name: str
) -> None:
    caller = served.client
    inputs, fields, _ = inputs_and_fields(name)
    document = {"losses": [name], "gradient": "total", "maps": True, **fields}
    _, want = read_answer(caller.evaluate_bytes(safetensors(document, inputs), SAFETENSORS))

    kept = caller.put(
        "/v1/tensors",
        content=safetensors({}, inputs),
        headers={"Content-Type": SAFETENSORS},
    ).json()["tensors"]
    refs = {key: {"ref": one["ref"]} for key, one in kept.items()}
    first, *others = inputs
    accept = {"Accept": SAFETENSORS}
    as_one = {key: json.dumps(value) for key, value in document.items()}
    answers = (
        caller.evaluate({**document, "inputs": refs}, headers=accept),
        caller.evaluate_bytes(
            safetensors(
                {**document, "inputs": {first: refs[first]}}, {o: inputs[o] for o in others}
            ),
            SAFETENSORS,
        ),
        caller.post(
            "/v1/evaluate",
            files=[(key, (f"{key}.npy", npy(inputs[key]))) for key in others],
            data={first: json.dumps(refs[first]), "sample_axis": "true", **as_one},
            headers=accept,
        ),
    )
    for answer in answers:
        _, got = read_answer(answer)
        assert set(got) == set(want)
        for key, array in want.items():
            np.testing.assert_array_equal(got[key], array)
    # torch has no read-only tensors: that nothing writes to a kept one is held here.
    for key, array in inputs.items():
        again = caller.get(f"/v1/tensors/{refs[key]['ref']}")
        np.testing.assert_array_equal(decode_tensor(again.json()), array)


def test_a_form_takes_one_file_a_sample_and_one_of_what_belongs_to_all(
    app_client: Caller,
) -> None:
    inputs = inputs_of("center", dtype=np.float32)
    files = [
        (key, (f"{key}.npy", npy(array[b])))
        for b in range(6)
        for key, array in inputs.items()
        if key != "centers"
    ]
    files.append(("centers", ("centers.npy", npy(inputs["centers"]))))
    answer = app_client.evaluate_form(files, losses="center", gradient="total")
    _, tensors = read_answer(answer)
    _, want = read_answer(
        app_client.evaluate_bytes(safetensors({"losses": ["center"]}, inputs), SAFETENSORS)
    )
    np.testing.assert_array_equal(tensors["total"], want["total"])
    twice = app_client.evaluate_form([*files, files[-1]], losses="center")
    assert twice.status_code == 422
    assert "centers belongs to all samples" in twice.json()["detail"]


def test_whole_numbers_in_json_lists_are_real_inputs(app_client: Caller) -> None:
    document = {
        "losses": ["giou", "diou"],
        "inputs": {"prediction": [[0, 0, 2, 2]], "target": [[1, 1, 3, 3]]},
    }
    answer = app_client.evaluate(document).json()
    assert answer["losses"]["giou"][0] == pytest.approx(1.079365, abs=1e-6)
    assert answer["losses"]["diou"][0] == pytest.approx(0.968254, abs=1e-6)


def test_spacing_is_read_from_every_encoding(app_client: Caller) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {
        "logits": rng.normal(size=(1, 1, 9, 11)),
        "target": rng.integers(0, 2, (1, 9, 11), dtype=np.uint8),
    }
    document: dict[str, Any] = {"losses": ["boundary"], "spacing": [2.0, 0.5]}
    _, want = read_answer(app_client.evaluate_bytes(safetensors(document, inputs), SAFETENSORS))
    files = [(key, (f"{key}.npy", npy(array))) for key, array in inputs.items()]
    form = app_client.evaluate_form(files, losses="boundary", sample_axis="true", spacing="[2,0.5]")
    _, got = read_answer(form)
    assert got["total"][0] == want["total"][0]
    plain = {key: value for key, value in document.items() if key != "spacing"}
    _, other = read_answer(app_client.evaluate_bytes(safetensors(plain, inputs), SAFETENSORS))
    assert other["total"][0] != want["total"][0]


@pytest.mark.parametrize("spacing", [[1.0], [1.0, 0.0], [1.0, -2.0], [1, 1, 1, 1], "wide"])
def test_a_spacing_that_fits_nothing_is_refused(app_client: Caller, spacing: Any) -> None:
    document = {
        "losses": ["boundary"],
        "spacing": spacing,
        "inputs": {"logits": [[[[0.5, -1.0]]]], "target": [[[0, 1]]]},
    }
    answer = app_client.evaluate(document)
    assert answer.status_code == 422
    assert "spacing" in answer.json()["detail"]


def test_bfloat16_logits_travel_through_json(app_client: Caller) -> None:
    logits = np.array([[[[1.5, -2.0]]]], np.float32)
    raw = (logits.view(np.uint32) >> 16).astype("<u2").tobytes()
    document: dict[str, Any] = {
        "losses": ["lovasz_hinge", "bce"],
        "inputs": {
            "logits": {
                "dtype": "bfloat16",
                "shape": [1, 1, 1, 2],
                "base64": base64.b64encode(raw).decode(),
            },
            "target": [[[0, 1]]],
        },
    }
    answer = app_client.evaluate(document).json()
    document["inputs"]["logits"] = logits.tolist()
    assert answer["losses"] == app_client.evaluate(document).json()["losses"]
