"Returns against a hand computation; rollouts from the world model and from recordings"

import pytest
import torch

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.policy.rollout import (
    RecordedRollouts,
    WorldModelRollouts,
    imagine,
    lambda_returns,
)

CONFIG = ImaginationConfig(horizon=3, context_length=4, intrinsic_weight=0.5)


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    codec = ActionCodec(ActionSpace.flat(["left", "right", "do"]))
    config = DynamicsConfig(
        width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
    )
    return Agent(Dynamics(config, 4, 8, codec), codec, AgentConfig(hidden=32, mtp=1))


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return make_batch(
        latents=torch.randn(5, 7, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 3, (5, 8, 1), generator=g),
        rewards=torch.rand(5, 8, generator=g),
        is_terminal=torch.rand(5, 8, generator=g) < 0.2,
    )


def generator():
    return torch.Generator().manual_seed(1)


def test_lambda_returns_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    cont = torch.tensor([[1.0, 0.5, 1.0]])
    values = torch.tensor([[9.0, 3.0, 4.0, 5.0]])
    # from the end: 2 + 0.9 * 5; 0 + 0.45 * (0.2 * 4 + 0.8 * 6.5); 1 + 0.9 * (0.2 * 3 + ...)
    last = 2 + 0.9 * 5
    middle = 0.9 * 0.5 * (0.2 * 4 + 0.8 * last)
    first = 1 + 0.9 * (0.2 * 3 + 0.8 * middle)
    expected = torch.tensor([[first, middle, last]])
    torch.testing.assert_close(lambda_returns(rewards, cont, values, 0.9, 0.8), expected)


def test_lambda_one_without_values_sums_rewards():
    rewards = torch.rand(2, 6)
    returns = lambda_returns(rewards, torch.ones(2, 6), torch.zeros(2, 7), 1.0, 1.0)
    expected = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, expected)


def test_a_terminal_step_cuts_returns_off():
    rewards = torch.tensor([[0.0, 1.0, 5.0]])
    cont = torch.tensor([[1.0, 0.0, 1.0]])
    returns = lambda_returns(rewards, cont, torch.full((1, 4), 7.0), 1.0, 1.0)
    assert returns[0].tolist() == [1.0, 1.0, 12.0]


def test_right_values_have_no_advantage():
    rewards = torch.rand(1, 5)
    end = torch.tensor([[3.0]])
    only_end = torch.cat([torch.zeros(1, 5), end], 1)
    true = lambda_returns(rewards, torch.ones(1, 5), only_end, lambda_=1.0)
    values = torch.cat([true, end], 1)
    returns = lambda_returns(rewards, torch.ones(1, 5), values, lambda_=0.4)
    torch.testing.assert_close(returns, values[:, :-1])


def test_world_model_rollouts_are_imagined(agent, batch):
    rollout = WorldModelRollouts(agent, CONFIG)(batch, agent.policy, generator())
    context = batch.first(4)
    expected = imagine(
        agent, context.latents, context.actions, context.action_mask, 3, generator=generator()
    )
    assert torch.equal(rollout.features, expected.features)
    assert torch.equal(rollout.actions, expected.actions)
    assert rollout.intrinsic_rewards is None
    assert torch.equal(rollout.total_rewards, rollout.rewards)


def test_reward_fn_pays_for_dreams(agent, batch):
    def all_pay(features):
        ones = torch.ones(features.shape[:-1])
        return 2 * ones, ones

    rollout = WorldModelRollouts(agent, CONFIG, all_pay)(batch, agent.policy, generator())
    assert (rollout.rewards == 2).all()
    assert (rollout.cont == 1).all()


def test_recorded_rollouts_line_up(agent, batch):
    rollout = RecordedRollouts(agent, CONFIG)(batch, None, generator())
    assert rollout.features.shape == (5, 4, 32)
    assert torch.equal(rollout.actions, batch.actions[:, 4:7])
    assert torch.equal(rollout.rewards, batch.rewards[:, 4:7])
    assert torch.equal(rollout.cont, 1 - batch.is_terminal[:, 4:7].float())


def test_unknown_rewards_are_guessed(agent, batch):
    batch.reward_mask[:] = False

    def guess(features):
        ones = torch.ones(features.shape[:-1])
        return 7 * ones, ones

    rollout = RecordedRollouts(agent, CONFIG, guess)(batch, None, generator())
    assert (rollout.rewards == 7).all()


@pytest.mark.parametrize("source", [WorldModelRollouts, RecordedRollouts])
def test_intrinsic_rewards_are_weighted(agent, batch, source):
    shapes = []

    def surprise(latents, actions):
        shapes.append((tuple(latents.shape), tuple(actions.shape)))
        return torch.ones(actions.shape[:2])

    rollout = source(agent, CONFIG, None, surprise)(batch, agent.policy, generator())
    assert shapes == [((5, 4, 4, 8), (5, 3, 1))]
    assert (rollout.intrinsic_rewards == 0.5).all()
    torch.testing.assert_close(rollout.total_rewards, rollout.rewards + 0.5)
