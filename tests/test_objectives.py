"PPO and AWR: bandits with a known optimum, sizes of advantages, and what they learn from"

from dataclasses import replace

import pytest
import torch

from dreamer4_nb.config import (
    PMPO_SETTINGS,
    AgentConfig,
    DynamicsConfig,
    ImaginationConfig,
    named,
)
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.actions import action_distribution
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.pipeline import configure
from dreamer4_nb.policy.objectives import awr_loss, normalised_advantages, ppo_loss
from dreamer4_nb.policy.pmpo import (
    OBJECTIVES,
    ImaginationTrainer,
    named_objective,
    pmpo_loss,
    reads_old_log_prob,
)
from dreamer4_nb.policy.rollout import RecordedRollouts, WorldModelRollouts
from dreamer4_nb.training import distributed

ARMS = torch.tensor([0.0, 1.0, 2.0, 3.0])
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1])
LOSSES = {"pmpo": pmpo_loss, "ppo": ppo_loss, "awr": awr_loss}
CONFIG = ImaginationConfig(
    horizon=4, context_length=2, value_warmup=1, iterations=10, value_updates=2, replay=1
)


def loss_of(objective, log_prob, advantage, kl, old=None, **settings):
    "The loss of any objective; without `old` the actions were drawn by the same policy."
    if objective is ppo_loss:
        settings["old_log_prob"] = log_prob.detach() if old is None else old
    return objective(log_prob, advantage, kl, **settings)


def bandit(objective, beta, rounds=250, updates=1, rewards=ARMS, scale=1.0, **settings):
    "The policy that an objective ends with, and the payments as it sees them."
    g = torch.Generator().manual_seed(0)
    logits = PRIOR.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.02)
    for _ in range(rounds):
        old = logits.log_softmax(-1).detach()
        arms = torch.multinomial(old.exp(), 2000, replacement=True, generator=g)
        advantage = scale * (rewards[arms] - rewards[arms].mean())
        for _ in range(updates):
            log_probs = logits.log_softmax(-1)
            kl = (log_probs.exp() * (log_probs - PRIOR.log())).sum().expand(2000)
            loss, _ = loss_of(
                objective, log_probs[arms], advantage, kl, old[arms], beta=beta, **settings
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return logits.softmax(-1).detach()


def spread(p):
    mean = (p * ARMS).sum()
    return mean, ((p * ARMS**2).sum() - mean**2).sqrt()


@pytest.mark.parametrize("name", LOSSES)
def test_the_best_arm_is_found(name):
    assert bandit(LOSSES[name], beta=0.0)[3] > 0.9


def test_ppo_ends_where_the_formula_says():
    p = bandit(ppo_loss, beta=1.0)
    expected = PRIOR * (ARMS / spread(p)[1]).exp()
    torch.testing.assert_close(p, expected / expected.sum(), atol=0.03, rtol=0)


def test_awr_ends_where_the_formula_says():
    p = bandit(awr_loss, beta=1.0)
    mean, deviation = spread(p)
    w = ((ARMS - mean) / deviation).exp()
    log_ratio = (p / PRIOR).log()
    gap = log_ratio - (p * log_ratio).sum()
    torch.testing.assert_close(w / (p * w).sum() - 1, gap, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["ppo", "awr"])
def test_a_larger_penalty_holds_more(name):
    best = [bandit(LOSSES[name], beta)[3] for beta in (0.1, 1.0, 5.0)]
    assert best[0] > best[1] > best[2] > PRIOR[3]


@pytest.mark.parametrize("name", LOSSES)
def test_scale_does_not_matter(name):
    small = bandit(LOSSES[name], beta=0.5, rounds=20, scale=0.01)
    large = bandit(LOSSES[name], beta=0.5, rounds=20, scale=100.0)
    torch.testing.assert_close(small, large, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name, good", [("pmpo", False), ("ppo", True), ("awr", True)])
def test_better_on_average_or_more_often(name, good):
    "One arm is better than expected more often, the other by more."
    g = torch.Generator().manual_seed(0)
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.02)
    for _ in range(150):
        p = logits.softmax(-1).detach()
        arms = torch.multinomial(p, 1000, replacement=True, generator=g)
        luck = torch.rand(1000, generator=g)
        often = torch.where(luck < 0.7, 0.5, -3.0)
        by_more = torch.where(luck < 0.4, 3.0, -0.7)
        rewards = torch.where(arms == 1, by_more, often)
        log_prob = logits.log_softmax(-1)[arms]
        loss, _ = loss_of(LOSSES[name], log_prob, rewards - rewards.mean(), torch.zeros(1000))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.softmax(-1)[1].item() > 0.9) == good
    assert (logits.softmax(-1)[1].item() < 0.1) != good


def pushes(objective, advantage):
    "What each step adds to the log-probability of its action, times the number of steps."
    log_prob = torch.full_like(advantage, -1.0, requires_grad=True)
    loss, _ = loss_of(objective, log_prob, advantage, torch.zeros_like(advantage))
    return -torch.autograd.grad(loss, log_prob)[0] * len(advantage)


def test_sets_of_different_sizes():
    "Nine steps a little worse, one much better: PMPO weighs the sets, the others the sizes."
    advantage = torch.tensor([-0.1] * 9 + [0.9])
    torch.testing.assert_close(
        pushes(pmpo_loss, advantage), torch.tensor([-0.5 / 0.9] * 9 + [5.0])
    )
    torch.testing.assert_close(
        pushes(ppo_loss, advantage), torch.tensor([-1 / 3] * 9 + [3.0]), atol=1e-4, rtol=0
    )
    w = torch.tensor([-1 / 3] * 9 + [3.0]).exp().clamp(max=20)
    torch.testing.assert_close(pushes(awr_loss, advantage), w / w.mean(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["ppo", "awr"])
def test_all_positive_advantages_are_compared(name):
    advantage = torch.linspace(-1, 1, 10)
    shifted = pushes(LOSSES[name], advantage + 5)
    torch.testing.assert_close(shifted, pushes(LOSSES[name], advantage), atol=1e-4, rtol=0)
    assert (shifted.diff() > 0).all()


def test_equal_advantages_teach_ppo_nothing():
    assert pushes(ppo_loss, torch.ones(10)).abs().max() == 0
    torch.testing.assert_close(pushes(awr_loss, torch.ones(10)), torch.ones(10))


def test_a_weight_is_clipped():
    advantage = torch.zeros(1000)
    advantage[0] = 1.0  # 31 standard deviations
    weights = pushes(awr_loss, advantage)
    assert weights[0] / weights[1] == pytest.approx(20 / 0.97, rel=0.01)
    log_prob = torch.zeros(1000)
    _, metrics = awr_loss(log_prob, advantage, log_prob)
    assert 0.6 < metrics["effective"] < 1


@pytest.mark.parametrize(
    "ratio, advantage, push", [(1.3, 1, 0), (0.7, 1, 0.7), (0.7, -1, 0), (1.3, -1, -1.3)]
)
def test_a_ratio_is_clipped_where_it_has_moved_far_enough(ratio, advantage, push):
    old = torch.full((2,), -1.0)
    log_prob = (old + torch.tensor([ratio, 1.0]).log()).requires_grad_()
    advantages = advantage * torch.tensor([1.0, -1.0])
    loss, metrics = ppo_loss(log_prob, advantages, torch.zeros(2), old)
    gradient = torch.autograd.grad(loss, log_prob)[0]
    assert -2 * gradient[0].item() == pytest.approx(push)
    assert metrics["clipped"] == 0.5


def test_an_action_of_several_components_has_one_ratio():
    space = ActionSpace(keys=("jump", "attack"), camera="camera")
    codec = ActionCodec(space)
    g = torch.Generator().manual_seed(0)
    old_logits, logits = torch.randn(2, 5, codec.num_logits, generator=g)
    actions = action_distribution(codec, old_logits).sample(g)
    old = action_distribution(codec, old_logits).log_prob(actions)
    new = action_distribution(codec, logits).log_prob(actions)
    assert new.shape == (5,)
    advantage = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])
    loss, _ = ppo_loss(new, advantage, torch.zeros(5), old, clip_ratio=1e9)
    by_hand = ((new - old).exp() * normalised_advantages(advantage)).mean()
    torch.testing.assert_close(loss, -by_hand)


class Messages:
    "Answers sums over two processes that take turns, message by message."

    def __init__(self):
        self.sums = []
        self.number = 0

    def begin(self, learning=None):
        "The next part speaks; message `learning` is added up, earlier ones are answered."
        self.number = 0
        self.learning = learning

    def all_reduce(self, x):
        if self.number == self.learning:
            if self.number == len(self.sums):
                self.sums.append(torch.zeros_like(x))
            self.sums[self.number] += x
        elif self.number < len(self.sums):
            x.copy_(self.sums[self.number])
        self.number += 1


@pytest.mark.parametrize("name", ["ppo", "awr"])
def test_parts_of_a_loss_average(monkeypatch, name):
    "Two processes with parts of the steps know the loss of all and share its gradient."
    torch.manual_seed(0)
    log_prob, advantage, kl = torch.randn(3, 8)
    log_prob.requires_grad_()
    whole, _ = loss_of(LOSSES[name], log_prob, advantage, kl)
    (gradient,) = torch.autograd.grad(whole, log_prob)
    messages = Messages()
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", messages.all_reduce)
    parts = (slice(0, 3), slice(3, 8))

    def loss(rows, learning=None):
        messages.begin(learning)
        return loss_of(LOSSES[name], log_prob[rows], advantage[rows], kl[rows])[0]

    for learning in range(3):  # mean, deviation, loss: each needs those before it
        for rows in parts:
            loss(rows, learning)
    gradients = []
    for rows in parts:
        torch.testing.assert_close(loss(rows), whole)
        gradients.append(torch.autograd.grad(loss(rows), log_prob)[0])
    torch.testing.assert_close(sum(gradients) / 2, gradient)


# ---- in phase 3


@pytest.fixture
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
        latents=torch.randn(32, 8, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 3, (32, 9, 1), generator=g),
        rewards=(torch.rand(32, 9, generator=g) < 0.3).float(),
    )


def test_objectives_have_the_names_of_the_configuration():
    assert list(OBJECTIVES) == ["pmpo", "ppo", "awr"]
    reads = [
        name
        for name in OBJECTIVES
        if reads_old_log_prob(named_objective(replace(CONFIG, objective=name)))
    ]
    assert reads == ["ppo"]


def test_settings_reach_the_objectives():
    changed = replace(
        CONFIG, beta=0.7, clip_ratio=0.1, advantage_temperature=2.0, weight_clip=5.0
    )
    keywords = {
        name: named_objective(replace(changed, objective=name)).keywords
        for name in ("ppo", "awr")
    }
    assert keywords == dict(
        ppo=dict(beta=0.7, clip_ratio=0.1),
        awr=dict(beta=0.7, temperature=2.0, weight_clip=5.0),
    )


def test_the_papers_objective_is_a_size_of_the_laptop():
    "With everything else that was found for it, and a world model that learns as it did then"
    laptop, paper = named("laptop").to_dict(), named("laptop_pmpo").to_dict()
    assert laptop["imagination"]["objective"] == "ppo"
    differing = [name for name in laptop if laptop[name] != paper[name]]
    assert differing == ["name", "dynamics_training", "imagination"]
    uniform = laptop["dynamics_training"] | {"relevant_fraction": 0.0}
    assert paper["dynamics_training"] == uniform
    changed = {
        name: value
        for name, value in paper["imagination"].items()
        if value != laptop["imagination"][name]
    }
    assert changed.items() <= {k.split(".")[1]: v for k, v in PMPO_SETTINGS.items()}.items()
    config = named("laptop_pmpo").imagination
    assert named_objective(config).func is pmpo_loss
    assert (config.beta, config.marginal_beta, config.gamma) == (0.5, 2.0, 0.9)
    assert (config.contexts, config.iterations, config.replay) == (128, 74, 4)
    assert configure("laptop_pmpo", "tools").imagination == config


def test_ppo_refuses_replay():
    with pytest.raises(ValueError, match="replay = 4: must be 1 with objective = 'ppo'"):
        ImaginationConfig(objective="ppo")
    assert ImaginationConfig(objective="ppo", replay=1).replay == 1
    assert ImaginationConfig(objective="awr").replay == 4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_phase_learns_what_its_rollouts_pay(agent, batch, name):
    config = replace(
        CONFIG, objective=name, value_warmup=0, lr=3e-3, gamma=0.9, horizon=6, beta=0.1
    )
    dream = WorldModelRollouts(agent, config)

    def paid_for_do(batch, policy, generator):
        rollout = dream(batch, policy, generator)
        return replace(rollout, rewards=(rollout.actions[..., 0] == 2).float())

    trainer = ImaginationTrainer(agent, config, rollout_source=paid_for_do)
    rewards = [trainer.step(batch)["imagined_reward"] for _ in range(20)]
    assert rewards[0] < 0.5
    assert rewards[-1] > 0.85


def test_a_phase_with_ppo_continues(agent, batch):
    config = replace(CONFIG, objective="ppo")
    whole, stopped, continued = (ImaginationTrainer(agent, config) for _ in range(3))
    for _ in range(3):
        whole.step(batch)
        stopped.step(batch)
    assert "clipped" in whole.history[-1]
    continued.load_state(stopped.state_dict(), stopped.state_tensors())
    assert torch.equal(continued.rollouts[0].log_probs, stopped.rollouts[0].log_probs)
    whole.step(batch)
    continued.step(batch)
    assert continued.history == whole.history


def test_ppo_needs_to_know_how_actions_were_drawn(agent, batch):
    config = replace(CONFIG, objective="ppo", value_warmup=0)
    source = RecordedRollouts(agent, config)
    trainer = ImaginationTrainer(agent, config, rollout_source=source)
    with pytest.raises(ValueError, match="log_probs is None.*Hint: learn from rollouts"):
        trainer.step(batch)


def test_entropy_is_paid_for(agent, batch):
    torch.nn.init.normal_(agent.policy.outs[0].bias, std=2.0)
    entropies = []
    for weight in (0.0, 5.0):
        config = replace(CONFIG, beta=0.0, entropy_weight=weight, lr=3e-3, value_warmup=0)
        trainer = ImaginationTrainer(agent, config)
        entropies.append([trainer.step(batch)["entropy"] for _ in range(6)])
    assert entropies[1][-1] > entropies[0][-1] + 0.05
