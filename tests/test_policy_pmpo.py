"PMPO and phase 3: bandits with a known best action, averages, and what experiments vary"

from dataclasses import replace

import pytest
import torch
from torch import nn

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.actions import action_distribution
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.policy.pmpo import (
    ImaginationTrainer,
    ema_update,
    explained_variance,
    marginal_kl,
    pmpo_loss,
    pmpo_objective,
    with_temperature,
)
from dreamer4_nb.policy.rollout import WorldModelRollouts, lambda_returns

CODEC = ActionCodec(ActionSpace.flat(["left", "right", "do"]))
CONFIG = ImaginationConfig(
    horizon=4, context_length=2, value_warmup=2, iterations=10, value_updates=2, replay=2
)


@pytest.fixture
def agent():
    torch.manual_seed(0)
    config = DynamicsConfig(
        width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
    )
    return Agent(Dynamics(config, 4, 8, CODEC), CODEC, AgentConfig(hidden=32, mtp=1))


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return make_batch(
        latents=torch.randn(16, 6, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 3, (16, 7, 1), generator=g),
        rewards=(torch.rand(16, 7, generator=g) < 0.3).float(),
    )


def bandit(beta, best=3, steps=150, **kw):
    "Probability of the action that pays, of ten."
    torch.manual_seed(0)
    logits = torch.zeros(10, requires_grad=True)
    prior = torch.zeros(10).log_softmax(-1)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(steps):
        log_probs = logits.log_softmax(-1)
        actions = torch.multinomial(log_probs.exp().detach(), 256, replacement=True)
        rewards = (actions == best).float() + 0.1 * torch.randn(256)
        kl = (log_probs.exp() * (log_probs - prior)).sum().expand(256)
        advantage = rewards - rewards.mean()
        loss, _ = pmpo_loss(log_probs[actions], advantage, kl, beta=beta, **kw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.softmax(-1)[best].item()


def test_bandit_finds_the_best_action():
    assert bandit(beta=0.0) > 0.95
    assert bandit(beta=0.3) > 0.9


def test_bandit_stays_near_its_prior():
    assert bandit(beta=1.0) < 0.5 < bandit(beta=0.3) < bandit(beta=0.0)


def test_bandit_learns_from_deciles():
    assert bandit(beta=0.0, split="percentile") > 0.9


def gradient(advantage):
    logits = torch.zeros(3, requires_grad=True)
    loss, metrics = pmpo_loss(logits.log_softmax(-1), advantage, torch.zeros(3))
    loss.backward()
    return logits.grad, metrics


def test_only_signs_count():
    small, metrics = gradient(torch.tensor([0.01, -0.01, -3.0]))
    large, _ = gradient(torch.tensor([100.0, -1.0, -1.0]))
    assert torch.equal(small, large)
    assert metrics["positive"] == pytest.approx(1 / 3)


def test_an_empty_set_adds_nothing():
    g, metrics = gradient(torch.ones(3))
    torch.testing.assert_close(g, torch.zeros(3), atol=1e-6, rtol=0)  # all equally good
    assert metrics["positive"] == 1.0


def test_parts_of_the_loss_add_up():
    "Two processes, each with half of the steps, have parts of the loss of all steps."
    torch.manual_seed(0)
    log_prob, advantage, kl = torch.randn(3, 8)
    whole, _ = pmpo_loss(log_prob, advantage, kl)
    good = (advantage >= 0).sum()
    sizes = torch.stack([good, 8 - good, torch.tensor(8)])

    def total(x):  # the counts of both processes
        return sizes if x.shape == (3,) else x

    halves = [
        pmpo_loss(log_prob[rows], advantage[rows], kl[rows], reduce_sum=total)[0]
        for rows in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(halves), whole)


def test_objective_of_a_configuration():
    config = replace(CONFIG, alpha=1.0, beta=0.0, advantages="greater")
    log_prob = torch.tensor([-1.0, -2.0, -3.0])
    advantage = torch.tensor([1.0, 0.0, 2.0])
    loss, metrics = pmpo_objective(config)(log_prob, advantage, torch.ones(3))
    assert loss == pytest.approx(2.0)  # -(-1 - 3) / 2: zero is not good here
    assert metrics["positive"] == pytest.approx(2 / 3)


def test_marginal_kl_sees_drift_alone():
    lean = torch.tensor([3.0, 0, 0])
    undecided = action_distribution(CODEC, torch.zeros(6, 3))
    everywhere = action_distribution(CODEC, lean.expand(6, 3))
    in_turn = action_distribution(CODEC, torch.stack([lean.roll(i) for i in range(3)] * 2))
    assert marginal_kl(in_turn, undecided) == pytest.approx(0, abs=1e-6)
    expected = everywhere.kl(undecided).mean().item()
    assert marginal_kl(everywhere, undecided) == pytest.approx(expected, abs=1e-6)


def test_with_temperature(agent):
    head = agent.policy
    features = torch.randn(4, 32)
    cold = with_temperature(head, 0.5)
    torch.testing.assert_close(cold(features, 0), 2 * head(features, 0))
    assert not any(p.requires_grad for p in cold.parameters())


def test_ema_update():
    average, module = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = 0.9 * average.weight + 0.1 * module.weight
    ema_update(average, module, 0.9)
    torch.testing.assert_close(average.weight, expected)


def test_explained_variance():
    returns = torch.tensor([1.0, 2, 3, 5])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns, torch.zeros(4)) == pytest.approx(0)
    assert explained_variance(returns, -returns) < 0


def test_target_value_follows_slowly(agent, batch):
    trainer = ImaginationTrainer(agent, replace(CONFIG, value_ema=0.75))
    before = [p.clone() for p in trainer.target_value.parameters()]
    rollout = trainer.warmup_source(batch, None, trainer.generator)
    trainer.update_value(rollout)
    moved = zip(before, trainer.value.parameters(), trainer.target_value.parameters())
    for old, new, target in moved:
        torch.testing.assert_close(target, 0.75 * old + 0.25 * new)


def test_values_learn_recorded_returns(agent, batch):
    trainer = ImaginationTrainer(agent, replace(CONFIG, value_lr=1e-2, value_updates=20))
    losses = [trainer.step(batch)["value_loss"] for _ in range(2)]
    assert losses[1] < losses[0]


def test_phases_of_an_iteration(agent, batch):
    trainer = ImaginationTrainer(agent, CONFIG)
    history = [trainer.step(batch) for _ in range(5)]
    assert ["recorded_reward" in metrics for metrics in history] == [True] * 2 + [False] * 3
    assert ["kl" in metrics for metrics in history] == [False] * 2 + [True] * 3
    assert len(trainer.rollouts) == CONFIG.replay
    assert trainer.history == history
    assert {k: tuple(v.shape) for k, v in trainer.last_round.items()} == dict(
        rewards=(16, 4), returns=(16, 4), values=(16, 4)
    )


def test_a_seed_fixes_the_phase(agent, batch):
    def run(seed):
        trainer = ImaginationTrainer(agent, CONFIG, seed)
        return [trainer.step(batch) for _ in range(3)]

    assert run(0) == run(0) != run(1)


def test_phase_learns_what_its_rollouts_pay(agent, batch):
    config = replace(CONFIG, value_warmup=0, lr=3e-3, gamma=0.9, horizon=6)
    dream = WorldModelRollouts(agent, config)

    def paid_for_do(batch, policy, generator):
        rollout = dream(batch, policy, generator)
        return replace(rollout, rewards=(rollout.actions[..., 0] == 2).float())

    trainer = ImaginationTrainer(agent, config, rollout_source=paid_for_do)
    rewards = [trainer.step(batch)["imagined_reward"] for _ in range(15)]
    assert rewards[0] < 0.5
    assert rewards[-1] > 0.9


def test_the_average_is_kept(agent, batch):
    trainer = ImaginationTrainer(agent, replace(CONFIG, value_warmup=0, policy_ema=0.0))
    trainer.step(batch)
    pairs = zip(trainer.ema_policy.parameters(), trainer.policy.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_warmup_source(agent, batch):
    "Values may also warm up on dreams."
    dream = WorldModelRollouts(agent, CONFIG)
    trainer = ImaginationTrainer(agent, CONFIG, warmup_source=dream)
    trainer.step(batch)
    assert not torch.equal(trainer.rollouts[0].actions, batch.actions[:, 2:6])


def test_reward_fn(agent, batch):
    def nothing(features):
        zeros = torch.zeros(features.shape[:-1])
        return zeros, zeros + 1

    trainer = ImaginationTrainer(agent, replace(CONFIG, value_warmup=0), reward_fn=nothing)
    assert trainer.step(batch)["imagined_reward"] == 0


def test_return_fn(agent, batch):
    "Returns of other moments."

    def shuffled(*args):
        return lambda_returns(*args).flip(0)

    trainer = ImaginationTrainer(agent, CONFIG, return_fn=shuffled)
    plain = ImaginationTrainer(agent, CONFIG)
    rollout = plain.warmup_source(batch, None, plain.generator)
    returns, values = plain.returns(rollout)
    other_returns, other_values = trainer.returns(rollout)
    assert torch.equal(other_returns, returns.flip(0))
    assert torch.equal(other_values, values)


def test_objective(agent, batch):
    "An objective of one's own, which holds the policy to the likelihood of its actions."

    def copy_actions(log_prob, advantage, kl, reduce_sum):
        return -log_prob.mean(), dict(kl=reduce_sum(kl.detach()).mean())

    config = replace(CONFIG, value_warmup=0)
    trainer = ImaginationTrainer(agent, config, objective=copy_actions)
    assert "kl" in trainer.step(batch)


def test_callbacks(agent, batch):
    iterations = []
    trainer = ImaginationTrainer(
        agent,
        CONFIG,
        callbacks=[lambda trainer, metrics: iterations.append(trainer.iteration)],
    )
    trainer.step(batch)
    trainer.step(batch)
    assert iterations == [1, 2]
