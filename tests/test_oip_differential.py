"""The same bytes to a real Triton and to lossd: what is answered alike, and why what is not is not.

The transcript of Triton and the program that wrote it lie beside the repository. The program runs
again, against lossd: names of models, outputs and shared memory are exchanged, nothing else.
"""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lossd.shared_memory import is_shared_memory_possible
from service_fixture import serving

PROBE = Path(__file__).parents[2] / "shared" / "oip" / "probe.py"
GOLDEN = PROBE.with_name("golden.txt")

pytestmark = [
    pytest.mark.skipif(
        not PROBE.exists(), reason="Triton's transcript is not beside the repository"
    ),
    pytest.mark.skipif(not is_shared_memory_possible(), reason="needs /dev/shm"),
]

NAMES = {  # of the probe's server, and of lossd
    "loss_fp32": "cross_entropy",
    "loss_fp16": "cross_entropy",
    '"ce"': '"loss/cross_entropy"',
    '"grad"': '"gradient/logits"',
    "probe_shm": "lossd.anonymous.probe",
}

INFER = "POST /v2/models/cross_entropy/infer"
DIFFERENCES = {
    "GET /v2/": "an address with a slash too many leads to the one without",
    "GET /v2/trace/setting": "the trace extension is not offered, and not listed",
    "GET /v2/logging": "the logging extension is not offered, and not listed",
    "GET /nothing": "outside of /v2 errors are problem documents",
    "POST /v2/repository/models/nope/load": "a model that does not exist is 404, not a failure",
    "br request": "415 is HTTP's status for it; the text names the codings",
    "classification": "not offered, and not listed",
    "wrong dtype": "logits may be FP64; then their bytes are too few",
    "bad JSON": "a caller's mistake is 400; the parser words it itself",
    "empty body": "the model has more inputs",
    "header length garbage": "a header that is no number is named, not taken for 0",
    "batch too large": "the limit is 1024 samples, not 16",
    "zero batch": "the empty tensor is named, instead of one that is said to have missed bytes",
    "label out of range (user code raises)": "a label is the caller's mistake, and named",
    "FP16 via JSON": "numbers of a list are read as FP16",
    "shm 3": "a key that is not the caller's is not looked for",
    "shm 4": "memory that is too small is the caller's mistake",
    "shm 8": "room that is too small is the caller's mistake",
    "raw binary request (header length 0)": "the model has more inputs",
}
"""Requests that are not answered like by Triton, by the probe's titles, and why."""


@dataclass(frozen=True)
class Exchange:
    """One request of the probe and what was answered."""

    key: str
    status: int
    headers: dict[str, str]
    body: bytes
    """Its beginning, where it is long."""

    @property
    def kind(self) -> str:
        return self.headers.get("content-type", "") if self.body else ""

    @property
    def coding(self) -> str:
        return self.headers.get("content-encoding", "")


def exchanges(transcript: str) -> list[Exchange]:
    found: list[Exchange] = []
    title, count = "", 0
    lines = iter(transcript.split("\n"))
    for line in lines:
        if line.startswith("#### "):
            title, count = line.removeprefix("#### "), 0
        request = re.match(r"(GET|POST) (\S+) .*body=\d+B$", line)
        if request is None:
            continue
        answer = re.match(r"  -> (\d+) [^{]*(\{.*\})$", next(lines))
        shown = re.match(r"  (b['\"].*['\"])…? \(\d+ B\)$", next(lines))
        assert answer is not None
        assert shown is not None
        count += 1
        key = title or f"{request[1]} {request[2]}"
        if title.startswith("shm"):
            key = f"shm {count}"
        headers = {name.lower(): value for name, value in ast.literal_eval(answer[2]).items()}
        body = ast.literal_eval(shown[1].replace("…", "..."))  # who wrote it down left paths out
        found.append(Exchange(key, int(answer[1]), headers, body))
    return found


def theirs(text: str) -> str:
    """A text of the probe's server with lossd's names."""
    for name, own in NAMES.items():
        text = text.replace(name, own).replace(name.replace('"', "'"), own.replace('"', "'"))
    return text


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Exchange, Exchange]]:
    """Every exchange with Triton, and the same one with lossd."""
    program = PROBE.read_text(encoding="utf-8")
    for name, ours in NAMES.items():
        program = program.replace(name, ours)
    folder = tmp_path_factory.mktemp("lossd")
    with serving(cache_dir=folder, shared_memory="on") as service:
        where = service.client.base_url
        done = subprocess.run(  # noqa: S603 - the program beside the repository
            [sys.executable, "-c", program, f"{where.host}:{where.port}"],
            capture_output=True,
            text=True,
            check=True,
        )
    golden = exchanges(theirs(GOLDEN.read_text(encoding="utf-8")))
    own = exchanges(done.stdout)
    assert [one.key for one in golden] == [one.key for one in own]
    assert len(own) > 50
    return list(zip(golden, own, strict=True))


def same(golden: Exchange, own: Exchange) -> bool:
    if golden.status != own.status:
        return False
    if golden.status >= 400:
        return golden.body == own.body
    heads = [one.headers.get("inference-header-content-length") for one in (golden, own)]
    return (
        (heads[0] is None) == (heads[1] is None)
        and golden.kind == own.kind
        and golden.coding == own.coding
        and values(golden) == pytest.approx(values(own), abs=1e-6)
    )


def values(one: Exchange) -> list[float]:
    """Cross entropies that an answer shows; lossd calls them by another name."""
    return [
        float(value)
        for value in re.findall(
            rb'cross_entropy","datatype":"FP..","shape":[^"]*"data":\[([^],]*)', one.body
        )
    ]


def test_what_is_not_told_apart_is_answered_alike(
    pairs: list[tuple[Exchange, Exchange]],
) -> None:
    for golden, own in pairs:
        if golden.key not in DIFFERENCES:
            assert same(golden, own), (golden, own)


def test_what_is_told_apart_differs(pairs: list[tuple[Exchange, Exchange]]) -> None:
    """A difference that has gone is no longer listed."""
    differing = {golden.key for golden, own in pairs if not same(golden, own)}
    assert differing == set(DIFFERENCES)


def test_every_error_below_v2_is_one_text(pairs: list[tuple[Exchange, Exchange]]) -> None:
    for _, own in pairs:
        if own.status >= 400 and own.key != "GET /nothing":
            assert re.fullmatch(rb'\{"error":".+"\}', own.body), own


def test_values_are_compared_at_all(pairs: list[tuple[Exchange, Exchange]]) -> None:
    assert sum(len(values(golden)) for golden, _ in pairs) >= 5
