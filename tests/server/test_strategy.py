from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from common import wire
from common.config import StrategyConfig, StrategyName
from common.errors import RunFailed
from common.messages import Status, TrainReply, Weights
from server.strategy import aggregate, build


@pytest.fixture(autouse=True)
def server_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def reply(site: str, num_patients: int, weights: Weights) -> Message:
    content = wire.reply_content(
        TrainReply(site=site, status=Status.trained, num_patients=num_patients, weights=weights)
    )
    return wire.message(content, node=1, kind="train")


@pytest.mark.parametrize("name", StrategyName)
def test_every_strategy_leaves_equal_updates_alone(name: StrategyName) -> None:
    weights = {"a": np.float32([1, -2]), "b": np.float32([[0.5]])}
    replies = {site: reply(site, 7, weights) for site in ("x", "y")}
    found = aggregate(build(StrategyConfig(name=name)), 1, replies)
    assert set(found) == {"a", "b"}
    for key, value in weights.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], value, rtol=1e-6)


def test_fedavg_weighs_by_patients() -> None:
    replies = {
        "x": reply("x", 30, {"w": np.float32([0, 4])}),
        "y": reply("y", 10, {"w": np.float32([8, 0])}),
    }
    found = aggregate(build(StrategyConfig(name=StrategyName.fedavg)), 1, replies)
    np.testing.assert_allclose(found["w"], [2, 3], rtol=1e-6)


def test_sums_run_in_order_of_names() -> None:
    values = {"c": -1e8, "a": 1e8, "b": 3.0}
    replies = {site: reply(site, 1, {"w": np.float32([v])}) for site, v in values.items()}
    third = np.float32(1 / 3)
    by_name = (np.float32(1e8) * third + np.float32(3) * third) - np.float32(1e8) * third
    by_arrival = (np.float32(-1e8) * third + np.float32(1e8) * third) + np.float32(3) * third
    assert by_name != by_arrival
    found = aggregate(build(StrategyConfig()), 1, replies)
    assert found["w"][0] == by_name


def test_no_reply_is_no_model() -> None:
    with pytest.raises(RunFailed, match="round 4"):
        aggregate(build(StrategyConfig()), 4, {})
