"""`RemoteLoss`: the service's values and gradients inside torch's graph."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fake_lossd import URL, FakeLossd, answer_document, safetensors_response
from lossd_client import Client, errors
from lossd_client.torch import Reduction, RemoteLoss
from service_fixture import Served

B, C, H, W = 3, 4, 9, 7


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(str(served.client.base_url)) as client:
        yield client


def logits(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(B, C, H, W, generator=generator, dtype=torch.float64).to(dtype)
    return made.requires_grad_()


def target() -> Tensor:
    labels = torch.randint(0, C, (B, H, W), generator=torch.Generator().manual_seed(7))
    labels[:, :2] = 255
    return labels


def mean_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over the valid pixels of each sample, `[B]`."""
    terms = functional.cross_entropy(scores, labels, ignore_index=255, reduction="none")
    return terms.sum((1, 2)) / (labels != 255).sum((1, 2))


REDUCED: dict[Reduction, Callable[[Tensor], Tensor]] = {
    "mean": torch.Tensor.mean,
    "sum": torch.Tensor.sum,
    "none": lambda values: values,
}


@pytest.mark.parametrize("reduction", REDUCED)
def test_values_and_derivatives_are_torchs_own(client: Client, reduction: Reduction) -> None:
    criterion = RemoteLoss(client, "cross_entropy", reduction=reduction, ignore_index=255)
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    ours, theirs = logits(), logits()
    value = criterion(ours * 1.5, target())
    expected = REDUCED[reduction](mean_cross_entropy(theirs * 1.5, target()))
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0.0)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dice", "focal", "lovasz_softmax"])
def test_the_derivative_is_that_of_the_value(client: Client, name: str) -> None:
    criterion = RemoteLoss(client, name, ignore_index=255)
    start = logits()
    direction = torch.randn(start.shape, dtype=torch.float64)
    (slope,) = torch.autograd.grad(criterion(start, target()), start)
    step = 1e-5
    with torch.no_grad():
        ahead = criterion(start + step * direction, target())
        behind = criterion(start - step * direction, target())
    torch.testing.assert_close(
        (slope * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gradient_has_the_dtype_of_its_tensor(client: Client, dtype: torch.dtype) -> None:
    start = logits(dtype=dtype)
    value = RemoteLoss(client, "dice", ignore_index=255)(start, target())
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert start.grad is not None
    assert start.grad.dtype == dtype
    assert start.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_and_gradients_stay_on_the_device(client: Client) -> None:
    start = logits().detach().cuda().requires_grad_()
    value = RemoteLoss(client, "dice", ignore_index=255)(start, target().cuda())
    assert value.device == start.device
    value.backward()
    assert start.grad is not None
    assert start.grad.device == start.device


def test_a_sum_over_the_samples_is_differentiated_too(client: Client) -> None:
    generator = torch.Generator().manual_seed(3)
    points, labels = torch.randn(5, 6, generator=generator), torch.tensor([0, 1, 2, 1, 0])

    def slopes(value_of: Callable[..., Tensor]) -> list[Tensor]:
        centers = torch.ones(3, 6, dtype=torch.float64)
        made = [points.double().requires_grad_(), centers.requires_grad_()]
        (2.0 * value_of(*made)).backward()
        return [each.grad for each in made if each.grad is not None]

    remote = RemoteLoss(client, "center")
    ours = slopes(lambda e, c: remote(embeddings=e, centers=c, target=labels))
    theirs = slopes(lambda e, c: ((e - c[labels]) ** 2).sum(1).mean() / 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="reduction='none' has no gradient for centers"):
        RemoteLoss(client, "center", reduction="none")(
            embeddings=points, centers=torch.ones(3, 6).requires_grad_(), target=labels
        )


def test_a_preset_values_samples_one_by_one(client: Client) -> None:
    start = logits()
    criterion = RemoteLoss(client, "dice", preset="smp", reduction="none", task="multiclass")
    each = criterion(start, target().clamp(max=C - 1))
    assert len(set(each.tolist())) == B


@pytest.fixture
def fake() -> FakeLossd:
    return FakeLossd()


def remote(fake: FakeLossd, **options: Any) -> RemoteLoss:
    return RemoteLoss(Client(URL, transport=fake.transport()), "dice", **options)


def asked_gradients(fake: FakeLossd) -> list[str]:
    return [seen.document.get("gradient", "none") for seen in fake.seen]


def test_a_gradient_is_asked_for_only_where_one_is_needed(fake: FakeLossd) -> None:
    criterion, start = remote(fake), logits()
    criterion(start.detach())
    with torch.no_grad():
        criterion(start)
    criterion(start).backward()
    assert asked_gradients(fake) == ["none", "none", "total"]


def test_other_forms_of_tensors_are_passed_on(fake: FakeLossd) -> None:
    start = logits(dtype=torch.float32)
    criterion = remote(fake)
    kept = Client(URL, transport=fake.transport()).put(np.zeros((B, H, W), np.uint8))
    criterion(start, kept, mask=np.ones((B, H, W), bool)).backward()
    assert fake.seen[-1].document["inputs"] == {"target": {"ref": kept.ref}}
    assert set(fake.seen[-1].tensors) == {"logits", "mask"}


def test_values_of_arrays_alone_need_no_torch_tensors(fake: FakeLossd) -> None:
    value = remote(fake)(np.ones((2, 1, 2, 2), np.float32))
    assert (value.item(), value.dtype, value.requires_grad) == (1.0, torch.float32, False)


def test_a_tensor_that_has_no_gradient_there_is_refused(fake: FakeLossd) -> None:
    with pytest.raises(ValueError, match="mask requires a gradient, and there is none: detach it"):
        remote(fake)(logits(), mask=torch.ones(B, H, W, requires_grad=True))


def test_a_derivative_cannot_be_differentiated_again(fake: FakeLossd) -> None:
    start = logits()
    (slope,) = torch.autograd.grad(remote(fake)(start) ** 2, start, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_options_are_sent_with_every_request(fake: FakeLossd) -> None:
    remote(fake, task="multiclass", ignore_index=255, spacing=[1.0, 2.0], preset="monai")(logits())
    document = fake.seen[0].document
    assert (document["task"], document["ignore_index"]) == ("multiclass", 255)
    assert (document["spacing"], document["preset"]) == ([1.0, 2.0], "monai")
    assert document["aggregate"] == "sample"


def test_errors_of_the_service_are_raised(fake: FakeLossd) -> None:
    fake.script.append(httpx.Response(422, json={"code": "invalid_input", "detail": "no"}))
    with pytest.raises(errors.InvalidInputError):
        remote(fake)(logits())


def test_a_value_that_is_no_number_reaches_the_graph(fake: FakeLossd) -> None:
    tensors: dict[str, Any] = {
        "total": np.full(B, np.nan),
        "loss/dice": np.full(B, np.nan),
        "gradient/logits": np.full((B, C, H, W), np.nan),
    }
    fake.script.append(safetensors_response(tensors, answer_document({"dice": None})))
    assert remote(fake)(logits()).isnan()


def test_a_reduction_that_is_none_of_the_three_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction must be"):
        RemoteLoss(URL, "dice", reduction="max")  # type: ignore[arg-type]
