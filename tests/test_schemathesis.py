"""What `/openapi.json` says is what is answered, to data that fits it and data that does not."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

import service_fixture
from fuzz.bodies import KINDS_OF_BODY, body
from lossd.app import create_app
from lossd.engine import Engine
from lossd.settings import Settings
from lossd_client.errors import ERRORS
from lossd_client.wire import JSON, PROBLEM, SAFETENSORS

PLAIN = Settings(kernels="eager")
schema = schemathesis.openapi.from_dict(create_app(PLAIN, Engine(PLAIN)).openapi())
# The schema says what a tensor may look like, not which tensors and fields fit together.
NEED_TENSORS_THAT_FIT = {
    "POST /v1/evaluate",
    "PUT /v1/tensors",
    "POST /v1/qa/score",
    "POST /v1/qa/suspicion",
    "PUT /v1/qa/contexts/{name}",
}
Case = schemathesis.Case[Any]
DEADLINE_EXCEEDED = 504
LOGITS = [[[[2.0, -1.0], [0.5, -3.0]]]]
FITTING: Any = {"logits": LOGITS, "target": [[[1, 0], [1, 0]]]}
few = settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))


@schemathesis.serializer(SAFETENSORS)
def _safetensors(_: schemathesis.SerializationContext, value: Any) -> Any:
    """A file, mostly damaged, in place of noise, which would never get further than its head."""
    drawn = zlib.crc32(repr(value).encode()) % 10_000
    count = len(KINDS_OF_BODY)
    return body(0, drawn * count + KINDS_OF_BODY.index(SAFETENSORS)).data


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of its own: what is kept in it concerns no other test."""
    folder = Path(tmp_path_factory.mktemp("lossd"))
    with service_fixture.serving(cache_dir=folder) as running:
        yield str(running.client.base_url)


@pytest.fixture(scope="module")
def statuses() -> Counter[int]:
    """How often evaluations with tensors that fit were answered what."""
    return Counter()


def is_described(
    case: Case, answer: schemathesis.Response, without: Sequence[CheckFunction] = ()
) -> None:
    """The answer has a status, type, headers and form that the document names."""
    excluded = [*without]
    if case.operation.label in NEED_TENSORS_THAT_FIT:
        excluded.append(positive_data_acceptance)
    if answer.status_code == DEADLINE_EXCEEDED:
        excluded.append(not_a_server_error)  # a deadline may be as short as the caller likes
    case.validate_response(answer, excluded_checks=excluded)
    if answer.status_code >= 400:
        # `default` describes any error, and so would let any pass.
        assert answer.headers["content-type"] == [PROBLEM]
        assert ERRORS[answer.json()["code"]].status == answer.status_code


@schema.parametrize()
@few
def test_a_call_is_answered_as_described(case: Case, base_url: str) -> None:
    is_described(case, case.call(base_url=base_url))


@schema.include(path="/v1/evaluate").parametrize()
@few
def test_an_evaluation_of_tensors_that_fit_is_answered_as_described(
    case: Case, base_url: str, statuses: Counter[int]
) -> None:
    if isinstance(case.body, dict) and case.media_type == JSON:
        case.body = {**case.body, "inputs": FITTING, "losses": ["dice", "focal"]}
    answer = case.call(base_url=base_url)
    statuses[answer.status_code] += 1
    # What did not fit may just have been replaced.
    is_described(case, answer, without=[negative_data_rejection])


def test_some_of_those_evaluations_were_good_and_some_were_not(statuses: Counter[int]) -> None:
    if not statuses:
        pytest.skip("the test before was not asked for")
    assert statuses[200] > 5
    assert statuses[422] > 5
