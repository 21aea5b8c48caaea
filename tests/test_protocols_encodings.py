"""Every way to write the same tensors gives the same numbers."""

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lossd_client.wire import JSON, SAFETENSORS, decode_tensor
from service_fixture import (
    Caller,
    b64,
    npy,
    npz,
    png,
    read_answer,
    runs,
    safetensors,
    tensor,
)

GENERATOR = np.random.default_rng(7)
LOGITS = GENERATOR.normal(size=(2, 3, 5, 4)).astype(np.float32)
LABELS = GENERATOR.integers(0, 3, (2, 5, 4)).astype(np.uint8)
BINARY_LOGITS = LOGITS[:, :1]
BINARY = (LABELS > 0).astype(np.uint8)
LOSSES = ["dice", "focal"]


def values(answer: Any) -> np.ndarray[Any, Any]:
    _, tensors = read_answer(answer)
    return np.stack([tensors["loss/dice"], tensors["loss/focal"], tensors["total"]])


def expected(client: Caller, logits: Any = LOGITS, target: Any = LABELS) -> Any:
    inputs = {"logits": tensor(logits), "target": tensor(target)}
    return values(client.evaluate({"losses": LOSSES, "inputs": inputs}))


def compressed(mask: Any) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}


INDEX_FORMS: dict[str, Any] = {
    "nested lists": LABELS.tolist(),
    "base64 int64": tensor(LABELS.astype(np.int64)),
    "base64 int16": tensor(LABELS.astype(np.int16)),
    "png L": {"png": [b64(png(label)) for label in LABELS]},
    "png P": {"png": [b64(png(label, "P")) for label in LABELS]},
    "png 16 bit": {"png": [b64(png(label, "16")) for label in LABELS]},
    "npy": {"npy": b64(npy(LABELS))},
    "npy big endian": {"npy": b64(npy(LABELS.astype(">i4")))},
    "npy Fortran order": {"npy": b64(npy(np.asfortranarray(LABELS)))},
    "npy uint16": {"npy": b64(npy(LABELS.astype(np.uint16)))},
    "npy uint64": {"npy": b64(npy(LABELS.astype(np.uint64)))},
    "npy, one per sample": {"npy": [b64(npy(label)) for label in LABELS]},
    "class RLEs": {
        "rle": [[runs(label == 1), compressed(label == 2)] for label in LABELS],
        "labels": [[1, 2], [1, 2]],
    },
    "class RLEs, later over earlier": {
        "rle": [[runs(label >= 1), runs(label == 2)] for label in LABELS],
        "labels": [[1, 2], [1, 2]],
        "background": 0,
    },
    "class RLEs on another background": {
        "rle": [[runs(label == 0), runs(label == 1)] for label in LABELS],
        "labels": [[0, 1], [0, 1]],
        "background": 2,
    },
}

BINARY_FORMS: dict[str, Any] = {
    "png 1 bit": {"png": [b64(png(mask, "1")) for mask in BINARY]},
    "runs": {"rle": [runs(mask) for mask in BINARY]},
    "compressed": {"rle": [compressed(mask) for mask in BINARY]},
    "booleans": BINARY.astype(bool).tolist(),
    "base64 bool": tensor(BINARY.astype(bool)),
    "soft": BINARY.astype(float).tolist(),
    "with a channel axis": tensor(BINARY[:, None]),
    "with a channel axis, soft": tensor(BINARY[:, None].astype(np.float64)),
}


@pytest.mark.parametrize("form", INDEX_FORMS)
def test_every_form_of_labels_in_json_gives_the_same_numbers(app_client: Caller, form: str) -> None:
    inputs = {"logits": LOGITS.tolist(), "target": INDEX_FORMS[form]}
    answer = app_client.evaluate({"losses": LOSSES, "inputs": inputs})
    np.testing.assert_array_equal(values(answer), expected(app_client))


@pytest.mark.parametrize("ignore_index", [None, 0, 1, 255, -1])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_labels_of_every_width_mean_the_same(
    app_client: Caller, dtype: str, ignore_index: int | None
) -> None:
    document: dict[str, Any] = {"losses": LOSSES, "ignore_index": ignore_index}
    answers = []
    for target in (LABELS.astype(dtype), LABELS.astype(np.int64)):
        inputs = {"logits": tensor(LOGITS), "target": tensor(target)}
        answers.append(values(app_client.evaluate({**document, "inputs": inputs})))
    np.testing.assert_array_equal(answers[0], answers[1])
    changed = not np.array_equal(answers[0], expected(app_client))
    assert changed == (ignore_index in (0, 1))


@pytest.mark.parametrize("form", BINARY_FORMS)
def test_every_form_of_a_binary_mask_in_json_gives_the_same_numbers(
    app_client: Caller, form: str
) -> None:
    inputs = {"logits": tensor(BINARY_LOGITS), "target": BINARY_FORMS[form]}
    answer = app_client.evaluate({"losses": LOSSES, "inputs": inputs})
    np.testing.assert_allclose(
        values(answer), expected(app_client, BINARY_LOGITS, BINARY), rtol=1e-6
    )


def test_a_single_png_or_rle_is_one_sample(app_client: Caller) -> None:
    want = expected(app_client, BINARY_LOGITS[:1], BINARY[:1])
    for target in ({"png": b64(png(BINARY[0]))}, {"rle": runs(BINARY[0])}):
        inputs = {"logits": tensor(BINARY_LOGITS[:1]), "target": target}
        answer = app_client.evaluate({"losses": LOSSES, "inputs": inputs})
        np.testing.assert_array_equal(values(answer), want)


def test_a_list_of_whole_logits_means_floats(app_client: Caller) -> None:
    whole = np.round(LOGITS * 3)
    inputs = {"logits": whole.astype(int).tolist(), "target": LABELS.tolist()}
    answer = app_client.evaluate({"losses": LOSSES, "inputs": inputs})
    np.testing.assert_array_equal(values(answer), expected(app_client, whole))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_logits_of_other_dtypes_are_close(app_client: Caller, dtype: str) -> None:
    got = expected(app_client, LOGITS.astype(dtype))
    np.testing.assert_allclose(got, expected(app_client), rtol=2e-3)
    assert not np.array_equal(got, expected(app_client))


@pytest.mark.parametrize("content_type", [SAFETENSORS, "application/octet-stream"])
def test_safetensors_gives_the_same_numbers(app_client: Caller, content_type: str) -> None:
    body = safetensors({"losses": LOSSES}, {"logits": LOGITS, "target": LABELS})
    answer = app_client.evaluate_bytes(body, content_type)
    assert answer.headers["content-type"] == SAFETENSORS
    np.testing.assert_allclose(values(answer), expected(app_client), rtol=1e-6)


def test_tensors_of_the_document_join_those_of_the_file(app_client: Caller) -> None:
    document = {"losses": LOSSES, "inputs": {"target": INDEX_FORMS["class RLEs"]}}
    answer = app_client.evaluate_bytes(safetensors(document, {"logits": LOGITS}), SAFETENSORS)
    np.testing.assert_allclose(values(answer), expected(app_client), rtol=1e-6)


def test_a_file_whose_tensors_lie_unaligned_is_read(app_client: Caller) -> None:
    header = {
        "logits": {"dtype": "F32", "shape": list(LOGITS.shape), "data_offsets": [0, LOGITS.nbytes]},
        "target": {
            "dtype": "U8",
            "shape": list(LABELS.shape),
            "data_offsets": [LOGITS.nbytes, LOGITS.nbytes + LABELS.nbytes],
        },
        "__metadata__": {"request": json.dumps({"losses": LOSSES})},
    }
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 4)  # the tensors begin at an odd byte
    body = len(text).to_bytes(8, "little") + text + LOGITS.tobytes() + LABELS.tobytes()
    answer = app_client.evaluate_bytes(body, SAFETENSORS)
    np.testing.assert_allclose(values(answer), expected(app_client), rtol=1e-6)


def test_the_accept_header_chooses_the_form_of_the_answer(app_client: Caller) -> None:
    body = safetensors({"losses": LOSSES}, {"logits": LOGITS, "target": LABELS})
    as_json = app_client.evaluate_bytes(body, SAFETENSORS, Accept=JSON)
    assert as_json.headers["content-type"] == JSON
    document = {"losses": LOSSES, "inputs": {"logits": tensor(LOGITS), "target": tensor(LABELS)}}
    as_file = app_client.evaluate(document, headers={"Accept": SAFETENSORS})
    assert as_file.headers["content-type"] == SAFETENSORS
    np.testing.assert_allclose(values(as_json), values(as_file), rtol=1e-6)


MULTIPART_TARGETS: dict[str, Any] = {
    "png": ("m.png", png(LABELS[0])),
    "png without an ending": ("mask", png(LABELS[0], "P")),
    "npy": ("m.npy", npy(LABELS[0])),
    "npz": ("m.npz", npz(LABELS[0])),
    "class RLEs": (
        "m.json",
        json.dumps({"rle": [runs(LABELS[0] == 1), runs(LABELS[0] == 2)], "labels": [1, 2]}),
    ),
    "safetensors": ("m.safetensors", safetensors({}, {"any": LABELS[0]})),
}


@pytest.mark.parametrize("form", MULTIPART_TARGETS)
def test_every_kind_of_file_gives_the_same_numbers(app_client: Caller, form: str) -> None:
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", MULTIPART_TARGETS[form])]
    answer = app_client.evaluate_form(files, losses="dice,focal")
    np.testing.assert_array_equal(values(answer), expected(app_client, LOGITS[:1], LABELS[:1]))


def test_a_tiff_is_a_mask(app_client: Caller, tmp_path: Any) -> None:
    import tifffile  # noqa: PLC0415 - only here

    tifffile.imwrite(tmp_path / "m.tif", LABELS[0])
    mask = (tmp_path / "m.tif").read_bytes()
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.tif", mask))]
    answer = app_client.evaluate_form(files, losses="dice,focal")
    np.testing.assert_array_equal(values(answer), expected(app_client, LOGITS[:1], LABELS[:1]))


def test_a_binary_rle_is_a_file_too(app_client: Caller) -> None:
    want = expected(app_client, BINARY_LOGITS[:1], BINARY[:1])
    for rle in (runs(BINARY[0]), {"rle": compressed(BINARY[0])}):
        files = [
            ("logits", ("p.npy", npy(BINARY_LOGITS[0, 0]))),  # [H, W]: one channel
            ("target", ("m.json", json.dumps(rle))),
        ]
        answer = app_client.evaluate_form(files, losses="dice,focal")
        np.testing.assert_array_equal(values(answer), want)


def test_several_files_of_a_name_are_several_samples(app_client: Caller) -> None:
    files = [("logits", ("p.npy", npy(one))) for one in LOGITS]
    files += [("target", ("m.png", png(one))) for one in LABELS]
    answer = app_client.evaluate_form(files, losses=["dice", "focal"])
    np.testing.assert_array_equal(values(answer), expected(app_client))
    assert answer.json()["batch"]["samples"] >= 2


def test_a_file_may_bring_its_sample_axis(app_client: Caller) -> None:
    files = [("logits", ("p.npy", npy(LOGITS))), ("target", ("m.npz", npz(LABELS)))]
    answer = app_client.evaluate_form(files, losses="dice,focal", sample_axis="true")
    np.testing.assert_array_equal(values(answer), expected(app_client))


def test_a_request_part_says_what_fields_say(app_client: Caller) -> None:
    document = json.dumps({"losses": LOSSES, "task": "multiclass", "gradient": "total"})
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.png", png(LABELS[0])))]
    by_part = app_client.evaluate_form(files, request=document)
    by_file = app_client.evaluate_form([*files, ("request", ("request.json", document))])
    by_fields = app_client.evaluate_form(
        files, losses='["dice", {"name": "focal"}]', task="multiclass", gradient="total"
    )
    np.testing.assert_array_equal(values(by_part), values(by_fields))
    np.testing.assert_array_equal(values(by_file), values(by_fields))
    assert by_part.json()["gradients"] == by_fields.json()["gradients"]


def test_a_form_takes_numbers_and_switches_as_fields(app_client: Caller) -> None:
    label = LABELS[0].copy()
    label[0] = 255
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.png", png(label)))]
    answer = app_client.evaluate_form(files, losses="ce", ignore_index="255", statistics="true")
    assert np.sum(answer.json()["statistics"]["hard_tp"]) <= label.size - label.shape[1]


SMALL = GENERATOR.normal(size=(1, 3, 2, 3)).astype(np.float32)
SMALL_LABELS = GENERATOR.integers(0, 3, (1, 2, 3)).astype(np.uint8)


def test_several_sizes_answer_in_their_order(app_client: Caller) -> None:
    objects = [
        {"logits": tensor(SMALL), "target": tensor(SMALL_LABELS)},
        {"logits": tensor(LOGITS), "target": tensor(LABELS)},
    ]
    more = {"gradient": "total", "maps": True}
    answer = app_client.evaluate({"losses": ["focal", "dice"], "inputs": objects, **more})
    alone = [
        app_client.evaluate({"losses": ["focal", "dice"], "inputs": one, **more}).json()
        for one in objects
    ]
    document = answer.json()
    assert document["losses"]["dice"] == [v for one in alone for v in one["losses"]["dice"]]
    assert document["gradients"]["logits"] == [one["gradients"]["logits"] for one in alone]
    assert document["maps"]["focal"] == [one["maps"]["focal"] for one in alone]


def test_several_sizes_in_a_file_are_numbered(app_client: Caller) -> None:
    tensors: dict[str, Any] = {
        "1/target": LABELS,
        "0/logits": SMALL,
        "0/target": SMALL_LABELS,
        "1/logits": LOGITS,
    }
    document = {"losses": LOSSES, "gradient": "each", "maps": True}
    answer = app_client.evaluate_bytes(safetensors(document, tensors), SAFETENSORS)
    _, found = read_answer(answer)
    np.testing.assert_allclose(found["loss/dice"][1:], expected(app_client)[0], rtol=1e-6)
    assert found["0/gradient/logits/dice"].shape == SMALL.shape
    assert found["1/gradient/logits/focal"].shape == LOGITS.shape
    assert found["1/map/focal"].shape == LABELS.shape
    assert set(found) == {
        "loss/dice",
        "loss/focal",
        "total",
        *(f"{i}/gradient/logits/{loss}" for i in (0, 1) for loss in LOSSES),
        "0/map/focal",
        "1/map/focal",
    }


def test_files_of_mixed_sizes_are_input_objects(app_client: Caller) -> None:
    files = [
        ("logits", ("a.npy", npy(LOGITS[0]))),
        ("target", ("a.png", png(LABELS[0]))),
        ("logits", ("b.npy", npy(SMALL[0]))),
        ("target", ("b.png", png(SMALL_LABELS[0]))),
    ]
    answer = app_client.evaluate_form(files, losses="dice,focal", gradient="total")
    gradients = answer.json()["gradients"]["logits"]
    assert [gradient["shape"] for gradient in gradients] == [[1, 3, 5, 4], [1, 3, 2, 3]]
    np.testing.assert_array_equal(
        values(answer)[:, 0], expected(app_client, LOGITS[:1], LABELS[:1])[:, 0]
    )


def test_arrays_as_lists_hold_what_base64_holds(app_client: Caller) -> None:
    inputs = {"logits": tensor(LOGITS), "target": tensor(LABELS)}
    document = {"losses": LOSSES, "inputs": inputs, "gradient": "each", "maps": True}
    encoded = app_client.evaluate(document).json()
    listed = app_client.evaluate(document, params={"arrays": "list"}).json()
    for label in LOSSES:
        np.testing.assert_array_equal(
            np.array(listed["gradients"]["logits"][label], np.float32),
            decode_tensor(encoded["gradients"]["logits"][label]),
        )
    np.testing.assert_array_equal(
        np.array(listed["maps"]["focal"], np.float32), decode_tensor(encoded["maps"]["focal"])
    )


def test_what_is_not_a_number_is_null_in_json(app_client: Caller) -> None:
    inputs = {"logits": tensor(LOGITS[:1]), "target": np.zeros((1, 5, 4), int).tolist()}
    document = {"losses": ["dice"], "inputs": inputs, "per_class": True}
    assert app_client.evaluate(document).json()["per_class"]["dice"][0][1:] == [None, None]


def test_an_answer_says_how_it_was_computed(app_client: Caller) -> None:
    inputs = {"logits": tensor(LOGITS), "target": tensor(LABELS)}
    answer = app_client.evaluate({"losses": [{"name": "dice", "label": "d"}], "inputs": inputs})
    document = answer.json()
    assert document["mean"] == {"d": pytest.approx(np.mean(document["losses"]["d"]))}
    assert document["batch"] == {"samples": 2, "requests": 1}
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["device"] == "cpu (eager)"
    assert document["warnings"] == []
    assert set(document["timing_ms"]) == {"queue", "compute", "total"}
    assert document["numerics_version"].endswith("-eager")
