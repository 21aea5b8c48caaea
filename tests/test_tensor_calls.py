"""Tensors by reference over HTTP: kept in every encoding, named in every encoding, one's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.keys import add_key
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Sources, read_json
from lossd_client.errors import TooLargeError
from lossd_client.wire import JSON, SAFETENSORS, Array, decode_safetensors, decode_tensor
from service_fixture import (
    ROOT,
    Caller,
    b64,
    npy,
    png,
    problem,
    read_answer,
    runs,
    safetensors,
    serving,
    tensor,
)

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 5, 4), dtype=np.uint8)
RLES = {
    "rle": [[runs(label == value) for value in (1, 2)] for label in LABELS],
    "labels": [[1, 2], [1, 2]],
}


def put(client: httpx.Client, document: Any, **headers: str) -> dict[str, Any]:
    answer = client.put("/v1/tensors", json=document, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    kept: dict[str, Any] = answer.json()
    return kept


def ref_of(client: httpx.Client, array: Array) -> str:
    ref: str = put(client, tensor(array))["ref"]
    return ref


def fetched(client: httpx.Client, ref: str) -> Array:
    answer = client.get(f"/v1/tensors/{ref}")
    assert answer.status_code == 200, answer.text
    return decode_tensor(answer.json())


# -- to keep --------------------------------------------------------------------------------------


def test_a_kept_tensor_is_described_located_and_given_back(app_client: Caller) -> None:
    array = RNG.normal(size=(2, 3)).astype(np.float16)
    answer = app_client.put("/v1/tensors", json=tensor(array))
    assert answer.status_code == 201
    kept = answer.json()
    ref = kept["ref"]
    assert answer.headers["location"] == f"/v1/tensors/{ref}"
    assert kept["tensors"]["tensor"] == {
        "ref": ref, "dtype": "float16", "shape": [2, 3], "nbytes": 12, "expires_in_s": 3600.0
    }  # fmt: skip
    again = app_client.put("/v1/tensors", json=tensor(array))
    assert (again.status_code, again.json()["ref"]) == (200, ref)
    np.testing.assert_array_equal(fetched(app_client, ref), array)
    file = app_client.get(f"/v1/tensors/{ref}", headers={"Accept": SAFETENSORS})
    assert file.headers["content-type"] == SAFETENSORS
    np.testing.assert_array_equal(decode_safetensors(file.content)[0]["tensor"], array)


def test_a_deleted_tensor_is_known_no_more(app_client: Caller) -> None:
    ref = ref_of(app_client, RNG.normal(size=9))
    answer = app_client.delete(f"/v1/tensors/{ref}")
    assert (answer.status_code, answer.content) == (204, b"")
    for call in (app_client.get, app_client.delete):
        document = problem(call(f"/v1/tensors/{ref}"), 404, "unknown_ref")
        assert document["errors"][0]["loc"] == ["path", "ref"]


@pytest.mark.parametrize(
    ("form", "want"),
    [
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([[1.5, 2]], np.array([[1.5, 2]], np.float32)),
        ({"npy": b64(npy(LOGITS))}, LOGITS),
        ({"npy": b64(npy(LABELS.astype(np.uint16)))}, LABELS.astype(np.int32)),
        ({"npy": b64(npy(LABELS.astype(">u8")))}, LABELS.astype(np.int64)),
        ({"png": [b64(png(label)) for label in LABELS]}, LABELS),
        (RLES, LABELS),
    ],
    ids=str,
)
def test_every_json_form_is_kept_as_it_would_be_read(
    app_client: Caller, form: Any, want: Array
) -> None:
    got = fetched(app_client, put(app_client, form)["ref"])
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


def test_several_tensors_are_kept_by_name(app_client: Caller) -> None:
    named = {"logits": [[[[1, 2]]]], "target": [[[1, 2]]]}
    kept = put(app_client, {"tensors": named})
    assert "ref" not in kept
    # As in a request: whole numbers of logits mean floats.
    assert {name: one["dtype"] for name, one in kept["tensors"].items()} == {
        "logits": "float32", "target": "int64"
    }  # fmt: skip
    body = safetensors({}, {"a": LOGITS, "b": LABELS})
    headers = {"Content-Type": SAFETENSORS}
    kept = app_client.put("/v1/tensors", content=body, headers=headers).json()
    np.testing.assert_array_equal(fetched(app_client, kept["tensors"]["a"]["ref"]), LOGITS)
    np.testing.assert_array_equal(fetched(app_client, kept["tensors"]["b"]["ref"]), LABELS)


def test_files_of_a_form_are_samples_as_in_a_request(app_client: Caller) -> None:
    files: list[tuple[str, Any]] = [("m", (f"{n}.npy", npy(LABELS[n]))) for n in range(2)]
    kept = app_client.put("/v1/tensors", files=files).json()
    np.testing.assert_array_equal(fetched(app_client, kept["ref"]), LABELS)
    whole = app_client.put(
        "/v1/tensors", files=[("m", ("m.npy", npy(LABELS)))], data={"sample_axis": "true"}
    ).json()
    assert whole["ref"] == kept["ref"]
    sizes = [("m", ("0.npy", npy(LABELS[0]))), ("m", ("1.npy", npy(LABELS[1, :2])))]
    kept = app_client.put("/v1/tensors", files=sizes).json()
    assert {name: one["shape"] for name, one in kept["tensors"].items()} == {
        "0/m": [1, 5, 4], "1/m": [1, 2, 4]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"[1, [2]]", JSON, 400, "malformed_body"),
        (b'"text"', JSON, 400, "malformed_body"),
        (b'{"tensors": [1]}', JSON, 400, "malformed_body"),
        (b'{"tensors": {}}', JSON, 422, "invalid_input"),
        (b'{"tensors": {"a": {"ref": "abc"}}}', JSON, 404, "unknown_ref"),
        (json.dumps({"npy": b64(npy(np.zeros(1, np.longdouble)))}), JSON, 422, "invalid_input"),
        (json.dumps({"npy": b64(npy(np.array([2**63], "u8")))}), JSON, 422, "invalid_input"),
        (safetensors({}, {}), SAFETENSORS, 422, "invalid_input"),
        (b"x", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_what_is_no_tensor_is_refused(
    app_client: Caller, content: Any, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type}
    problem(app_client.put("/v1/tensors", content=content, headers=headers), status, code)


def test_a_form_of_tensors_has_no_fields_of_a_request(app_client: Caller) -> None:
    answer = app_client.put(
        "/v1/tensors", files=[("m", ("m.npy", npy(LABELS)))], data={"losses": "dice"}
    )
    assert problem(answer, 422, "invalid_input")["errors"][0]["loc"] == ["losses"]


def test_more_than_the_budget_is_refused_with_numbers(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, max_tensor_mib=2, key_tensor_mib=1) as running:
        big = np.zeros(1 << 20, np.uint8)
        answer = running.client.put("/v1/tensors", json=tensor(big))
        detail = problem(answer, 413, "too_large")["detail"]
        assert "1049600 bytes" in detail
        assert "1048576" in detail
        ref_of(running.client, big[:1000])


def test_over_the_budget_the_oldest_ref_is_unknown(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, key_tensor_mib=1) as running:
        refs = [ref_of(running.client, np.full(400 << 10, fill, np.uint8)) for fill in range(3)]
        found = [running.client.get(f"/v1/tensors/{ref}").status_code for ref in refs]
        assert found == [404, 200, 200]


def test_the_limits_say_what_one_may_keep(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, key_tensor_mib=3, tensor_ttl_s=7) as running:
        limits = running.client.get("/v1/limits").json()
        assert (limits["tensor_bytes"], limits["tensor_ttl_s"]) == (3 << 20, 7)
        assert limits["json_bytes"] == 256 << 20


# -- to name --------------------------------------------------------------------------------------


def test_a_ref_in_a_request_stands_for_its_tensor_in_every_encoding(app_client: Caller) -> None:
    logits, target = ({"ref": ref_of(app_client, array)} for array in (LOGITS, LABELS))
    fields = {"losses": ["dice", "focal"]}
    _, want = read_answer(
        app_client.evaluate_bytes(
            safetensors(fields, {"logits": LOGITS, "target": LABELS}), SAFETENSORS
        )
    )
    both = {"logits": logits, "target": target}
    by_form = {"losses": "dice,focal"}
    npy_labels = [("target", ("t.npy", npy(LABELS)))]
    answers = {
        "json": app_client.evaluate({**fields, "inputs": both}),
        "json, rle": app_client.evaluate({**fields, "inputs": {"logits": logits, "target": RLES}}),
        "json, a list of one": app_client.evaluate({**fields, "inputs": [both]}),
        "safetensors, no tensors": app_client.evaluate_bytes(
            safetensors({**fields, "inputs": both}, {}), SAFETENSORS
        ),
        "safetensors, some": app_client.evaluate_bytes(
            safetensors({**fields, "inputs": {"logits": logits}}, {"target": LABELS}), SAFETENSORS
        ),
        "form, fields alone": app_client.post(
            "/v1/evaluate",
            files={name: (None, json.dumps(value)) for name, value in both.items()}
            | {"losses": (None, "dice,focal")},
        ),
        "form, a file": app_client.evaluate_form(
            npy_labels, logits=json.dumps(logits), sample_axis="true", **by_form
        ),
        "form, files of single samples": app_client.evaluate_form(
            [("target", (f"{n}.png", png(LABELS[n]))) for n in range(2)],
            logits=json.dumps(logits),
            **by_form,
        ),
        "form, rle in a field": app_client.evaluate_form(
            [("logits", ("l.npy", npy(LOGITS)))],
            target=json.dumps(RLES),
            sample_axis="true",
            **by_form,
        ),
        "form, inputs of the request": app_client.evaluate_form(
            npy_labels,
            request=json.dumps({**fields, "inputs": {"logits": logits}}),
            sample_axis="true",
        ),
    }
    for way, answer in answers.items():
        _, got = read_answer(answer)
        for name in ("loss/dice", "loss/focal", "total"):
            np.testing.assert_array_equal(got[name], want[name], err_msg=way)


def test_refs_stand_for_tensors_of_several_sizes(app_client: Caller) -> None:
    sizes: list[tuple[Array, Array]] = [(LOGITS, LABELS), (LOGITS[:, :, :2], LABELS[:, :2])]
    inputs = [{"logits": a, "target": b} for a, b in sizes]
    flat = {f"{n}/{name}": array for n, one in enumerate(inputs) for name, array in one.items()}
    fields = {"losses": ["dice"]}
    _, want = read_answer(app_client.evaluate_bytes(safetensors(fields, flat), SAFETENSORS))
    refs = [{name: {"ref": ref_of(app_client, a)} for name, a in one.items()} for one in inputs]
    mixed = [{"logits": refs[0]["logits"]}, refs[1]]
    ways = [
        app_client.evaluate({**fields, "inputs": refs}),
        app_client.evaluate_bytes(safetensors({**fields, "inputs": refs}, {}), SAFETENSORS),
        app_client.evaluate_bytes(
            safetensors({**fields, "inputs": mixed}, {"0/target": LABELS}), SAFETENSORS
        ),
        app_client.evaluate_form(
            [("x", ("", b""))][:0] or [("request", (None, json.dumps({**fields, "inputs": refs})))]
        ),
    ]
    for answer in ways:
        _, got = read_answer(answer)
        np.testing.assert_array_equal(got["total"], want["total"])


def test_an_unknown_ref_names_the_input_and_itself(app_client: Caller) -> None:
    inputs = {"logits": {"ref": "0" * 32}, "target": tensor(LABELS)}
    document = problem(
        app_client.evaluate({"losses": ["dice"], "inputs": inputs}), 404, "unknown_ref"
    )
    (error,) = document["errors"]
    assert error["loc"] == ["inputs", "logits"]
    assert "0" * 32 in error["message"]
    one = {"logits": tensor(LOGITS), "target": tensor(LABELS)}
    answer = app_client.evaluate({"losses": ["dice"], "inputs": [one, inputs]})
    assert problem(answer, 404, "unknown_ref")["errors"][0]["loc"] == ["inputs", 1, "logits"]
    answer = app_client.evaluate_form([("target", ("t.npy", npy(LABELS)))], logits='{"ref": "x"}')
    assert problem(answer, 404, "unknown_ref")["errors"][0]["loc"] == ["inputs", "logits"]


@pytest.mark.parametrize("ref", [None, 7, ["a"], {"ref": "a"}])
def test_a_ref_that_is_no_text_is_malformed(app_client: Caller, ref: Any) -> None:
    inputs = {"logits": {"ref": ref}, "target": tensor(LABELS)}
    problem(app_client.evaluate({"losses": ["dice"], "inputs": inputs}), 400, "malformed_body")


def test_an_input_that_is_given_twice_is_refused(app_client: Caller) -> None:
    target = {"ref": ref_of(app_client, LABELS)}
    both: dict[str, Array] = {"logits": LOGITS, "target": LABELS}
    document = {"losses": ["dice"], "inputs": {"target": target}}
    answer = app_client.evaluate_bytes(safetensors(document, both), SAFETENSORS)
    assert "given twice" in problem(answer, 422, "invalid_input")["detail"]
    files = [(name, (f"{name}.npy", npy(array))) for name, array in both.items()]
    form = {"losses": "dice", "sample_axis": "true", "target": json.dumps(target)}
    assert (
        "given twice"
        in problem(app_client.evaluate_form(files, **form), 422, "invalid_input")["detail"]
    )
    twice = [("target", (None, json.dumps(target)))] * 2
    answer = app_client.evaluate_form([files[0], *twice], losses="dice", sample_axis="true")
    assert "given twice" in problem(answer, 422, "invalid_input")["detail"]


def test_a_field_does_not_stand_for_one_of_several_sizes(app_client: Caller) -> None:
    files = [("logits", (f"{n}.npy", npy(LOGITS[n, :, : n + 1]))) for n in range(2)]
    answer = app_client.evaluate_form(files, losses="dice", target=json.dumps(RLES))
    assert "2 input objects" in problem(answer, 422, "invalid_input")["detail"]
    two = {"inputs": [{"target": RLES}, {"target": RLES}]}
    answer = app_client.evaluate_form(
        [("request", (None, json.dumps(two)))], losses="dice", logits=json.dumps(LOGITS.tolist())
    )
    assert "2 input objects" in problem(answer, 422, "invalid_input")["detail"]
    body = safetensors({"losses": ["dice"], **two}, {"logits": LOGITS})
    assert (
        "0/logits"
        in problem(app_client.evaluate_bytes(body, SAFETENSORS), 400, "malformed_body")["detail"]
    )


def test_a_tensor_is_charged_as_often_as_it_is_named(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, max_body_mib=1) as running:
        logits = {"ref": ref_of(running.client, np.zeros((1, 1, 300, 300), np.float32))}
        one = {"logits": logits, "target": {"rle": runs(np.zeros((300, 300)))}}  # 450,000 bytes
        document: dict[str, Any] = {"losses": ["dice"], "inputs": [one] * 2}
        read_answer(running.client.evaluate(document))
        document["inputs"] *= 2
        problem(running.client.evaluate(document), 413, "too_large")


def test_a_foreign_ref_is_an_unknown_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ours, theirs = (
        {"Authorization": f"Bearer {add_key(path, name)}"} for name in ("ours", "theirs")
    )
    with serving(cache_dir=tmp_path, keys_file=path) as running:
        client = running.client
        ref = put(client, tensor(LOGITS), **ours)["ref"]
        assert client.get(f"/v1/tensors/{ref}", headers=ours).status_code == 200
        assert put(client, tensor(LOGITS), **theirs)["ref"] != ref
        document = {"losses": ["dice"], "inputs": {"logits": {"ref": ref}, "target": RLES}}
        read_answer(client.evaluate(document, headers=ours))
        foreign = [
            client.get(f"/v1/tensors/{ref}", headers=theirs),
            client.delete(f"/v1/tensors/{ref}", headers=theirs),
            client.evaluate(document, headers=theirs),
        ]
        unknown = client.get(f"/v1/tensors/{'0' * 32}", headers=theirs)
        for answer in (*foreign, unknown):
            assert problem(answer, 404, "unknown_ref")["detail"] == (
                problem(unknown, 404, "unknown_ref")["detail"].replace("0" * 32, ref)
                if answer is not unknown
                else unknown.json()["detail"]
            )
        assert client.delete(f"/v1/tensors/{ref}", headers=ours).status_code == 204
        assert client.get(f"/v1/tensors/{ref}", headers=ours).status_code == 404


# -- what JSON may take ---------------------------------------------------------------------------

WRITERS = {
    "numbers": lambda count: "[" + ",".join(["1000"] * count) + "]",
    "long numbers": lambda count: "[" + ",".join(["-1.2345678901234"] * count) + "]",
    "lists": lambda count: "[" + ",".join(["[]"] * count) + "]",
    "lists of one": lambda count: "[" + ",".join(["[1.5]"] * count) + "]",
    "lists in lists": lambda count: "[" + ",".join(["[[[[1.5]]]]"] * count) + "]",
    "objects": lambda count: "[" + ",".join(['{"a":{"a":{"a":1.5}}}'] * count) + "]",
    "keys": lambda count: "{" + ",".join(f'"{n}":1.5' for n in range(count)) + "}",
    "texts": lambda count: "[" + ",".join(['"ab"'] * count) + "]",
}
"""Texts of so many elements, by what they are made of."""

MEASURE = """
import os, sys
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Sources, read_json
from lossd_client.errors import LossdError

def peak():
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10

limit_bytes = int(sys.argv[1])
for path in sys.argv[2:]:
    if os.fork():
        os.wait()
        continue
    body = open(path, "rb").read()
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    try:
        read_json(body, Sources(Budget(1 << 40, limit_bytes)))
    except LossdError as error:
        assert error.code != "too_large", error
    print(peak() - before, flush=True)
    os._exit(0)
"""


def body_at(writer: str, limit_bytes: int) -> bytes:
    """A request whose JSON just stays within a limit."""

    def body(count: int) -> bytes:
        text = f'{{"losses": ["dice"], "inputs": {{"target": {WRITERS[writer](count)}}}}}'
        return text.encode()

    def fits(count: int) -> bool:
        try:
            Budget(0, limit_bytes).take_json(body(count), "it")
        except TooLargeError:
            return False
        return True

    low, high = 1, limit_bytes // 80
    while high - low > 1000:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return body(low)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells its peak")
def test_json_at_its_limit_takes_no_more_memory_than_that(tmp_path: Path) -> None:
    limit_bytes = 32 << 20  # much more than what the first call of anything takes
    paths = [tmp_path / writer for writer in WRITERS]
    for path in paths:
        path.write_bytes(body_at(path.name, limit_bytes))
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", MEASURE, str(limit_bytes), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'service'}:{ROOT / 'client'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(WRITERS, map(int, done.stdout.split()), strict=True))
    # And the limit is none of a quite different size.
    assert {n: p for n, p in peaks.items() if not limit_bytes / 4 < p < limit_bytes} == {}


def test_json_over_its_limit_is_refused_before_it_is_read() -> None:
    body = body_at("numbers", 1 << 20)
    budget = Budget(1 << 30, 1 << 19)
    with pytest.raises(TooLargeError, match="about 6553 numbers; send tensors as base64"):
        read_json(body, Sources(budget))


def test_base64_of_any_length_is_no_lists(tmp_path: Path) -> None:
    with serving(cache_dir=tmp_path, max_json_mib=1) as running:
        logits = RNG.normal(size=(1, 2, 700, 700)).astype(np.float32)
        target = np.zeros((1, 700, 700), np.uint8)
        inputs: dict[str, Any] = {"logits": tensor(logits), "target": tensor(target)}
        read_answer(running.client.evaluate({"losses": ["dice"], "inputs": inputs}))
        inputs["target"] = target.tolist()
        refused = running.client.evaluate({"losses": ["dice"], "inputs": inputs})
        assert "base64" in problem(refused, 413, "too_large")["detail"]


@pytest.mark.parametrize("place", ["form", "safetensors", "header", "file"])
def test_json_inside_other_bodies_is_charged_too(tmp_path: Path, place: str) -> None:
    long = json.dumps({"losses": ["dice"], "x": [1] * 20_000})
    with serving(cache_dir=tmp_path, max_json_mib=1) as running:
        client = running.client
        both: dict[str, Array] = {"logits": LOGITS, "target": LABELS}
        if place == "form":
            answer = client.evaluate_form([("request", (None, long))])
        elif place == "file":
            answer = client.evaluate_form([("target", ("t.json", long))], losses="dice")
        elif place == "header":
            many = {f"t{number}": np.zeros(0) for number in range(5000)}
            answer = client.evaluate_bytes(safetensors({"losses": ["dice"]}, many), SAFETENSORS)
        else:
            answer = client.evaluate_bytes(safetensors(json.loads(long), both), SAFETENSORS)
        problem(answer, 413, "too_large")
