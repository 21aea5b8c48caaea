"""Every way to be refused: status, code, what the message names, and the form of the document."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.core import compiled
from lossd.core.evaluation import evaluate
from lossd.core.job import Job
from lossd_client.errors import ERRORS
from lossd_client.wire import JSON, SAFETENSORS
from service_fixture import (
    Caller,
    Served,
    b64,
    npy,
    npz,
    png,
    problem,
    safetensors,
    serving,
    tensor,
    wait_until,
)

LOGITS = np.zeros((2, 3, 4, 5), np.float32)
LABELS = np.zeros((2, 4, 5), np.uint8)
BINARY_LOGITS = LOGITS[:, :1]
ONE_HOT = np.stack([np.ones_like(LABELS), LABELS, LABELS], 1)


def document(logits: Any = LOGITS, target: Any = LABELS, **fields: Any) -> dict[str, Any]:
    inputs = {"logits": logits, "target": target}
    for name in ("mask", "weight_map"):
        if name in fields:
            inputs[name] = fields.pop(name)
    written = {
        name: tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
        if value is not None
    }
    return {"losses": ["dice"], "inputs": written, **fields}


# -- 400 ------------------------------------------------------------------------------------------

GOOD_FILE = safetensors({"losses": ["dice"]}, {"logits": LOGITS, "target": LABELS})
RLE = {"size": [4, 5], "counts": [20]}
MALFORMED_JSON: dict[str, Any] = {
    "no JSON": b"{",
    "nothing": b"",
    "no object": b"[]",
    "no UTF-8": b'"\xff"',
    "NaN": b'{"losses": ["dice"], "inputs": {"logits": [NaN]}}',
    "Infinity": b'{"losses": ["dice"], "inputs": {"logits": [Infinity]}}',
    "a lone surrogate": b'{"losses": ["\\ud800"], "inputs": {}}',
    "endless nesting": b"[" * 100_000,
    "inputs that are text": {"losses": ["dice"], "inputs": "logits"},
    "no inputs in the list": {"losses": ["dice"], "inputs": []},
    "text for a tensor": document(target="mask.png"),
    "ragged lists": document(target=[[[0, 1], [0]]]),
    "null in a list": document(target=[[[0, None]]]),
    "text in a list": document(target=[[["0", 1]]]),
    "an integer of 70 bits": document(target=[[[1 << 63, 1]]]),
    "an object that is no tensor": document(target={"jpeg": ""}),
    "base64 with other characters": document(target={"png": "ä~"}),
    "base64 of the wrong length": document(target={"dtype": "uint8", "shape": [2], "base64": "AA"}),
    "bytes that are not the shape": document(
        target={"dtype": "uint8", "shape": [3], "base64": b64(b"12")}
    ),
    "a dtype of no wire": document(target={"dtype": "complex64", "shape": [0], "base64": ""}),
    "a truncated PNG": document(target={"png": b64(png(LABELS[0])[:40])}),
    "a truncated npy": document(target={"npy": b64(npy(LABELS)[:-1])}),
    "an RLE that does not add up": document(target={"rle": {"size": [4, 5], "counts": [19]}}),
    "labels without their masks": document(target={"rle": [[RLE]], "labels": [[1, 2]]}),
    "labels that are no list": document(target={"rle": [[RLE]], "labels": [1]}),
}


@pytest.mark.parametrize("what", MALFORMED_JSON)
def test_a_malformed_json_body_is_400(app_client: Caller, what: str) -> None:
    given = MALFORMED_JSON[what]
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    problem(app_client.evaluate_bytes(body, JSON), 400, "malformed_body")


MALFORMED_FILES: dict[str, bytes] = {
    "nothing": b"",
    "half a length": GOOD_FILE[:4],
    "half a header": GOOD_FILE[:40],
    "half a tensor": GOOD_FILE[:-7],
    "too much": GOOD_FILE + b"\0",
    "a header longer than the body": (1 << 20).to_bytes(8, "little") + GOOD_FILE[8:],
    "a header longer than anything": b"\xff" * 8 + GOOD_FILE[8:],
    "no request": safetensors({}, {}).replace(b"request", b"reqeust"),
    "a request that is no object": safetensors({}, {}).replace(b'"{}"', b'"[]"'),
    "a request that is no JSON": safetensors({}, {}).replace(b'"{}"', b'"{"  '),
    "more objects than tensors": safetensors(
        {"losses": ["dice"], "inputs": [{}, {}]}, {"logits": LOGITS}
    ),
    "a number missing": safetensors({"losses": ["dice"]}, {"1/logits": LOGITS}),
}


@pytest.mark.parametrize("what", MALFORMED_FILES)
def test_a_malformed_safetensors_body_is_400(app_client: Caller, what: str) -> None:
    problem(app_client.evaluate_bytes(MALFORMED_FILES[what], SAFETENSORS), 400, "malformed_body")


def test_a_malformed_form_is_400(app_client: Caller) -> None:
    body = b"--edge\r\nnot a header"
    answer = app_client.evaluate_bytes(body, "multipart/form-data; boundary=edge")
    problem(answer, 400, "malformed_body")
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.txt", b"hello"))]
    told = problem(app_client.evaluate_form(files, losses="dice"), 400, "malformed_body")
    assert "target (m.txt)" in told["detail"]


# -- 404, 405, 413, 415 ---------------------------------------------------------------------------


def test_an_unknown_context_is_404_and_named(app_client: Caller) -> None:
    told = problem(app_client.get("/v1/qa/contexts/nowhere"), 404, "context_not_found")
    assert "nowhere" in told["detail"]


def test_an_unknown_ref_is_404_and_named_with_its_input(app_client: Caller) -> None:
    answer = app_client.evaluate(document(logits={"ref": "no such"}))
    told = problem(answer, 404, "unknown_ref")
    assert told["errors"][0]["loc"] == ["inputs", "logits"]
    assert "'no such'" in told["detail"]


def test_an_unknown_loss_is_404_and_the_nearest_is_offered(app_client: Caller) -> None:
    for answer in (
        app_client.evaluate(document(losses=["dicee"])),
        app_client.get("/v1/losses/dicee"),
    ):
        told = problem(answer, 404, "unknown_loss")
        assert "'dicee'; did you mean dice" in told["detail"]
        assert told["errors"][0]["loc"] == ["losses"]


def test_a_request_without_a_valid_key_is_401(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch()
    with serving(cache_dir=tmp_path, keys_file=keys, ready=False) as guarded:
        problem(guarded.client.evaluate(document()), 401, "unauthorized")


def test_an_unknown_address_is_404(app_client: Caller) -> None:
    problem(app_client.get("/v1/lossses"), 404, "not_found")


def test_a_wrong_method_is_405_and_the_right_one_is_told(app_client: Caller) -> None:
    answer = app_client.get("/v1/evaluate")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_415(app_client: Caller, content_type: str) -> None:
    told = problem(app_client.evaluate_bytes(b"{}", content_type), 415, "unsupported_media_type")
    assert "application/json" in told["detail"]


def test_a_body_in_another_coding_is_415(app_client: Caller) -> None:
    answer = app_client.evaluate_bytes(b"{}", JSON, **{"Content-Encoding": "br"})
    told = problem(answer, 415, "unsupported_coding")
    assert "br" in told["detail"]
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"


# -- what never becomes a request, see test_http_protocol.py for the rest --------------------------

HEAD = b"GET /v1/limits HTTP/1.1\r\nHost: a\r\nX-Long: "
NO_REQUESTS = {
    "malformed_request": (400, b"\x16\x03\x01 hello\r\n\r\n"),
    "head_too_large": (431, HEAD + b"y" * 100_000 + b"\r\n\r\n"),
    "head_timeout": (408, HEAD),
    "too_many_connections": (503, HEAD + b"\r\n\r\n"),
}


@pytest.mark.parametrize("code", NO_REQUESTS)
def test_what_never_becomes_a_request_has_a_problem_of_its_own(tmp_path: Path, code: str) -> None:
    status, sent = NO_REQUESTS[code]
    limits: dict[str, Any] = {"head_timeout_s": 0.3, "max_connections": 1 if status == 503 else 9}
    with (
        serving(cache_dir=tmp_path, ready=False, **limits) as strict,
        contextlib.ExitStack() as held,
    ):
        url = strict.client.base_url
        for _ in range(2 if status == 503 else 1):
            connection = held.enter_context(socket.create_connection((url.host, url.port or 0)))
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        fields = dict(answer.getheaders())
        told = httpx.Response(answer.status, headers=fields, content=answer.read())
    assert problem(told, status, code)["detail"]
    assert told.headers["connection"] == "close"
    assert ("retry-after" in told.headers) == (status == 503)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with small limits."""
    limits: dict[str, Any] = {"max_body_mib": 1, "max_request_samples": 2, "max_classes": 4}
    with serving(cache_dir=Path(tmp_path_factory.mktemp("lossd")), **limits) as running:
        yield running


MIB = 1 << 20


def test_a_body_is_refused_by_its_announced_length(small: Served) -> None:
    answer = small.client.evaluate_bytes(b" " * (MIB + 1), JSON)
    told = problem(answer, 413, "too_large")
    assert str(MIB) in told["detail"]
    assert answer.headers["connection"] == "close"


def test_a_refusal_of_what_was_read_keeps_the_connection(small: Served) -> None:
    target = {"rle": {"size": [2048, 2048], "counts": [2048 * 2048]}}
    document = {"losses": ["dice"], "inputs": {"logits": [[[[0.0]]]], "target": target}}
    answer = small.client.evaluate(document)
    problem(answer, 413, "too_large")
    assert "connection" not in answer.headers


def test_a_body_without_a_length_is_refused_when_it_gets_too_long(small: Served) -> None:
    problem(small.client.evaluate_bytes(iter([b" " * MIB, b" "]), JSON), 413, "too_large")


def test_a_body_at_the_limit_is_read(small: Served) -> None:
    body = json.dumps(document()).encode()
    assert small.client.evaluate_bytes(body + b" " * (MIB - len(body)), JSON).is_success


BOMB = np.zeros(4 * MIB, np.uint8)
BOMBS: dict[str, Any] = {
    "png": {"png": b64(png(BOMB.reshape(2048, -1)))},
    "npy": {"npy": b64(npy(BOMB)[:200])},
    "rle": {"rle": {"size": [1 << 20, 1 << 20], "counts": [1 << 40]}},
    "many RLEs": {"rle": [{"size": [1024, 512], "counts": [1 << 19]}] * 3},
    "class RLEs": {"rle": [[{"size": [1024, 512], "counts": [1 << 19]}]], "labels": [[1]]},
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_unfolds_to_more_than_the_limit_is_413(small: Served, what: str) -> None:
    told = problem(small.client.evaluate(document(target=BOMBS[what])), 413, "too_large")
    assert "unfolds" in told["detail"]


def test_a_file_that_unfolds_to_more_than_the_limit_is_413(small: Served) -> None:
    files = [("logits", ("p.npz", npz(BOMB))), ("target", ("m.png", png(LABELS[0])))]
    problem(small.client.evaluate_form(files, losses="dice"), 413, "too_large")


def test_too_many_samples_or_classes_name_the_limit(small: Served) -> None:
    three = small.client.evaluate(document(np.zeros((3, 3, 4, 5), "f4"), np.zeros((3, 4, 5), "u1")))
    assert "at most 2" in problem(three, 422, "invalid_input")["detail"]
    five = small.client.evaluate(document(np.zeros((2, 5, 4, 5), "f4")))
    assert "at most 4" in problem(five, 422, "invalid_input")["detail"]


# -- 422: inputs ----------------------------------------------------------------------------------

OFF = np.full(LABELS.shape, 0.5, np.float32)
NAN = np.full(LABELS.shape, np.nan, np.float32)
INVALID: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "logits missing": (document(logits=None), ["inputs", "logits"], "missing"),
    "target missing": (document(target=None), ["inputs", "target"], "missing"),
    "unknown input": (
        {"losses": ["dice"], "inputs": {"scores": [[[0.5]]]}},
        ["inputs", "scores"],
        "unknown input 'scores'",
    ),
    "logits without space": (
        document(LOGITS[:, :, 0, 0]),
        ["inputs", "logits"],
        "1, 2 or 3 spatial axes",
    ),
    "logits in four dimensions": (
        document(LOGITS[:, :, None, None]),
        ["inputs", "logits"],
        "1, 2 or 3 spatial axes",
    ),
    "logits that are labels": (
        document(LOGITS.astype(np.int32)),
        ["inputs", "logits"],
        "these are labels",
    ),
    "logits that are switches": (document(LOGITS.astype(bool)), ["inputs", "logits"], "dtype bool"),
    "logits that hold nothing": (document(LOGITS[:0]), ["inputs", "logits"], "at least 1"),
    "target of another size": (document(target=LABELS[:, :3]), ["inputs", "target"], "neither"),
    "labels that are floats": (
        document(target=LABELS.astype(np.float32)),
        ["inputs", "target"],
        "labels [B, *S] are integers",
    ),
    "target beyond 1": (
        document(BINARY_LOGITS, OFF + 1),
        ["inputs", "target"],
        "target[0, 0, 0, 0] is 1.5",
    ),
    "target that is NaN": (document(BINARY_LOGITS, NAN), ["inputs", "target"], "is nan"),
    "channels of 2": (
        document(target=ONE_HOT * 2, task="multilabel"),
        ["inputs", "target"],
        "lie in [0, 1]",
    ),
    "channels that do not sum to 1": (
        document(target=ONE_HOT * np.float32(0.9), task="multiclass"),
        ["inputs", "target"],
        "sum to 1",
    ),
    "channels of no task": (document(target=ONE_HOT * np.float32(0.9)), ["task"], "say task"),
    "binary with channels": (document(task="binary"), ["task"], "one logit channel"),
    "multiclass with one": (
        document(BINARY_LOGITS, task="multiclass"),
        ["task"],
        "at least 2 logit channels",
    ),
    "multilabel with labels": (
        document(task="multilabel"),
        ["inputs", "target"],
        "target per channel",
    ),
    "ignore_index with channels": (
        document(target=ONE_HOT, ignore_index=255),
        ["ignore_index"],
        "use mask",
    ),
    "mask with channels": (
        document(mask=np.ones_like(LOGITS)),
        ["inputs", "mask"],
        "no channel axis",
    ),
    "mask that is NaN": (document(mask=NAN), ["inputs", "mask"], "NaN"),
    "weight_map of another size": (
        document(weight_map=OFF[:, 1:]),
        ["inputs", "weight_map"],
        "expected [2, 4, 5]",
    ),
    "weight_map below 0": (
        document(weight_map=OFF - 1),
        ["inputs", "weight_map"],
        "weight_map[0, 0, 0] is -0.5",
    ),
    "weight_map that is infinite": (
        document(weight_map=np.full_like(OFF, np.inf)),
        ["inputs", "weight_map"],
        "finite",
    ),
    "PNGs of two sizes": (
        document(target={"png": [b64(png(LABELS[0])), b64(png(LABELS[0][1:]))]}),
        [],
        "make inputs a list",
    ),
    "objects of two widths": (
        {
            "losses": ["dice"],
            "inputs": [document()["inputs"], document(LOGITS[:, :2])["inputs"]],
        },
        ["inputs"],
        "channels of logits differ",
    ),
    "an object that is wrong": (
        {
            "losses": ["dice"],
            "inputs": [document()["inputs"], document(target=LABELS[:1])["inputs"]],
        },
        ["inputs", 1, "target"],
        "neither",
    ),
    # -- fields
    "no losses": (document(losses=[]), ["losses"], "at least 1"),
    "losses missing": ({"inputs": document()["inputs"]}, ["losses"], "required"),
    "inputs missing": ({"losses": ["dice"]}, [], "needs its tensors"),
    "an unknown field": (document(colour="red"), ["colour"], "not permitted"),
    "an unknown preset": (document(preset="keras"), ["preset"], "'monai', 'smp', 'nnunet'"),
    "a spacing of no size": (document(spacing=[1, 0]), ["spacing", 1], "greater than 0"),
    "a spacing of other axes": (document(spacing=[1, 1, 1]), ["spacing"], "3 sizes for 2 spatial"),
    "an unknown task": (document(task="panoptic"), ["task"], "'binary', 'multiclass'"),
    "a label twice": (document(losses=["dice", "dice"]), [], "dice"),
    "a label with a slash": (document(losses=[{"name": "dice", "label": "a/b"}]), [], "'/'"),
    "a loss with an unknown key": (
        document(losses=[{"name": "dice", "wieght": 1}]),
        ["losses", 0, "wieght"],
        "not permitted",
    ),
    "a deadline in the past": (document(timeout_ms=0), ["timeout_ms"], "greater than 0"),
    "a gradient of no kind": (document(gradient="all"), ["gradient"], "'none', 'total' or 'each'"),
    "a gradient_dtype of no kind": (
        document(gradient_dtype="int8"),
        ["gradient_dtype"],
        "'float16'",
    ),
    "an aggregate of no kind": (document(aggregate="mean"), ["aggregate"], "'sample' or 'batch'"),
}


@pytest.mark.parametrize("what", INVALID)
def test_inputs_that_do_not_fit_are_422_and_named(app_client: Caller, what: str) -> None:
    request, loc, says = INVALID[what]
    told = problem(app_client.evaluate(request), 422, "invalid_input")
    assert says in told["detail"]
    if loc:
        assert told["errors"][0]["loc"] == loc


def test_a_long_value_is_not_sent_back(app_client: Caller) -> None:
    answer = app_client.evaluate(document(task="x" * 100_000))
    problem(answer, 422, "invalid_input")
    assert len(answer.content) < 1000


def test_text_that_utf8_cannot_hold_comes_back_escaped(app_client: Caller) -> None:
    header = json.dumps({"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})
    text = header[:-1] + ', "__metadata__": {"request": "{\\"losses\\": [\\"dice\\"]}"}}'
    body = len(text).to_bytes(8, "little") + text.encode()
    told = problem(app_client.evaluate_bytes(body, SAFETENSORS), 422, "invalid_input")
    assert told["errors"][0]["loc"] == ["inputs", "\ud800"]


def test_forms_are_refused_by_field(app_client: Caller) -> None:
    files = [("logits", ("p.npy", npy(LOGITS[0]))), ("target", ("m.png", png(LABELS[0])))]
    for fields, says in (
        ({"ignore_index": "many"}, "ignore_index"),
        ({"surprise": "1"}, "surprise"),
        ({"sample_axis": "perhaps"}, "sample_axis is true or false"),
    ):
        told = problem(
            app_client.evaluate_form(files, losses="dice", **fields), 422, "invalid_input"
        )
        assert says in told["detail"]
    uneven = app_client.evaluate_form([*files, files[0]], losses="dice")
    assert "'logits': 2" in problem(uneven, 422, "invalid_input")["detail"]
    none = app_client.post("/v1/evaluate", files={"losses": (None, "dice")})
    assert "needs files" in problem(none, 422, "invalid_input")["detail"]


def test_arrays_is_base64_or_list(app_client: Caller) -> None:
    answer = app_client.evaluate(document(), params={"arrays": "hex"})
    told = problem(answer, 422, "invalid_input")
    assert told["errors"][0]["loc"] == ["query", "arrays"]


# -- 422: parameters ------------------------------------------------------------------------------

PARAMETERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "below the range": ("focal", {"gamma": -1}, "greater than or equal to 0, got -1"),
    "above the range": ("ce", {"label_smoothing": 1.5}, "less than or equal to 1, got 1.5"),
    "of another type": ("dice", {"smooth_nr": "1"}, "valid number, got '1'"),
    "a switch for a number": ("dice", {"smooth_nr": True}, "valid number"),
    "unknown": ("dice", {"smoothing": 1}, "it takes"),
    "of another loss": ("dice", {"gamma": 2.0}, "no such parameter"),
    "one of a choice": ("dice", {"average": "median"}, "'macro' or 'micro'"),
    "too few weights": ("dice", {"class_weights": [1, 2]}, "one weight per channel, 3, got 2"),
    "a weight below 0": ("ce", {"class_weights": [1, 2, -1]}, "greater than or equal to 0"),
    "weights of a micro average": (
        "dice",
        {"class_weights": [1, 1, 1], "average": "micro"},
        "average is micro",
    ),
    "classes beyond the last": ("dice", {"classes": [0, 3]}, "0 … 2, got [0, 3]"),
    "no classes": ("dice", {"classes": []}, "0 … 2"),
    "a class below 0": ("dice", {"classes": [-1]}, "greater than or equal to 0"),
    "alpha as one number": ("focal", {"alpha": 0.25}, "a list of 3 weights"),
    "alpha of too few classes": ("focal", {"alpha": [1, 2]}, "one weight per class"),
}


def messages(told: dict[str, Any]) -> list[str]:
    return [error["message"] for error in told["errors"]]


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_parameter_out_of_range_is_422_with_the_range(app_client: Caller, what: str) -> None:
    name, params, says = PARAMETERS[what]
    losses = ["jaccard", {"name": name, "params": params}]
    told = problem(app_client.evaluate(document(losses=losses)), 422, "invalid_parameter")
    assert any(says in message for message in [told["detail"], *messages(told)])
    assert told["errors"][0]["loc"][:4] == ["losses", 1, "params", next(iter(params))]


def test_parameters_of_binary_losses_are_checked_too(app_client: Caller) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"include_background": False}, "no background"),
        ({"classes": [1]}, "0 … 0"),
    ]
    for params, says in wrong:
        losses: list[Any] = [{"name": "dice", "params": params}]
        answer = app_client.evaluate(document(BINARY_LOGITS, losses=losses))
        assert says in problem(answer, 422, "invalid_parameter")["detail"]
    losses = [{"name": "focal", "params": {"alpha": [1.0, 2.0]}}]
    answer = app_client.evaluate(document(BINARY_LOGITS, losses=losses))
    assert "focal.alpha" in problem(answer, 422, "invalid_parameter")["detail"]


def test_a_loss_of_another_task_says_which_it_takes(app_client: Caller) -> None:
    told = problem(app_client.evaluate(document(losses=["bce"])), 422, "invalid_parameter")
    assert told["detail"] == "binary_cross_entropy takes task binary or multilabel, not multiclass"
    assert told["errors"][0]["loc"] == ["losses", 0, "name"]


# -- 422: labels and logits -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_a_label_out_of_range_is_named_with_its_place(app_client: Caller, dtype: str) -> None:
    target = LABELS.astype(dtype)
    target[1, 2, 3] = 77
    target[1, 3, 4] = 9
    told = problem(app_client.evaluate(document(target=target)), 422, "label_out_of_range")
    assert told["errors"][0]["loc"] == ["inputs", "target", 1, 2, 3]
    for part in ("label 77 at target[1, 2, 3]", "3 classes 0 … 2", "2 pixels", "9, 77"):
        assert part in told["detail"]


def test_255_without_an_ignore_index_says_so(app_client: Caller) -> None:
    target = LABELS.copy()
    target[0, 0, 0] = 255
    told = problem(app_client.evaluate(document(target=target)), 422, "label_out_of_range")
    assert "ignore_index is not set" in told["detail"]
    binary = app_client.evaluate(document(BINARY_LOGITS, target))
    assert "classes 0 … 1" in problem(binary, 422, "label_out_of_range")["detail"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_a_label_that_does_not_count_may_be_anything(app_client: Caller, dtype: str) -> None:
    target = LABELS.astype(dtype)
    target[0, 0, 0] = 99
    mask = np.ones_like(LABELS)
    mask[0, 0, 0] = 0
    masked = app_client.evaluate(document(target=target, mask=mask))
    ignored = app_client.evaluate(document(target=target, ignore_index=99))
    assert masked.json()["losses"] == ignored.json()["losses"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_logits_that_count_must_be_finite(app_client: Caller, value: float, task: str) -> None:
    logits = LOGITS.copy()
    logits[1, 2, 3, 1] = value
    target = LABELS if task == "multiclass" else ONE_HOT
    answer = app_client.evaluate(document(logits, target, task=task))
    told = problem(answer, 422, "non_finite_logits")
    assert told["errors"][0]["loc"] == ["inputs", "logits", 1, 2, 3, 1]
    assert f"logits[1, 2, 3, 1] is {value}" in told["detail"]


def test_logits_that_do_not_count_may_be_anything(app_client: Caller) -> None:
    logits, target, mask = LOGITS.copy(), LABELS.copy(), np.ones_like(LABELS)
    logits[0, :, 1, 1] = np.nan
    target[0, 1, 1] = 255
    mask[0, 1, 1] = 0
    fields = {"gradient": "total", "losses": ["dice", "ce", "focal"]}
    ignored = app_client.evaluate(document(logits, target, ignore_index=255, **fields)).json()
    masked = app_client.evaluate(document(logits, LABELS, mask=mask, **fields)).json()
    assert ignored["losses"] == masked["losses"]
    assert None not in ignored["total"]


def test_a_bad_object_among_several_is_numbered(app_client: Caller) -> None:
    bad = LOGITS.copy()
    bad[0, 1, 0, 2] = np.nan
    objects = [document()["inputs"], document(bad)["inputs"]]
    answer = app_client.evaluate({"losses": ["dice"], "inputs": objects})
    told = problem(answer, 422, "non_finite_logits")
    assert told["errors"][0]["loc"] == ["inputs", 1, "logits", 0, 1, 0, 2]


# -- 408, 429, 5xx --------------------------------------------------------------------------------


class Gate:
    """Holds the engine, once, inside a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.jobs: list[Job] = []
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(self, jobs: Sequence[Job], *rest: Any) -> Any:
        self.jobs.extend(jobs)
        self.entered.set()
        assert self.opened.wait(20)
        return evaluate(jobs, *rest)


@contextmanager
def in_background(client: Caller, request: dict[str, Any]) -> Iterator[list[httpx.Response]]:
    """Sends a request beside what the test does; its answer is there afterwards."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(client.evaluate(request)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join()


def test_a_full_queue_is_429_with_a_time_to_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(cache_dir=tmp_path, max_queue_samples=2) as small:
        gate = Gate(monkeypatch)
        with in_background(small.client, document()) as first:
            assert gate.entered.wait(10)
            with in_background(small.client, document()) as second:
                wait_until(lambda: small.engine.queue_depth().samples == 2)
                refused = small.client.evaluate(document())
                gate.opened.set()
        told = problem(refused, 429, "queue_full")
        assert "2 samples" in told["detail"]
        assert refused.headers["retry-after"] == "1"
        assert first[0].is_success
        assert second[0].is_success


def test_a_quota_that_is_used_up_is_429_with_a_time_to_return(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, key_requests_per_minute=1) as small:
        assert small.client.evaluate(document()).is_success
        refused = small.client.evaluate(document())
        told = problem(refused, 429, "quota_exceeded")
        assert "requests: 1 a minute, 0 left" in told["detail"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert small.client.get("/v1/limits").json()["quotas"]["requests"]["limit"] == 1


def test_a_missed_deadline_is_504_and_the_job_leaves_the_queue(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with in_background(served.client, document()):
        assert gate.entered.wait(10)
        late = served.client.evaluate(document(timeout_ms=50))
        gate.opened.set()
    told = problem(late, 504, "deadline_exceeded")
    assert "left" in told["detail"]
    wait_until(lambda: served.engine.queue_depth().requests == 0)
    assert len(gate.jobs) == 1


def test_a_deadline_that_passes_while_computing_is_504_and_gives_the_engine_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Job] = []

    def endless_once(jobs: Sequence[Job], *rest: Any) -> Any:
        met.extend(jobs)
        checkpoint = rest[-1]
        while len(met) == 1:
            checkpoint()
        return evaluate(jobs, *rest)

    monkeypatch.setattr("lossd.engine.evaluate", endless_once)
    late = served.client.evaluate(document(timeout_ms=1000))  # time enough to begin
    problem(late, 504, "deadline_exceeded")
    assert served.client.evaluate(document()).is_success
    assert len(met) == 2


def test_a_deadline_counts_the_reading_as_well(served: Served) -> None:
    answer = served.client.evaluate(document(timeout_ms=1e-3))
    told = problem(answer, 504, "deadline_exceeded")
    assert "reading the request" in told["detail"]


def test_a_job_whose_client_has_gone_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with in_background(served.client, document()):
        assert gate.entered.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            served.client.evaluate(document(), timeout=0.2)
        wait_until(lambda: served.engine.queue_depth().requests == 1)
        gate.opened.set()
    wait_until(lambda: served.engine.queue_depth().requests == 0)
    assert len(gate.jobs) == 1


def test_a_slow_body_is_408(tmp_path: Path) -> None:
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 9"
    with serving(cache_dir=tmp_path, body_timeout_s=0.2, ready=False) as slow:
        address = slow.client.base_url.host, slow.client.base_url.port or 0
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(f"{head}\r\n\r\n{{".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code": "body_timeout"' in answer
    assert b"1 bytes of the body arrived in 0.2 s" in answer


def test_a_service_that_compiles_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()

    def slow() -> Any:
        assert opened.wait(20)
        return eager_kernels()

    eager_kernels = compiled.eager_kernels
    monkeypatch.setattr(compiled, "eager_kernels", slow)
    with serving(cache_dir=tmp_path, ready=False) as starting:
        refused = starting.client.evaluate(document())
        not_ready = starting.client.get("/health/ready")
        alive = starting.client.get("/health/live")
        opened.set()
        wait_until(starting.engine.is_ready)
    assert problem(refused, 503, "not_ready")["detail"] == "starting"
    assert refused.headers["retry-after"] == "5"
    problem(not_ready, 503, "not_ready")
    assert not_ready.headers["retry-after"] == "2"
    assert alive.json() == {"status": "live"}


def test_a_service_that_drains_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(cache_dir=tmp_path) as leaving:
        gate = Gate(monkeypatch)
        with in_background(leaving.client, document()) as accepted:
            assert gate.entered.wait(10)
            leaving.engine.drain()
            refused = leaving.client.evaluate(document())
            not_ready = leaving.client.get("/health/ready")
            alive = leaving.client.get("/health/live")
            gate.opened.set()
    problem(refused, 503, "draining")
    assert refused.headers["retry-after"] == "1"
    assert problem(not_ready, 503, "not_ready")["detail"] == "draining"
    assert alive.is_success
    assert accepted[0].is_success


def test_a_failed_engine_is_neither_ready_nor_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        msg = "the canary died"
        raise RuntimeError(msg)

    monkeypatch.setattr("lossd.engine.check_canary", broken)
    with serving(cache_dir=tmp_path, ready=False) as failed:
        wait_until(lambda: failed.engine.state == "failed")
        for answer in (
            failed.client.get("/health/ready"),
            failed.client.get("/health/live"),
            failed.client.evaluate(document()),
        ):
            problem(answer, 503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1


def test_a_mistake_of_ours_is_500_with_an_id(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        msg = "secret detail"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("lossd.app.catalogue", broken)
    answer = served.client.get("/v1/losses", headers={"X-Request-ID": "mine"})
    told = problem(answer, 500, "internal")
    assert told["request_id"] == "mine"
    assert "secret" not in answer.text


def test_a_job_that_fails_inside_the_engine_is_500(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_once(*_: Any) -> Any:
        monkeypatch.undo()
        msg = "no memory"
        raise RuntimeError(msg)

    monkeypatch.setattr("lossd.engine.evaluate", broken_once)
    assert "no memory" in problem(served.client.evaluate(document()), 500, "internal")["detail"]
    assert served.client.evaluate(document()).is_success


# -- ids and completeness -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/losses", "/nowhere"])
def test_the_id_of_the_caller_is_kept(app_client: Caller, path: str) -> None:
    answer = app_client.get(path, headers={"X-Request-ID": "trace 1/u"})
    assert answer.headers.get_list("x-request-id") == ["trace 1/u"]


@pytest.mark.parametrize("evil", [b"x" * 129, b"caf\xc3\xa9", b"a\tb", b""])
def test_an_id_that_is_long_or_unprintable_is_replaced(app_client: Caller, evil: bytes) -> None:
    answer = app_client.get("/nowhere", headers={b"X-Request-ID": evil})
    told = problem(answer, 404, "not_found")
    assert len(told["request_id"]) == 32
    assert int(told["request_id"], 16) > 0


def test_ids_differ(app_client: Caller) -> None:
    ids = {app_client.get("/nowhere").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_every_error_has_a_code_and_a_sentence_of_its_own() -> None:
    def every(cls: type[Any]) -> Iterator[type[Any]]:
        yield cls
        for below in cls.__subclasses__():
            yield from every(below)

    from lossd_client.errors import LossdError  # noqa: PLC0415 - beside its use

    classes = list(every(LossdError))
    assert len({cls.code for cls in classes}) == len(classes)
    assert len({cls.title() for cls in classes}) == len(classes)
    assert all(ERRORS[cls.code] is cls for cls in classes if not cls.__subclasses__())


def test_what_the_service_does_not_offer_is_501(app_client: Caller) -> None:
    code = "not_supported"
    answer = app_client.post("/v2/repository/models/dice/unload")
    assert answer.status_code == ERRORS[code].status
    assert answer.json() == {"error": "failed to unload 'dice', models are part of the service"}


def test_every_error_of_the_service_is_raised_by_a_test_of_this_file() -> None:
    """Codes that an answer can carry; `unreachable` is what a client says without one."""
    source = Path(__file__).read_text()
    missing = [code for code in ERRORS if code != "unreachable" and f'"{code}"' not in source]
    assert not missing, missing


def test_reading_a_large_body_does_not_hold_up_others(app_client: Caller) -> None:
    slow = document(np.zeros((64, 3, 128, 128), "f4"), np.zeros((64, 128, 128), "u1"))
    with in_background(app_client, slow) as answers:
        worst = 0.0
        while not answers:
            started = time.perf_counter()
            app_client.get("/health/live").raise_for_status()
            worst = max(worst, time.perf_counter() - started)
    assert answers[0].is_success
    assert worst < 2.0
