"The split of advantages, what a monitor measures, and its alarms"

from types import SimpleNamespace

import pytest
import torch

from dreamer4_nb.policy.advantages import (
    ALARMS,
    Monitor,
    active_alarms,
    advantage_stats,
    correlation,
    mean_stats,
    split_advantages,
)

ADVANTAGE = torch.tensor([-2.0, -1, 0, 0, 1, 3])
HEALTHY = dict(reward_max=1.0, band=0.2, at_least_zero=0.5, explained=0.8, kl=0.2, entropy=0.6)


@pytest.mark.parametrize(
    "split, good",
    [
        ("sign", [0, 0, 1, 1, 1, 1]),
        ("greater", [0, 0, 0, 0, 1, 1]),
        ("zscore", [0, 0, 0, 0, 1, 1]),
    ],
)
def test_splits(split, good):
    plus, minus = split_advantages(ADVANTAGE, split)
    assert plus.int().tolist() == good
    assert torch.equal(minus, ~plus)


def test_deciles():
    plus, minus = split_advantages(torch.arange(100.0), "percentile", 0.2)
    assert plus.nonzero()[:, 0].tolist() == list(range(80, 100))
    assert minus.nonzero()[:, 0].tolist() == list(range(20))


def test_deciles_of_equal_advantages_are_empty():
    plus, minus = split_advantages(torch.zeros(50), "percentile")
    assert not plus.any()
    assert not minus.any()


def test_stats():
    stats = advantage_stats(
        torch.tensor([[0.0, 1]]), torch.tensor([[0.9, 1.0]]), torch.tensor([[0.895, 0.5]])
    )
    assert (stats["better"], stats["worse"]) == (1, 0)
    assert stats["band"] == stats["reward_nonzero"] == 0.5
    assert stats["at_least_zero"] == 1.0


def test_correlation_of_a_constant_is_zero():
    assert correlation(torch.ones(3), torch.arange(3.0)) == 0.0


def test_mean_stats_leaves_out_what_is_no_number():
    assert mean_stats([dict(a=1.0, alarms=[]), dict(a=2, alarms=["x"])]) == dict(a=1.5)


@pytest.mark.parametrize(
    "name, change",
    [
        ("no rewards", dict(reward_max=0.05)),
        ("no signal", dict(band=0.96)),
        ("one-sided", dict(at_least_zero=0.97)),
        ("one-sided", dict(at_least_zero=0.03)),
        ("values astray", dict(explained=0.0)),
        ("far from the BC policy", dict(kl=1.2)),
        ("one action", dict(entropy=0.01)),
    ],
)
def test_alarms(name, change):
    assert active_alarms([HEALTHY]) == []
    (alarm,) = active_alarms([HEALTHY | change])
    assert alarm.name == name
    assert alarm.message.format(**HEALTHY | change)
    assert alarm in ALARMS


def run_monitor(rounds, **metrics):
    monitor = Monitor(patience=3)
    zeros = torch.zeros(4, 5)
    trainer = SimpleNamespace(last_round=dict(rewards=zeros, returns=zeros, values=zeros))
    history = []
    for _ in range(rounds):
        history.append(dict(metrics))
        monitor(trainer, history[-1])
    return monitor, history


def test_monitor_waits_for_enough_rounds():
    monitor, history = run_monitor(3, kl=0.1, entropy=1.0, explained=0.5)
    assert history[1]["alarms"] == []
    assert history[2]["alarms"] == ["no rewards", "no signal", "one-sided"]
    assert len(monitor.warnings()) == 3
    assert monitor.warnings()[0].startswith("no rewards: the highest reward")
    assert [h.sum() for h in monitor.histograms] == [20, 20, 20]


@pytest.mark.parametrize("pay", [-0.01, 0.01, -1.0])
def test_small_rewards_and_costs_are_no_silence(pay):
    "Where steps pay a hundredth, a hundredth of that is nothing"
    torch.manual_seed(0)
    monitor = Monitor(patience=2, unit=abs(pay))
    rewards = torch.full((20, 5), pay)
    returns = 5 * rewards * torch.rand(20, 5)
    trainer = SimpleNamespace(
        last_round=dict(rewards=rewards, returns=returns, values=2.5 * rewards)
    )
    for _ in range(2):
        metrics = dict(kl=0.1, entropy=1.0, explained=0.5)
        monitor(trainer, metrics)
    assert metrics["alarms"] == []
    assert metrics["band"] < 0.1


def test_monitor_only_measures_while_values_warm_up():
    monitor, history = run_monitor(5, explained=0.5)
    assert "alarms" not in history[-1]
    assert history[-1]["band"] == 1.0
    assert monitor.warnings() == []
    assert monitor.histograms == []
