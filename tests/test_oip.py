"""`/v2`: the Open Inference Protocol, byte by byte."""

import gzip
import json
import socket
import zlib
from typing import Any

import numpy as np
import pytest

from lossd.losses import LOSSES
from lossd.protocols.oip_models import STATISTICS, find_model, model_names
from lossd_client.wire import NUMPY_DTYPES, Array
from oip_fixture import HEAD, LABELS, LOGITS, binary, described, error, infer, listed, read
from service_fixture import Caller, Served, read_answer, tensor

PLAIN = (binary("logits", LOGITS), binary("target", LABELS))


def reference(client: Caller, **fields: Any) -> dict[str, Any]:
    """The same evaluation by the service's own protocol."""
    inputs = {"logits": tensor(LOGITS), "target": tensor(LABELS)}
    answer = client.evaluate(
        {"losses": ["dice"], **fields, "inputs": inputs},
        headers={"Accept": "application/vnd.safetensors"},
    )
    return read_answer(answer)[1]


# -- tensors --------------------------------------------------------------------------------------


def test_binary_json_and_mixed_inputs_give_the_same_bits(app_client: Caller) -> None:
    expected = reference(app_client)["loss/dice"]
    for inputs in (
        PLAIN,
        (listed("logits", LOGITS), listed("target", LABELS)),
        (binary("logits", LOGITS), listed("target", LABELS)),
        (listed("target", LABELS), binary("logits", LOGITS)),
    ):
        got = read(infer(app_client, "dice", *inputs))
        assert got.tensors["loss/dice"].tobytes() == expected.tobytes()
        assert got.head["outputs"][0]["data"] == expected.tolist()


def test_nested_lists_are_lists(app_client: Caller) -> None:
    entry = {**described("logits", LOGITS), "data": LOGITS.tolist()}
    got = read(infer(app_client, "dice", (entry, b""), listed("target", LABELS)))
    assert got.tensors["loss/dice"].tolist() == reference(app_client)["loss/dice"].tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("write", [binary, listed])
def test_logits_of_every_float(app_client: Caller, dtype: str, write: Any) -> None:
    logits = LOGITS.astype(NUMPY_DTYPES[dtype])
    inputs = {"logits": tensor(logits), "target": tensor(LABELS)}
    expected = app_client.evaluate({"losses": ["dice"], "inputs": inputs}).json()["losses"]["dice"]
    got = read(infer(app_client, "dice", write("logits", logits), binary("target", LABELS)))
    assert got.tensors["loss/dice"].tolist() == expected


@pytest.mark.parametrize(
    "dtype",
    ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"],
)
@pytest.mark.parametrize("write", [binary, listed])
def test_labels_of_every_integer(app_client: Caller, dtype: str, write: Any) -> None:
    target = write("target", LABELS.astype(dtype))
    got = read(infer(app_client, "dice", binary("logits", LOGITS), target))
    assert got.tensors["loss/dice"].tolist() == reference(app_client)["loss/dice"].tolist()


def test_masks_of_bool(app_client: Caller) -> None:
    mask = LABELS > 0
    inputs = {"logits": tensor(LOGITS), "target": tensor(LABELS), "mask": tensor(mask)}
    expected = app_client.evaluate({"losses": ["dice"], "inputs": inputs}).json()["losses"]["dice"]
    for write in (binary, listed):
        got = read(infer(app_client, "dice", *PLAIN, write("mask", mask)))
        assert got.tensors["loss/dice"].tolist() == expected


def test_several_input_objects_are_numbered(app_client: Caller) -> None:
    names = [f"{number}/{name}" for number in (0, 1) for name in ("logits", "target")]
    arrays: list[Array] = [LOGITS, LABELS, LOGITS[:1, :, :3], LABELS[:1, :3]]
    inputs = [binary(name, array) for name, array in zip(names, arrays, strict=True)]
    wanted = [{"name": "1/gradient/logits"}, {"name": "loss/dice"}]
    got = read(infer(app_client, "dice", *inputs, outputs=wanted))
    assert got.tensors["1/gradient/logits"].shape == (1, 3, 3, 4)
    assert got.tensors["loss/dice"].shape == (3,)


def test_tables_have_models_of_their_own(app_client: Caller) -> None:
    box = np.array([[0, 0, 2, 2]], np.float32)
    inputs = binary("prediction", box), binary("target", box + 1)
    got = read(infer(app_client, "iou_box", *inputs, outputs=[{"name": "gradient/prediction"}]))
    assert got.tensors["gradient/prediction"].shape == (1, 4)
    got = read(infer(app_client, "evaluate", *inputs, parameters={"losses": "iou_box,giou"}))
    # Boxes [0,0,2,2] and [1,1,3,3]: 1 of 7 overlaps, the hull has 9.
    assert got.tensors["loss/iou_box"].tolist() == pytest.approx([1 - 1 / 7])
    assert got.tensors["loss/giou"].tolist() == pytest.approx([1 - (1 / 7 - 2 / 9)])


# -- outputs --------------------------------------------------------------------------------------


def test_outputs_come_as_they_are_asked_for(app_client: Caller) -> None:
    wanted = [
        {"name": "gradient/logits", "parameters": {"binary_data": True}},
        {"name": "loss/dice"},
    ]
    answer = infer(app_client, "dice", *PLAIN, id="7", outputs=wanted)
    got = read(answer)
    expected = reference(app_client, gradient="total")
    assert [one["name"] for one in got.head["outputs"]] == ["gradient/logits", "loss/dice"]
    assert got.tensors["gradient/logits"].tobytes() == expected["gradient/logits"].tobytes()
    assert "data" in got.head["outputs"][1]
    assert got.head["id"] == "7"
    assert (got.head["model_name"], got.head["model_version"]) == ("dice", "1")
    assert answer.headers["content-type"] == "application/octet-stream"


def test_one_word_makes_all_outputs_binary(app_client: Caller) -> None:
    answer = infer(app_client, "dice", *PLAIN, parameters={"binary_data_output": True})
    got = read(answer)
    assert list(got.tensors) == ["loss/dice", "total"]
    assert all("binary_data_size" in one["parameters"] for one in got.head["outputs"])
    assert "id" not in got.head


def test_without_binary_outputs_the_answer_is_json(app_client: Caller) -> None:
    answer = infer(app_client, "dice", *PLAIN)
    assert answer.headers["content-type"] == "application/json"
    assert HEAD not in answer.headers


def test_chosen_outputs_say_what_is_computed(app_client: Caller) -> None:
    names = ["map/focal", "statistics/hard_tp", "per_class/dice", "gradient/logits/focal", "total"]
    got = read(
        infer(
            app_client,
            "evaluate",
            *PLAIN,
            outputs=[{"name": name} for name in names],
            parameters={"losses": '["dice", {"name": "focal", "params": {"gamma": 1.5}}]'},
        )
    )
    assert list(got.tensors) == names
    expected = reference(
        app_client,
        losses=["dice", {"name": "focal", "params": {"gamma": 1.5}}],
        gradient="each",
        maps=True,
        per_class=True,
        statistics=True,
    )
    for name, array in got.tensors.items():
        np.testing.assert_array_equal(array, expected[name])


def test_half_precision_gradients_bring_their_scale(app_client: Caller) -> None:
    wanted = [{"name": "gradient/logits"}, {"name": "gradient_scale/logits"}]
    parameters = {"gradient_dtype": "bfloat16", "binary_data_output": True}
    got = read(infer(app_client, "dice", *PLAIN, outputs=wanted, parameters=parameters))
    expected = reference(app_client, gradient="total", gradient_dtype="bfloat16")
    for name in ("gradient/logits", "gradient_scale/logits"):
        assert got.tensors[name].tobytes() == expected[name].tobytes()


def test_parameters_of_a_loss_are_parameters_of_its_model(app_client: Caller) -> None:
    parameters = {"fp_weight": 0.2, "fn_weight": 0.8, "classes": "[1, 2]", "ignore_index": 0}
    got = read(infer(app_client, "tversky", *PLAIN, parameters=parameters))
    params = {"fp_weight": 0.2, "fn_weight": 0.8, "classes": [1, 2]}
    expected = reference(app_client, losses=[{"name": "tversky", "params": params}], ignore_index=0)
    assert got.tensors["loss/tversky"].tolist() == expected["loss/tversky"].tolist()


def test_warnings_are_a_parameter_of_the_answer(app_client: Caller) -> None:
    mask = binary("mask", np.zeros_like(LABELS))
    got = read(infer(app_client, "dice", *PLAIN, mask))
    assert "no pixel counts" in json.loads(got.head["parameters"]["warnings"])[0]
    assert "parameters" not in read(infer(app_client, "dice", *PLAIN)).head


def test_presets_are_told_of(app_client: Caller) -> None:
    got = read(infer(app_client, "dice", *PLAIN, parameters={"preset": "monai"}))
    assert json.loads(got.head["parameters"]["preset"])["name"] == "monai"


# -- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "fold", "unfold"),
    [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)],
)
def test_bodies_are_compressed_on_request(
    app_client: Caller, coding: str, fold: Any, unfold: Any
) -> None:
    text = json.dumps({"inputs": [entry for entry, _ in PLAIN]}).encode()
    body = fold(text + b"".join(blob for _, blob in PLAIN))
    headers = {HEAD: str(len(text)), "Content-Encoding": coding, "Accept-Encoding": coding}
    with app_client.stream(
        "POST", "/v2/models/dice/infer", content=body, headers=headers
    ) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == coding
    data = json.loads(unfold(raw))["outputs"][0]["data"]
    assert data == reference(app_client)["loss/dice"].tolist()


@pytest.mark.parametrize("accepted", ["gzip, deflate, br", "gzip, deflate", "*", "br", "gzip;q=1"])
def test_nothing_is_compressed_for_who_takes_anything(app_client: Caller, accepted: str) -> None:
    answer = infer(app_client, "dice", *PLAIN, headers={"Accept-Encoding": accepted})
    assert "content-encoding" not in answer.headers


# -- refusals -------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, int, str, dict[str, Any]]] = [
    (
        "unknown input",
        400,
        "unexpected inference input 'zzz' for model 'dice'",
        {"inputs": (binary("zzz", LOGITS), PLAIN[1])},
    ),
    (
        "unknown output",
        400,
        "unexpected inference output 'zzz' for model 'dice'",
        {"outputs": [{"name": "zzz"}]},
    ),
    (
        "another loss's output",
        400,
        "unexpected inference output 'loss/focal' for model 'dice'",
        {"outputs": [{"name": "loss/focal"}]},
    ),
    (
        "sums and single gradients",
        400,
        "unexpected inference output 'gradient/logits' for model 'dice'",
        {"outputs": [{"name": "gradient/logits"}, {"name": "gradient/logits/dice"}]},
    ),
    (
        "too few bytes",
        400,
        "unexpected size for input 'target', expecting 3 additional bytes for model 'dice'",
        {"inputs": (PLAIN[0], (PLAIN[1][0], PLAIN[1][1][:-3]))},
    ),
    (
        "too many bytes",
        400,
        "unexpected additional input data for model 'dice'",
        {"inputs": (PLAIN[0], (PLAIN[1][0], PLAIN[1][1] + b"xx"))},
    ),
    (
        "bytes that are not the shape's",
        400,
        (
            "[request id: <id_unknown>] input byte size mismatch for input 'logits' for model "
            "'dice'. Expected 600, got 480"
        ),
        {"inputs": (({**PLAIN[0][0], "shape": [2, 3, 5, 5]}, PLAIN[0][1]), PLAIN[1])},
    ),
    (
        "the id in front",
        400,
        (
            "[request id: 7] input byte size mismatch for input 'logits' for model 'dice'. "
            "Expected 600, got 480"
        ),
        {"id": "7", "inputs": (({**PLAIN[0][0], "shape": [2, 3, 5, 5]}, PLAIN[0][1]), PLAIN[1])},
    ),
    (
        "two sources",
        400,
        (
            "Input must set only one of the following fields: 'data', 'binary_data_size' in "
            "'parameters', 'shared_memory_region' in 'parameters'. But set 'data' "
            "'binary_data_size'"
        ),
        {"inputs": (({**PLAIN[0][0], "data": [1.0]}, PLAIN[0][1]), PLAIN[1])},
    ),
    (
        "too many samples",
        400,
        "[request id: <id_unknown>] inference request batch-size must be <= 1024 for 'dice'",
        {
            "inputs": (
                binary("logits", np.zeros((1025, 1, 1, 1), np.float16)),
                binary("target", np.zeros((1025, 1, 1), np.uint8)),
            )
        },
    ),
    (
        "samples that differ",
        400,
        (
            "[request id: <id_unknown>] input 'logits' batch size does not match other inputs for "
            "'dice'"
        ),
        {"inputs": (binary("logits", LOGITS[:1]), PLAIN[1])},
    ),
    (
        "no inputs",
        400,
        (
            "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be deduced "
            "but got 4 inputs in 'dice' model configuration"
        ),
        {"inputs": ()},
    ),
    (
        "a label out of range",
        422,
        "9",
        {"inputs": (PLAIN[0], binary("target", LABELS + np.uint8(9)))},
    ),
    ("a missing input", 422, "target is missing", {"inputs": PLAIN[:1]}),
    ("an unknown parameter", 422, "no such parameter", {"parameters": {"smoth": 1}}),
    (
        "losses of a model of one",
        400,
        "model 'dice' evaluates one loss",
        {"parameters": {"losses": "dice"}},
    ),
    ("a reserved parameter", 400, "sequence_id", {"parameters": {"sequence_id": 3}}),
    ("a parameter of Triton's own", 400, "triton_x", {"parameters": {"triton_x": True}}),
    ("a table as parameter", 400, "text, a number", {"parameters": {"gamma": [1]}}),
    ("text that is no JSON", 400, "is not JSON", {"parameters": {"classes": "[1,"}}),
    ("no priority", 400, "priority", {"parameters": {"priority": -1}}),
    ("no time", 400, "microseconds", {"parameters": {"timeout": "soon"}}),
    ("two times", 400, "not both", {"parameters": {"timeout": 9, "timeout_ms": 9}}),
    ("a name for true", 400, "true or false", {"parameters": {"binary_data_output": 1}}),
    (
        "classification",
        400,
        "classification is not offered",
        {"outputs": [{"name": "total", "parameters": {"classification": 1}}]},
    ),
    (
        "an output twice",
        400,
        "asked for twice",
        {"outputs": [{"name": "total"}, {"name": "total"}]},
    ),
    (
        "an unknown datatype",
        400,
        "BYTES",
        {"inputs": (({**PLAIN[0][0], "datatype": "BYTES"}, PLAIN[0][1]), PLAIN[1])},
    ),
    (
        "a list of another length",
        400,
        "Shape does not match true shape of 'data' field",
        {"inputs": (({**described("logits", LOGITS), "data": [1.0]}, b""), PLAIN[1])},
    ),
    (
        "numbers too large for their type",
        400,
        "more than UINT8",
        {
            "inputs": (
                PLAIN[0],
                ({**described("target", LABELS), "data": [300] * LABELS.size}, b""),
            )
        },
    ),
    (
        "fractions as labels",
        400,
        "not UINT8",
        {
            "inputs": (
                PLAIN[0],
                ({**described("target", LABELS), "data": [0.5] * LABELS.size}, b""),
            )
        },
    ),
    (
        "a region where there are none",
        501,
        "shared memory",
        {
            "inputs": (
                PLAIN[0],
                (
                    {
                        **described("target", LABELS),
                        "parameters": {
                            "shared_memory_region": "r",
                            "shared_memory_byte_size": LABELS.nbytes,
                        },
                    },
                    b"",
                ),
            )
        },
    ),
]


@pytest.mark.parametrize(
    ("status", "text", "asked"),
    [case[1:] for case in REFUSALS],
    ids=[case[0] for case in REFUSALS],
)
def test_refusals(app_client: Caller, status: int, text: str, asked: dict[str, Any]) -> None:
    head = {name: value for name, value in asked.items() if name != "inputs"}
    answer = infer(app_client, "dice", *asked.get("inputs", PLAIN), **head)
    assert answer.status_code == status, answer.text
    assert text in error(answer)


@pytest.mark.parametrize(
    ("body", "length", "text"),
    [
        (b"{nope", None, "failed to parse the request JSON buffer: "),
        (b"[1]", None, "failed to parse the request JSON buffer: "),
        (b"", None, "Raw request must only have 1 input (found 1) to be deduced but got 4"),
        (b'{"inputs": {}}', None, "Unable to parse 'inputs'"),
        (b'{"inputs": [1]}', None, "Unable to parse 'inputs'"),
        (b'{"inputs": [{"name": 1}]}', None, "needs 'name'"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32"}]}', None, "needs 'shape'"),
        (b"{}", "9", "inference header size should be in range (0, 2), got: 9"),
        (b"{}", "9" * 40, "inference header size should be in range (0, 2), got: 9"),
        (b"{}", "abc", "is no number of bytes"),
        (b"{}", "-1", "is no number of bytes"),
        (bytes(64), "0", "Raw request must only have 1 input (found 1) to be deduced but got 4"),
    ],
)
def test_bodies_that_are_none(
    app_client: Caller, body: bytes, length: str | None, text: str
) -> None:
    headers = {} if length is None else {HEAD: length}
    answer = app_client.post("/v2/models/dice/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert text in error(answer)


def test_too_large_a_body_is_refused_unread(served: Served) -> None:
    nbytes = (served.settings.max_body_mib << 20) + 1
    answer = answer_to(served, b"POST /v2/models/dice/infer", b"Content-Length: %d" % nbytes)
    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert answer.endswith(b'{"error":"the body is larger than 268435456 bytes"}')


def test_a_head_that_is_too_large_is_refused_in_the_protocols_words(served: Served) -> None:
    answer = answer_to(served, b"GET /v2/models/dice", b"X: " + b"x" * 70_000)
    assert b" 431 " in answer.partition(b"\r\n")[0]
    assert b'{"error":' in answer


def answer_to(served: Served, line: bytes, field: bytes) -> bytes:
    """What comes back to a head that nothing follows."""
    where = served.client.base_url
    with socket.create_connection((where.host, where.port), timeout=10) as connection:
        connection.sendall(line + b" HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_unknown_coding_is_refused(app_client: Caller) -> None:
    answer = infer(app_client, "dice", *PLAIN, headers={"Content-Encoding": "br"})
    assert answer.status_code == 415
    assert "deflate" in answer.headers["accept-encoding"]
    assert "br" in error(answer)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("GET", "/v2/models/dice/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/health/live", 405, "Method Not Allowed"),
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/config", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/stats", 404, "Request for unknown model: 'nope' is not found"),
        (
            "POST",
            "/v2/models/nope/infer",
            404,
            "Request for unknown model: 'nope' is not found",
        ),
        (
            "GET",
            "/v2/models/dice/versions/9",
            404,
            "Request for unknown model: 'dice' version 9 is not found",
        ),
        ("GET", "/v2/models/nope/ready", 400, "Model version not ready"),
        ("GET", "/v2/models/dice/versions/9/ready", 400, "Model version not ready"),
        (
            "GET",
            "/v2/models/dice/versions/x",
            400,
            "failed to get model version from specified version string 'x'",
        ),
        (
            "POST",
            "/v2/repository/models/nope/load",
            404,
            "Request for unknown model: 'nope' is not found",
        ),
        (
            "POST",
            "/v2/repository/models/dice/unload",
            501,
            "failed to unload 'dice', models are part of the service",
        ),
    ],
)
def test_addresses(app_client: Caller, method: str, path: str, status: int, text: str) -> None:
    answer = app_client.request(method, path)
    assert answer.status_code == status
    assert answer.content == json.dumps({"error": text}, separators=(",", ":")).encode()


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["draining", "failed"])
def test_a_service_that_is_not_ready_says_so(
    served: Served, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(served.engine, "state", state)
    live = served.client.get("/v2/health/live").status_code
    assert (live == 200) is (state == "draining")
    assert served.client.get("/v2/health/ready").status_code == 400
    answer = served.client.get("/v2/models/dice/ready")
    assert (answer.status_code, error(answer)) == (400, "Model version not ready")
    index = served.client.post("/v2/repository/index").json()
    assert {(one["state"], one["reason"]) for one in index} == {("UNAVAILABLE", state)}


def test_every_loss_is_a_model(app_client: Caller) -> None:
    index = app_client.post("/v2/repository/index").json()
    assert [one["name"] for one in index] == sorted([*LOSSES, "evaluate"]) == list(model_names())
    assert all(one["state"] == "READY" and one["version"] == "1" for one in index)
    assert app_client.post("/v2/repository/models/dice/load", content=b"{}").status_code == 200


def test_an_alias_names_the_model_of_its_loss(app_client: Caller) -> None:
    assert app_client.get("/v2/models/iou").json()["name"] == "jaccard"


@pytest.mark.parametrize("name", model_names())
def test_metadata_and_configuration_say_the_same(app_client: Caller, name: str) -> None:
    metadata = app_client.get(f"/v2/models/{name}/versions/1").json()
    config = app_client.get(f"/v2/models/{name}/config").json()
    skipped = int(config["max_batch_size"] > 0)
    for kind in ("input", "output"):
        told = [(one["name"], one["datatype"], one["shape"]) for one in metadata[f"{kind}s"]]
        configured = [
            (one["name"], one["data_type"].removeprefix("TYPE_"), [-1] * skipped + one["dims"])
            for one in config[kind]
        ]
        assert told == configured


PIXELS = [name for name, loss in LOSSES.items() if loss.kind == "pixel"]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_answers_are_what_the_metadata_says(app_client: Caller, name: str) -> None:
    model = find_model(name)
    channels = 3 if not LOSSES[name].tasks or "multiclass" in LOSSES[name].tasks else 1
    sizes = {"B": 2, "C": channels, "D": 4, "*S": 6, "…": 4, "4": 4, "H": 5, "W": 6}
    inputs = []
    for one in model.inputs:
        if not one.required or one.name == "probabilities":
            continue
        axes = one.axes.partition(" or ")[0].replace("*S", "*S *S").split()
        shape = [sizes[axis] for axis in axes]
        table = np.abs(RNG.normal(size=shape)) % 1
        if one.datatype == "UINT8":
            inputs.append(binary(one.name, (table > 0.5).astype(np.uint8)))
        else:
            inputs.append(binary(one.name, table.astype(np.float32)))
    there = [one for one in model.outputs if "probabilities" not in one.name]
    there = [one for one in there if not one.name.startswith("gradient_scale")]
    wanted = [{"name": one.name, "parameters": {"binary_data": True}} for one in there]
    got = read(infer(app_client, name, *inputs, outputs=wanted))
    for one, output in zip(there, got.head["outputs"], strict=True):
        assert (output["name"], output["datatype"]) == (one.name, one.datatype)
        assert len(output["shape"]) == len(one.shape)
        assert all(
            said in (-1, size) for said, size in zip(one.shape, output["shape"], strict=True)
        )


RNG = np.random.default_rng(11)


def test_the_statistics_of_an_answer_have_these_names(app_client: Caller) -> None:
    tensors = reference(app_client, statistics=True)
    names = [name.removeprefix("statistics/") for name in tensors if "statistics/" in name]
    assert sorted(names) == sorted(STATISTICS)


def test_figures_of_a_model_are_true(app_client: Caller) -> None:
    def figures(path: str) -> dict[str, Any]:
        found: dict[str, Any] = app_client.get(path).json()["model_stats"][0]
        return found

    before = figures("/v2/models/log_dice/stats")
    for _ in range(3):
        read(infer(app_client, "log_dice", *PLAIN))
    error(infer(app_client, "log_dice", *PLAIN, parameters={"x": 1}))
    after = figures("/v2/models/log_dice/versions/1/stats")
    assert after["inference_count"] - before["inference_count"] == 6  # 3 of 2 samples
    assert after["execution_count"] - before["execution_count"] == 3  # one after the other
    counts = {name: one["count"] for name, one in after["inference_stats"].items()}
    assert counts["success"] - before["inference_stats"]["success"]["count"] == 3
    assert counts["fail"] - before["inference_stats"]["fail"]["count"] == 1
    spent = {name: one["ns"] for name, one in after["inference_stats"].items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(spent[name] for name in parts) <= spent["success"]
    sizes = {one["batch_size"]: one["compute_infer"]["count"] for one in after["batch_stats"]}
    assert sum(sizes.values()) == after["execution_count"]
    everything = app_client.get("/v2/models/stats").json()["model_stats"]
    assert [one["name"] for one in everything] == list(model_names())


def test_a_deadline_in_microseconds_is_one(app_client: Caller) -> None:
    answer = infer(app_client, "dice", *PLAIN, parameters={"timeout": 1})
    assert answer.status_code == 504
    assert "0.001 ms" in error(answer)
    assert infer(app_client, "dice", *PLAIN, parameters={"timeout": 0}).status_code == 200
