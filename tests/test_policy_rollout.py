"Returns against a hand computation; rollouts from the world model and from recordings"

import copy
from dataclasses import replace

import pytest
import torch

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.heads import TwoHot
from dreamer4_nb.policy.rollout import (
    RecordedRollouts,
    WorldModelRollouts,
    imagine,
    lambda_returns,
    number_at_mode,
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


def test_a_dream_knows_how_its_actions_were_drawn(agent, batch):
    policy = agent.new_head(3, seed=1).requires_grad_(False)
    torch.nn.init.normal_(policy.outs[0].weight, std=0.05)
    rollout = WorldModelRollouts(agent, CONFIG)(batch, policy, generator())
    drawn_by = agent.action_distribution(rollout.features[:, :-1], policy=policy)
    torch.testing.assert_close(rollout.log_probs, drawn_by.log_prob(rollout.actions))
    assert rollout.log_probs.std() > 0.02
    assert not rollout.log_probs.requires_grad
    assert RecordedRollouts(agent, CONFIG)(batch, None, generator()).log_probs is None


def test_a_small_chance_of_a_reward_is_not_its_mode():
    two_hot = TwoHot()
    for chance, paid in ((0.3, 0.0), (0.7, 1.0)):
        p = (1 - chance) * two_hot.encode(torch.zeros(2)) + chance * two_hot.encode(
            torch.ones(2)
        )
        torch.testing.assert_close(two_hot.mean(p.log()), torch.full((2,), chance))
        mode = number_at_mode(two_hot, p.log())
        torch.testing.assert_close(mode, torch.full((2,), paid), atol=1e-4, rtol=0)


def test_numbers_between_and_at_the_ends_of_bins():
    two_hot = TwoHot(num_bins=41)
    numbers = torch.tensor([-1e9, -3.3, 0.0, 0.01, 0.4, 1.0, 100.0, 1e9])
    inside = numbers.clamp(two_hot.bins[0], two_hot.bins[-1])
    mode = number_at_mode(two_hot, two_hot.encode(numbers).log())
    torch.testing.assert_close(mode, inside)


@pytest.mark.parametrize("reward_loss", ["two_hot", "multi_task"])
def test_dreams_pay_the_mode_if_they_are_told(agent, batch, reward_loss):
    head_config = AgentConfig(hidden=32, mtp=1, reward_loss=reward_loss)
    torch.manual_seed(1)
    other = Agent(agent.dynamics, agent.codec, head_config)
    torch.nn.init.normal_(other.reward.outs[0].weight)
    config = replace(CONFIG, reward_decoding="mode")
    rollout = WorldModelRollouts(other, config)(batch, other.policy, generator())
    logits = other.reward(rollout.features[:, 1:], 0)[..., :255]
    torch.testing.assert_close(rollout.rewards, number_at_mode(other.two_hot, logits))
    usual = WorldModelRollouts(other, CONFIG)(batch, other.policy, generator())
    assert torch.equal(usual.cont, rollout.cont)
    assert not torch.allclose(usual.rewards, rollout.rewards)


def test_unknown_recorded_rewards_are_guessed_at_the_mode(agent, batch):
    agent = copy.deepcopy(agent)
    torch.nn.init.normal_(agent.reward.outs[0].weight)
    batch = replace(batch, reward_mask=torch.zeros_like(batch.reward_mask))
    config = replace(CONFIG, reward_decoding="mode")
    rollout = RecordedRollouts(agent, config)(batch, None, generator())
    logits = agent.reward(rollout.features[:, 1:], 0)[..., :255]
    torch.testing.assert_close(rollout.rewards, number_at_mode(agent.two_hot, logits))
