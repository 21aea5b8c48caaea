"""What the package offers, and how losses are chosen."""

import inspect
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from pydantic import ValidationError

import lossd_client
from lossd_client import losses
from lossd_client._loss import Loss, LossLike, loss_choice
from lossd_client.wire import LossChoice

ALL_LOSSES = [each for each in vars(losses).values() if isinstance(each, type)]
LOSSES = [each for each in ALL_LOSSES if issubclass(each, Loss) and each is not Loss]


def test_the_package_offers_these_names() -> None:
    assert sorted(lossd_client.__all__) == [
        "AsyncClient",
        "Client",
        "Result",
        "TensorRef",
        "__version__",
        "errors",
        "losses",
    ]
    assert all(name in vars(lossd_client) for name in lossd_client.__all__)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_as_it_comes_sends_its_name_alone(loss: type[Loss]) -> None:
    assert loss().choice() == LossChoice(name=loss.name)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_parameter_of_a_loss_is_documented(loss: type[Loss]) -> None:
    own = {field.name for field in fields(loss)} - {field.name for field in fields(Loss)}
    assert all(f"\n    {name}: " in (inspect.getdoc(loss) or "") for name in own)


def test_only_changed_parameters_are_sent() -> None:
    loss = losses.Tversky(fp_weight=0.3, fn_weight=0.9, total_weight=2.0, label="recall")
    expected = LossChoice(name="tversky", params={"fn_weight": 0.9}, weight=2.0, label="recall")
    assert loss.choice() == expected


def test_losses_are_values() -> None:
    assert losses.Dice(smooth_nr=0.0) == losses.Dice(smooth_nr=0.0)
    assert len({losses.Dice(), losses.Dice(), losses.Focal()}) == 2
    with pytest.raises(FrozenInstanceError):
        losses.Dice().smooth_nr = 1.0  # type: ignore[misc]


def test_arrays_and_tuples_become_json() -> None:
    loss = losses.CrossEntropy(class_weights=np.array([1.0, 2.0]).tolist())
    assert loss.choice().params == {"class_weights": [1.0, 2.0]}
    mapping = {"name": "dice", "params": {"classes": (1, np.int64(2)), "w": np.ones(2)}}
    assert loss_choice(mapping).params == {"classes": [1, 2], "w": [1.0, 1.0]}


@pytest.mark.parametrize(
    "loss",
    ["focal", losses.Focal(), LossChoice(name="focal"), {"name": "focal"}],
)
def test_a_loss_can_be_said_in_four_ways(loss: LossLike) -> None:
    assert loss_choice(loss) == LossChoice(name="focal")


def test_unknown_keys_of_a_loss_are_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        loss_choice({"name": "dice", "colour": "red"})
