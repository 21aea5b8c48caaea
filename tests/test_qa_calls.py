"""Annotation QA over HTTP: two passes, live calls, contexts, every encoding, every refusal."""

import itertools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.keys import add_key
from lossd_client.qa_wire import (
    EVIDENCE,
    HEAT,
    HISTOGRAM,
    LINES,
    OBSERVED_SCORES,
    SUB_SCORES,
    ContextDocument,
    ScoreAnswer,
    SuspicionAnswer,
)
from lossd_client.wire import SAFETENSORS, Array, decode_safetensors, decode_tensor, numbered
from qa_images import outlined, picture
from service_fixture import (
    ROOT,
    Caller,
    Json,
    npy,
    png,
    problem,
    safetensors,
    serving,
    tensor,
    wait_until,
)

IMAGES = [picture(seed, size=(24, 31 + 2 * (seed // 3))) for seed in range(5)]
"""Five images of two sizes."""
BOTH = ["histogram", "evidence", "heat"]
Tensors = dict[str, Array]


def body_of(pairs: list[tuple[Array, Array]], /, **asked: Any) -> bytes:
    count = len(pairs)
    tensors = {}
    for index, (logits, target) in enumerate(pairs):
        tensors[numbered(index, "prediction", count)] = logits
        tensors[numbered(index, "target", count)] = target
    return safetensors(asked, tensors)


def read(answer: httpx.Response) -> tuple[ScoreAnswer, list[Tensors]]:
    """Document and tensors of each image, however they came."""
    assert answer.status_code == 200, answer.text[:800]
    if answer.headers["content-type"] == SAFETENSORS:
        tensors, metadata = decode_safetensors(answer.content)
        said = ScoreAnswer.model_validate_json(metadata["response"])
        count = len(said.images)
        own = [
            {
                name.removeprefix(f"{index}/"): array
                for name, array in tensors.items()
                if count == 1 or name.startswith(f"{index}/")
            }
            for index in range(count)
        ]
        return said, own
    said = ScoreAnswer.model_validate_json(answer.content)
    return said, [
        {name: decode_tensor(one) for name, one in image.arrays.items()} for image in said.images
    ]


def score(
    client: httpx.Client, pairs: list[tuple[Array, Array]], /, **asked: Any
) -> tuple[ScoreAnswer, list[Tensors]]:
    headers = {"Content-Type": SAFETENSORS}
    return read(client.post("/v1/qa/score", content=body_of(pairs, **asked), headers=headers))


def documents(said: ScoreAnswer) -> list[Json]:
    """What is said of each image, without its tensors."""
    return [image.model_dump(exclude={"arrays"}) for image in said.images]


def put_context(
    client: httpx.Client,
    name: str,
    histogram: Array,
    rows: Any = None,
    *,
    outlines: Array | None = None,
) -> Json:
    tensors = {"histogram": tensor(histogram)}
    if outlines is not None:
        tensors["outlines"] = tensor(outlines)
    if rows is not None:
        tensors["sub_scores"] = tensor(np.array(rows, np.float64))
    answer = client.put(f"/v1/qa/contexts/{name}", json={"tensors": tensors})
    assert answer.status_code in (200, 201), answer.text
    return ContextDocument.model_validate_json(answer.content).model_dump()


def row_of(image: Any) -> list[float]:
    return [
        np.nan if value is None else value
        for value in (getattr(image.sub_scores, name) for name in SUB_SCORES)
    ]


def second_pass(
    client: httpx.Client, said: ScoreAnswer, seen: list[Tensors], context: str, /, **asked: Any
) -> tuple[ScoreAnswer, list[Tensors]]:
    """The images judged from what the first pass answered."""
    count = len(IMAGES)
    tensors = {
        numbered(index, name, count): array
        for index, own in enumerate(seen)
        for name, array in {
            **{name: own[name] for name in EVIDENCE},
            "target": IMAGES[index][1],
        }.items()
    }
    notes = [{"scores": image.scores.model_dump()} for image in said.images]
    document = {"context": context, "images": notes, **asked}
    headers = {"Content-Type": SAFETENSORS}
    return read(
        client.post("/v1/qa/score", content=safetensors(document, tensors), headers=headers)
    )


def sealed(client: httpx.Client, name: str) -> tuple[ScoreAnswer, list[Tensors]]:
    """The first pass over all images, with their context sealed; its answer."""
    said, arrays = score(client, IMAGES, detail="scores", arrays=BOTH[:2])
    histogram = sum((own[HISTOGRAM].astype(np.int64) for own in arrays), np.zeros((4, 256), int))
    put_context(client, name, histogram)
    judged, _ = second_pass(client, said, arrays, name, detail="scores")
    put_context(client, name, histogram, [row_of(image) for image in judged.images])
    return said, arrays


# -- two passes -----------------------------------------------------------------------------------


def test_a_data_set_in_two_passes(app_client: Caller) -> None:
    said, arrays = sealed(app_client, "two-passes")
    for (logits, target), own, image in zip(IMAGES, arrays, said.images, strict=True):
        assert own[HISTOGRAM].sum() == image.pixels == target.size
        np.testing.assert_array_equal(own["predicted"], logits.argmax(0))
        assert image.sub_scores is None
        assert image.regions is None
    judged, heats = second_pass(app_client, said, arrays, "two-passes", arrays=["heat"])
    assert judged.context is not None
    assert judged.context.state == "sealed"
    assert [list(own) for own in heats] == [[HEAT]] * 5
    rows = np.array([row_of(image) for image in judged.images])
    spread = 1.4826 * np.median(np.abs(rows - np.median(rows, 0)), 0)
    assert np.isnan(rows[:, 3]).all()  # nobody said how straight outlines are
    expected = np.clip((rows - np.median(rows, 0)) / spread, -4, 8)[:, :3].sum(1)
    found = [image.suspicion for image in judged.images]
    np.testing.assert_allclose(np.array(found, float), expected)
    answer = app_client.post(
        "/v1/qa/suspicion",
        content=safetensors({"context": "two-passes"}, {"sub_scores": rows}),
        headers={"Content-Type": SAFETENSORS},
    )
    suspicions = SuspicionAnswer.model_validate_json(answer.content)
    assert suspicions.suspicion == found
    assert suspicions.context == judged.context
    answer = app_client.post(
        "/v1/qa/suspicion",
        content=safetensors({"context": "two-passes"}, {"sub_scores": rows[:, :3]}),
        headers={"Content-Type": SAFETENSORS},
    )
    assert SuspicionAnswer.model_validate_json(answer.content).suspicion == found


OUTLINED = [outlined(seed, corners=5 if seed == 4 else None) for seed in range(9)]
"""Nine masks of one object each, of which one has too few corners."""


def counts_of_outlined(client: httpx.Client) -> tuple[list[Tensors], Array, Array]:
    """Counts of each of these images, and the sums of both."""
    arrays = ["histogram", "outlines", "evidence"]
    _, counted = score(client, OUTLINED, detail="scores", arrays=arrays)
    histogram, outlines = (
        np.stack([own[name] for own in counted]).sum(0).astype(np.int64) for name in arrays[:2]
    )
    return counted, histogram, outlines


def expected_shares(sums: Array) -> tuple[Array, Array]:
    """Mean and variance of the share of chords of classes that have objects of one size, `[C, 4]`.

    Four objects of all classes stand beside those of a class, and four of the class beside those of
    its size, which are the same ones here.
    """
    groups = [sums.sum(0, keepdims=True), sums, sums]
    mean = variance = np.zeros(1)
    for group, beside in zip(groups, (0, 4, 4), strict=True):
        objects, places, chords, squares = group.T
        mean = (objects * chords / places + beside * mean) / (objects + beside)
        spread = squares / 256 - 2 * mean * chords + mean**2 * places
        variance = (spread + beside * variance) / (objects + beside)
    return mean, variance


def test_an_outline_with_too_few_corners_is_the_straightest(app_client: Caller) -> None:
    counted, histogram, outlines = counts_of_outlined(app_client)
    assert [own["outlines"].shape for own in counted] == [(2, 8, 4)] * 9
    # An object and what lies around it, in each; sizes reach to four times the one before.
    assert outlines[..., 0].tolist() == [[0, 0, 0, 0, 9, 0, 0, 0]] * 2
    put_context(app_client, "corners", histogram, outlines=outlines)
    judged, _ = score(app_client, OUTLINED, context="corners")
    found = np.array([row_of(image) for image in judged.images])[:, 3]
    mean, variance = expected_shares(outlines[:, 4])
    for own, deviations in zip(counted, found, strict=True):
        _, places, chords, _ = own["outlines"][:, 4].T
        wanted = ((chords - mean * places) / np.sqrt(variance * places)).max()
        np.testing.assert_allclose(deviations, max(wanted, 0.0), rtol=1e-12)
    assert found.argmax() == 4
    assert found[4] >= 2.5
    for image, deviations in zip(judged.images, found.tolist(), strict=True):
        told = f"straighter than others of its class and size by {deviations:.1f} standard"
        assert (told in (image.reason or "")) == (deviations >= 2.5)


def test_straightness_counts_where_it_is_unusual_and_known(app_client: Caller) -> None:
    _, histogram, outlines = counts_of_outlined(app_client)
    put_context(app_client, "straight", histogram, outlines=outlines)
    judged, _ = score(app_client, OUTLINED, context="straight")
    rows = np.array([row_of(image) for image in judged.images])

    def suspicions(sub_scores: Array) -> Array:
        put_context(app_client, "straight", histogram, sub_scores, outlines=outlines)
        said, _ = score(app_client, OUTLINED, context="straight")
        return np.array([image.suspicion for image in said.images], float)

    middle = np.median(rows, 0)
    spread = 1.4826 * np.median(np.abs(rows - middle), 0)
    z = np.clip((rows - middle) / np.maximum(spread, [1e-300, 1e-300, 1e-300, 0.5]), -4, 8)
    losses, straight = z[:, :3].sum(1), np.maximum(z[:, 3] - 1, 0)
    assert straight[4] > 0.5
    np.testing.assert_allclose(suspicions(rows), losses + straight)
    np.testing.assert_allclose(suspicions(rows[:, :3]), losses)


def test_evidence_says_the_same_as_a_live_call_to_the_bit(app_client: Caller) -> None:
    said, arrays = sealed(app_client, "live")
    from_evidence, heats = second_pass(app_client, said, arrays, "live", arrays=BOTH)
    live, again = score(app_client, IMAGES, context="live", arrays=BOTH)
    assert documents(live) == documents(from_evidence)
    for one, other in zip(heats, again, strict=True):
        for name in (HEAT, HISTOGRAM, *EVIDENCE):
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def test_order_company_and_sharding_change_no_bit(app_client: Caller) -> None:
    sealed(app_client, "company")
    together, arrays = score(app_client, IMAGES, context="company", arrays=BOTH)
    backwards, _ = score(app_client, IMAGES[::-1], context="company")
    assert documents(backwards)[::-1] == documents(together)
    for index, image in enumerate(IMAGES):
        alone, own = score(app_client, [image], context="company", arrays=BOTH)
        assert documents(alone) == documents(together)[index : index + 1]
        for name, array in own[0].items():
            np.testing.assert_array_equal(array, arrays[index][name], strict=True)


def test_a_batch_of_one_size_is_images_in_a_row(app_client: Caller) -> None:
    same = IMAGES[:3]
    apart, _ = score(app_client, same)
    stacked = [np.stack([one[part] for one in same]) for part in (0, 1)]
    together, _ = score(app_client, [(stacked[0], stacked[1])])
    assert documents(together) == documents(apart)


def test_notes_and_names_come_back(app_client: Caller) -> None:
    names = ["sky", "road", "car", "tree"]
    notes = [{"name": f"image {number}"} for number in range(5)]
    said, _ = score(app_client, IMAGES, class_names=names, images=notes)
    assert [image.name for image in said.images] == [note["name"] for note in notes]
    for image in said.images:
        for region in image.regions or ():
            assert region.given_name == names[region.given]
            assert region.reason.startswith(f"labelled {names[region.given]}, predicted ")
        for point in image.points or ():
            if point.region is not None:
                assert point.region < len(image.regions or ())


def test_limits_of_points_and_regions(app_client: Caller) -> None:
    said, _ = score(app_client, IMAGES[:1], max_points=2, max_regions=1)
    (image,) = said.images
    assert (len(image.points or ()), len(image.regions or ())) == (2, 1)
    said, _ = score(app_client, IMAGES[:1], max_points=0, max_regions=0)
    (image,) = said.images
    assert (image.points, image.regions, image.kind) == ([], [], None)
    assert (image.regions_found or 0) > 0


def test_the_pages_curl_runs(service_url: str) -> None:
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"```bash\n(.*?)```", page.partition("\n## Annotation QA\n")[2], re.DOTALL
    )
    fields, files = {}, []
    command = shlex.split(block.replace("\\\n", " "))
    for flag, value in itertools.pairwise(command):
        name, _, given = value.partition("=")
        if flag == "-F" and given.startswith("@"):
            files.append((name, (given, (ROOT / given[1:]).read_bytes())))
        elif flag == "-F":
            fields[name] = given
    url = command[-1].replace("http://127.0.0.1:8000", service_url)
    said, _ = read(httpx.post(url, files=files, data=fields))
    assert said.images[0].pixels == 136 * 174
    assert {one.name for one in said.images[0].per_class or ()} == {"ground", "nucleus"}


# -- encodings ------------------------------------------------------------------------------------


def test_every_encoding_says_the_same(app_client: Caller) -> None:
    logits, target = IMAGES[0]
    expected, arrays = score(app_client, IMAGES[:1], arrays=BOTH)
    inputs = {"prediction": tensor(logits), "target": target.tolist()}
    document = {"arrays": BOTH, "inputs": inputs}
    answers = {
        "json": app_client.post("/v1/qa/score", json=document),
        "json to safetensors": app_client.post(
            "/v1/qa/score", json=document, headers={"Accept": SAFETENSORS}
        ),
        "form": app_client.post(
            "/v1/qa/score",
            files=[
                ("prediction", ("p.npy", npy(logits))),
                ("target", ("m.png", png(target))),
            ],
            data={"arrays": "histogram, evidence, heat"},
        ),
        "form of fields": app_client.post(
            "/v1/qa/score",
            files=[("target", ("m.png", png(target)))],
            data={"prediction": json.dumps(tensor(logits)), "arrays": json.dumps(BOTH)},
        ),
    }
    for name, answer in answers.items():
        said, own = read(answer)
        assert documents(said) == documents(expected), name
        assert own[0].keys() == arrays[0].keys()
        for key, array in own[0].items():
            np.testing.assert_array_equal(array, arrays[0][key], strict=True)


@pytest.mark.parametrize("detail", ["full", "scores"])
def test_lines_say_what_one_document_says(app_client: Caller, detail: str) -> None:
    said, arrays = sealed(app_client, "lines")
    inputs = [
        {"prediction": tensor(logits), "target": target.tolist()} for logits, target in IMAGES
    ]
    names = ['a "quoted" class', "a \\ slash", "ü", "d"]
    document = {"context": "lines", "detail": detail, "class_names": names, "inputs": inputs}
    expected = app_client.post("/v1/qa/score", json=document).json()
    answer = app_client.post("/v1/qa/score", json=document, headers={"Accept": LINES})
    assert answer.headers["content-type"] == LINES
    first, *lines = [json.loads(line) for line in answer.content.split(b"\n")]
    assert first["context"] == expected["context"]
    assert first.keys() == expected.keys() - {"images"}
    images = [
        head if regions is None else {**head, "regions": regions}
        for head, regions in zip(lines[::2], lines[1::2], strict=True)
    ]
    assert images == expected["images"]
    assert any(image.get("regions") for image in images) == (detail == "full")
    assert len(images) == len(said.images) == len(arrays)


def test_forms_hold_images_of_several_sizes(app_client: Caller) -> None:
    files = [("prediction", ("p.npy", npy(logits))) for logits, _ in IMAGES]
    files += [("target", ("m.png", png(target))) for _, target in IMAGES]
    said, _ = read(app_client.post("/v1/qa/score", files=files))
    expected, _ = score(app_client, IMAGES)
    assert documents(said) == documents(expected)


def test_kept_logits_are_scored_against_each_edited_mask(app_client: Caller) -> None:
    sealed(app_client, "refs")
    logits, target = IMAGES[0]
    kept = app_client.put("/v1/tensors", json={"tensors": {"prediction": tensor(logits)}}).json()
    edited = target.copy()
    edited[:5, :5] = 3
    for mask in (target, edited):
        expected, _ = score(app_client, [(logits, mask)], context="refs")
        inputs = {"prediction": {"ref": kept["ref"]}, "target": mask.tolist()}
        document = {"context": "refs", "inputs": inputs}
        said, _ = read(app_client.post("/v1/qa/score", json=document))
        assert documents(said) == documents(expected)


def test_evidence_may_be_lists_of_numbers(app_client: Caller) -> None:
    said, arrays = sealed(app_client, "lists")
    expected, _ = score(app_client, IMAGES[:1], context="lists")
    inputs = {name: arrays[0][name].tolist() for name in EVIDENCE}
    document = {
        "context": "lists",
        "images": [{"scores": said.images[0].scores.model_dump()}],
        "inputs": {**inputs, "target": IMAGES[0][1].tolist()},
    }
    found, _ = read(app_client.post("/v1/qa/score", json=document))
    assert documents(found) == documents(expected)


@pytest.mark.parametrize("kind", ["probabilities", "labels"])
def test_other_kinds_of_predictions(app_client: Caller, kind: str) -> None:
    logits, target = IMAGES[0]
    exponential = np.exp(logits - logits.max(0))
    given = {
        "probabilities": (exponential / exponential.sum(0)).astype(np.float32),
        "labels": logits.argmax(0).astype(np.uint8),
    }[kind]
    said, arrays = score(
        app_client, [(given, target)], prediction_kind=kind, classes=4, arrays=["evidence"]
    )
    np.testing.assert_array_equal(arrays[0]["predicted"], logits.argmax(0))
    assert said.images[0].scores.worst_loss > 0


@pytest.mark.parametrize("shape", [(24, 31), (1, 24, 31), (1, 1, 24, 31)])
def test_two_classes_in_one_channel(app_client: Caller, shape: tuple[int, ...]) -> None:
    logits, target = IMAGES[0][0][0], (IMAGES[0][1] > 1).astype(np.uint8)
    said, arrays = score(app_client, [(logits.reshape(shape), target)], arrays=["evidence"])
    np.testing.assert_array_equal(arrays[0]["predicted"], logits > 0)
    assert said.images[0].height == 24


def test_an_image_of_which_nothing_counts(app_client: Caller) -> None:
    logits, target = IMAGES[0]
    nothing = np.full_like(target, 255)
    said, _ = score(app_client, [(np.full_like(logits, np.nan), nothing)], ignore_index=255)
    assert said.warnings == ["image 0: no pixel counts; its scores are 0"]
    (image,) = said.images
    assert (image.pixels, image.regions, image.points, image.per_class) == (0, [], [], [])
    assert image.scores.boundary_loss is None


def test_logits_that_look_like_probabilities_are_told(app_client: Caller) -> None:
    p = np.full((1, 2, 4, 5), 0.5, np.float32)
    said, _ = score(app_client, [(p, np.zeros((1, 4, 5), np.uint8))])
    assert "say prediction_kind probabilities" in said.warnings[0]


# -- refusals -------------------------------------------------------------------------------------

P, T = [[[2.0, -1.0]], [[0.5, 3.0]]], [[0, 1]]
SCORES = dict.fromkeys(OBSERVED_SCORES, 1.0)
SEEN = {"loss_levels": [[3, 4]], "predicted": [[0, 1]], "margin": [[0, 0]], "target": T}
WRONG: dict[str, tuple[Json, str, str]] = {
    "no target": ({"inputs": {"prediction": P}}, "invalid_input", "target is missing"),
    "no inputs": ({}, "invalid_input", "inputs: a request needs its tensors"),
    "unknown input": (
        {"inputs": {"prediction": P, "target": T, "logits": P}},
        "invalid_input",
        "unknown input 'logits'",
    ),
    "unknown field": (
        {"disputed": 1, "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "disputed",
    ),
    "margin": (
        {"disputed_margin": 1.5, "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "disputed_margin: Input should be less than or equal to 1, got 1.5",
    ),
    "class out of range": (
        {"inputs": {"prediction": P, "target": [[0, 2]]}},
        "label_out_of_range",
        "label 2 at target[0, 0, 1]",
    ),
    "undeclared void": (
        {"inputs": {"prediction": P, "target": [[0, 255]]}},
        "label_out_of_range",
        "say ignore_index 255",
    ),
    "sizes": (
        {"inputs": {"prediction": P, "target": [[0, 1, 1]]}},
        "invalid_input",
        "prediction: shape [2, 1, 2] does not fit the target [1, 1, 3]",
    ),
    "labels as logits": (
        {"inputs": {"prediction": T, "target": T}},
        "invalid_input",
        "say prediction_kind labels",
    ),
    "floats as labels": (
        {"prediction_kind": "labels", "classes": 2, "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "predicted labels are integers",
    ),
    "real target": (
        {"inputs": {"prediction": P, "target": [[0.5, 1.0]]}},
        "invalid_input",
        "labels are integers",
    ),
    "how many classes": (
        {"prediction_kind": "labels", "inputs": {"prediction": T, "target": T}},
        "invalid_input",
        "say classes or class_names",
    ),
    "names do not fit": (
        {"class_names": ["a", "b", "c"], "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "class_names has 3 classes, inputs has 2",
    ),
    "names contradict": (
        {"class_names": ["a", "b"], "classes": 3, "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "classes is 3, class_names has 2",
    ),
    "predicted label": (
        {
            "prediction_kind": "labels",
            "classes": 2,
            "inputs": {"prediction": [[0, 2]], "target": T},
        },
        "label_out_of_range",
        "prediction[0, 0, 1] is 2; classes are 0 … 1",
    ),
    "evidence without scores": (
        {"classes": 2, "inputs": SEEN},
        "invalid_input",
        "evidence needs the scores of the first pass",
    ),
    "scores without evidence": (
        {"images": [{"scores": SCORES}], "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "scores come with evidence",
    ),
    "a score that is none": (
        {"classes": 2, "images": [{"scores": {**SCORES, "worst_loss": -1}}], "inputs": SEEN},
        "invalid_input",
        "images.0.scores.worst_loss",
    ),
    "notes": (
        {"images": [{"name": "a"}, {"name": "b"}], "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "2 notes for 1 images",
    ),
    "level": (
        {
            "classes": 2,
            "images": [{"scores": SCORES}],
            "inputs": {**SEEN, "loss_levels": [[3, 256]]},
        },
        "invalid_input",
        "loss_levels[0, 0, 1] is 256; it lies in [0, 255]",
    ),
    "predicted class": (
        {
            "classes": 2,
            "images": [{"scores": SCORES}],
            "inputs": {**SEEN, "predicted": [[0, 2]]},
        },
        "label_out_of_range",
        "predicted[0, 0, 1] is 2",
    ),
    "evidence and prediction": (
        {"inputs": [{"prediction": P, "target": T}, SEEN]},
        "invalid_input",
        "prediction or evidence",
    ),
    "channels differ": (
        {"inputs": [{"prediction": P, "target": T}, {"prediction": [*P, *P], "target": T}]},
        "invalid_input",
        "channels of prediction",
    ),
    "no context": (
        {"context": "nowhere", "inputs": {"prediction": P, "target": T}},
        "context_not_found",
        "no context is kept as 'nowhere'",
    ),
    "context of other classes": (
        {"context": "of-four", "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "context has 4 classes, inputs has 2",
    ),
    "name of a context": (
        {"context": "../x", "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "context",
    ),
    "probability": (
        {"prediction_kind": "probabilities", "inputs": {"prediction": P, "target": T}},
        "invalid_input",
        "probabilities lie in [0, 1]",
    ),
    "too many classes": (
        {"prediction_kind": "labels", "classes": 2000, "inputs": {"prediction": T, "target": T}},
        "invalid_input",
        "2000 classes, at most 1024 are taken",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(app_client: Caller, name: str) -> None:
    document, code, says = WRONG[name]
    put_context(app_client, "of-four", np.ones((4, 256), np.int64))
    answer = app_client.post("/v1/qa/score", json=document)
    found = problem(answer, 404 if code == "context_not_found" else 422, code)
    assert says in found["detail"], found["detail"]


def test_a_number_that_is_none_is_found_in_the_pass(app_client: Caller) -> None:
    logits, target = IMAGES[0][0].copy(), IMAGES[0][1]
    logits[1, 2, 3] = np.nan
    answer = app_client.post(
        "/v1/qa/score",
        content=body_of([IMAGES[1], (logits, target)]),
        headers={"Content-Type": SAFETENSORS},
    )
    found = problem(answer, 422, "non_finite_logits")
    assert found["errors"][0]["loc"] == ["inputs", 1, "prediction", 0, 1, 2, 3]


CONTEXT_WRONG: dict[str, tuple[Callable[[], Json], str]] = {
    "no histogram": (lambda: {"sub_scores": [[1.0, 2.0, 3.0]]}, "histogram is missing"),
    "columns": (lambda: {"histogram": [[1, 2], [3, 4]]}, "expected [rows, 256]"),
    "one class": (lambda: {"histogram": np.ones((1, 256), int).tolist()}, "1 classes"),
    "negative": (
        lambda: {"histogram": np.full((2, 256), -1).tolist()},
        "histogram[0, 0] is -1; counts are at least 0",
    ),
    "real": (lambda: {"histogram": np.full((2, 256), 0.5).tolist()}, "counts are integers"),
    "unknown": (lambda: {"histogram": [[1]], "masks": [[1]]}, "unknown input 'masks'"),
    "too many": (
        lambda: {"histogram": np.full((2, 256), 2**50).tolist()},
        "counts more than 2^53",
    ),
    "sub-scores": (
        lambda: {"histogram": np.ones((2, 256), int).tolist(), "sub_scores": [[1.0, -2.0, 3.0]]},
        "sub_scores[0, 1] is -2.0",
    ),
    "classes of outlines": (
        lambda: {
            "histogram": np.ones((2, 256), int).tolist(),
            "outlines": [[[1, 2, 2, 2]] * 8] * 3,
        },
        "3 classes; histogram has 2",
    ),
    "chords": (
        lambda: {
            "histogram": np.ones((2, 256), int).tolist(),
            "outlines": [[[1, 30, 31, 2]] * 8] * 2,
        },
        "outlines[0, 0] has 31 chords; it has 30 places",
    ),
    "columns of outlines": (
        lambda: {"histogram": np.ones((2, 256), int).tolist(), "outlines": [[1, 30, 20, 2]] * 2},
        "shape [2, 4], expected [rows, 8, 4]",
    ),
    "no image": (
        lambda: {
            "histogram": np.ones((2, 256), int).tolist(),
            "sub_scores": tensor(np.zeros((0, 3))),
        },
        "holds no image",
    ),
}


@pytest.mark.parametrize("name", CONTEXT_WRONG)
def test_contexts_that_are_none_are_refused(app_client: Caller, name: str) -> None:
    tensors, says = CONTEXT_WRONG[name]
    answer = app_client.put("/v1/qa/contexts/wrong", json={"tensors": tensors()})
    assert says in problem(answer, 422, "invalid_input")["detail"]
    problem(app_client.get("/v1/qa/contexts/wrong"), 404, "context_not_found")


def test_suspicions_need_a_sealed_context(app_client: Caller) -> None:
    put_context(app_client, "open", np.ones((2, 256), np.int64))
    document = {"context": "open", "inputs": {"sub_scores": [[1.0, 2.0, 3.0]]}}
    answer = app_client.post("/v1/qa/suspicion", json=document)
    assert "is not sealed" in problem(answer, 422, "invalid_input")["detail"]
    document["context"] = "nowhere"
    problem(app_client.post("/v1/qa/suspicion", json=document), 404, "context_not_found")


# -- contexts -------------------------------------------------------------------------------------


def test_the_life_of_a_context(app_client: Caller) -> None:
    path = "/v1/qa/contexts/life"
    counts = np.full((2, 256), 3)
    body = {"tensors": {"histogram": counts.tolist()}}
    first = app_client.put(path, json=body)
    assert (first.status_code, first.json()["state"]) == (201, "losses")
    again = app_client.put(path, json=body)
    assert (again.status_code, again.json()) == (200, first.json())
    rows = np.array([[1.0, 2.0, np.nan], [2.0, 3.0, 4.0], [6.0, 4.0, 6.0]])
    file = safetensors({}, {"histogram": counts, "sub_scores": rows})
    headers = {"Content-Type": SAFETENSORS}
    assert app_client.put(path, content=file, headers=headers).status_code == 200
    found = ContextDocument.model_validate_json(app_client.get(path).content)
    assert (found.state, found.classes, found.pixels, found.images) == ("sealed", 2, 1536, 3)
    assert found.sub_scores is not None
    assert found.sub_scores["worst_loss"].median == 2.0
    assert found.sub_scores["boundary_loss"].median == 5.0
    assert found.sub_scores["worst_loss"].spread == 1.4826
    files = [("histogram", ("h.npy", npy(counts))), ("sub_scores", ("s.npy", npy(rows)))]
    form = app_client.put(path, files=files)
    assert form.json()["digest"] == found.digest
    assert app_client.delete(path).status_code == 204
    problem(app_client.delete(path), 404, "context_not_found")
    problem(app_client.get(path), 404, "context_not_found")
    problem(app_client.put("/v1/qa/contexts/.x", json=body), 422, "invalid_input")


def test_contexts_belong_to_keys_and_work_is_charged(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys"
    keys = {name: add_key(keys_file, name) for name in ("ana", "ben")}
    counts = {"tensors": {"histogram": np.ones((2, 256), int).tolist()}}
    with serving(keys_file=keys_file, key_samples_per_minute=2, cache_dir=tmp_path) as service:

        def call(who: str, method: str, path: str, **more: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {keys[who]}"}
            return service.client.request(method, path, headers=headers, **more)

        wait_until(lambda: call("ana", "GET", "/v1/limits").is_success)
        assert call("ana", "PUT", "/v1/qa/contexts/a", json=counts).status_code == 201
        problem(call("ben", "GET", "/v1/qa/contexts/a"), 404, "context_not_found")
        problem(call("ben", "DELETE", "/v1/qa/contexts/a"), 404, "context_not_found")
        document = {"inputs": {"prediction": P, "target": T}}
        for _ in range(2):
            answer = call("ana", "POST", "/v1/qa/score", json=document)
            assert answer.is_success
            assert "ratelimit" in answer.headers
        problem(call("ana", "POST", "/v1/qa/score", json=document), 429, "quota_exceeded")
        assert call("ben", "POST", "/v1/qa/score", json=document).is_success
        assert "ratelimit" in call("ana", "PUT", "/v1/qa/contexts/a", json=counts).headers
