"PMPO and phase 3: bandits with a known best action, averages, and what experiments vary"

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import phase3_job
import pytest
import torch
from fake_device import (
    DEVICE,
    fake_device,
    make_generator,
    no_copies,
    size,
    to_fake_device,
)
from safetensors.torch import load, save
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.actions import action_distribution
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.heads import MLPHead
from dreamer4_nb.policy import pmpo
from dreamer4_nb.policy.advantages import Monitor
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
from dreamer4_nb.training import distributed

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


def test_parts_of_the_loss_average(monkeypatch):
    """Two processes, each with half of the steps: both know the loss of all steps, and the
    mean of their gradients is its gradient."""
    torch.manual_seed(0)
    log_prob, advantage, kl = torch.randn(3, 8)
    log_prob.requires_grad_()
    whole, _ = pmpo_loss(log_prob, advantage, kl)
    (gradient,) = torch.autograd.grad(whole, log_prob)
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    halves = (slice(0, 3), slice(3, 8))

    def losses():
        return [pmpo_loss(log_prob[rows], advantage[rows], kl[rows])[0] for rows in halves]

    sums = []
    monkeypatch.setattr(torch.distributed, "all_reduce", sums.append)
    losses()
    total = sum(sums)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.copy_(total))
    gradients = []
    for loss in losses():
        torch.testing.assert_close(loss, whole)
        gradients.append(torch.autograd.grad(loss, log_prob)[0])
    torch.testing.assert_close(sum(gradients) / 2, gradient)


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

    def copy_actions(log_prob, advantage, kl):
        return -log_prob.mean(), dict(kl=kl.mean())

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


# ---- stopped and continued


def batches(count):
    "Other windows in each iteration"
    g = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield make_batch(
            latents=torch.randn(8, 6, 4, 8, generator=g).tanh(),
            actions=torch.randint(0, 3, (8, 7, 1), generator=g),
            rewards=(torch.rand(8, 7, generator=g) < 0.3).float(),
        )


def saved(trainer):
    "The state of a trainer as it comes back from files"
    state = json.loads(json.dumps(trainer.state_dict()))
    return state, load(save(trainer.state_tensors()))


def monitored(agent, config, **more):
    return ImaginationTrainer(agent, config, 3, callbacks=[Monitor(patience=2)], **more)


def check_equal(continued, whole):
    assert continued.history == whole.history
    assert continued.iteration == whole.iteration
    tensors, expected = continued.state_tensors(), whole.state_tensors()
    assert tensors.keys() == expected.keys()
    assert [k for k in expected if not torch.equal(tensors[k], expected[k])] == []
    assert continued.state_dict() == whole.state_dict()


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
def test_a_phase_continues_bit_by_bit(agent, stop):
    "In the warmup, at its end, after the first dream, later"
    whole = monitored(agent, CONFIG)
    stopped = monitored(agent, CONFIG)
    continued = monitored(agent, CONFIG)
    for iteration, batch in enumerate(batches(6)):
        whole.step(batch)
        if iteration < stop:
            stopped.step(batch)
        if iteration == stop:
            continued.load_state(*saved(stopped))
        if iteration >= stop:
            continued.step(batch)
    check_equal(continued, whole)
    assert continued.callbacks[0].warnings() == whole.callbacks[0].warnings()
    assert len(continued.callbacks[0].histograms) == 4


def test_a_phase_with_intrinsic_rewards_continues(agent):
    def surprise(latents, actions):
        return latents[:, 1:].abs().mean((2, 3))

    whole, stopped, continued = (
        monitored(agent, replace(CONFIG, intrinsic_weight=0.5), intrinsic=surprise)
        for _ in range(3)
    )
    first, *rest = batches(4)
    for trainer in (whole, stopped):
        trainer.step(first)
    continued.load_state(*saved(stopped))
    for batch in rest:
        whole.step(batch)
        continued.step(batch)
    check_equal(continued, whole)
    assert "intrinsic_reward" in whole.history[-1]


def test_a_finished_phase_is_given_more_iterations(agent):
    whole = monitored(agent, CONFIG)
    finished = monitored(agent, replace(CONFIG, iterations=3))
    *first, last = batches(4)
    for batch in first:
        whole.step(batch)
        finished.step(batch)
    more = monitored(agent, CONFIG)
    more.load_state(*saved(finished))
    whole.step(last)
    more.step(last)
    check_equal(more, whole)


def test_a_saved_state_is_a_copy(agent, batch):
    trainer = ImaginationTrainer(agent, CONFIG)
    trainer.step(batch)
    state, tensors = trainer.state_dict(), trainer.state_tensors()
    before = json.dumps(state), {k: x.clone() for k, x in tensors.items()}
    for _ in range(2):
        trainer.step(batch)
    assert json.dumps(state) == before[0]
    assert all(torch.equal(x, before[1][k]) for k, x in tensors.items())


def test_a_state_of_other_heads_is_refused(agent, batch):
    trainer = ImaginationTrainer(agent, CONFIG)
    trainer.step(batch)
    state, tensors = saved(trainer)
    tensors["value/outs.0.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"value/outs.0.bias has shape \(3,\), expected \(255,\)"
    ):
        ImaginationTrainer(agent, CONFIG).load_state(state, tensors)


def test_a_phase_continues_on_another_number_of_processes(tmp_path):
    "Six updates on one process, three on two, three on one: twelve on one"
    whole = phase3_job.make_trainer()
    first = phase3_job.make_trainer()
    for trainer in (whole, first):
        phase3_job.first_updates(trainer, 0, 1)
    phase3_job.write_state(first, tmp_path / "one")
    job = [Path(phase3_job.__file__), tmp_path / "two.json", tmp_path / "one"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, "-m", *torchrun, *job], check=True, timeout=300)
    last = phase3_job.make_trainer()
    phase3_job.read_state(last, tmp_path / "two")
    results = phase3_job.later_updates(last)
    phase3_job.later_updates(whole)
    expected = phase3_job.later_updates(whole)
    assert results == pytest.approx(expected, rel=1e-4, abs=1e-6)


# ---- on an accelerator that does not exist


@pytest.fixture
def on_device(monkeypatch, request):
    "A trainer and a batch there"
    new_head = Agent.new_head
    monkeypatch.setattr(
        Agent, "new_head", lambda self, *args: to_fake_device(new_head(self, *args))
    )
    monkeypatch.setattr(MLPHead, "to", lambda self, device: self)
    monkeypatch.setattr(pmpo, "make_generator", lambda device, seed: make_generator(seed))
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    # what the host decides is drawn there
    monkeypatch.setattr(ImaginationTrainer, "_choose", lambda self, updates: [0] * updates)
    with fake_device():
        parts = size("laptop")
        short = dict(horizon=2, context_length=2, value_updates=1, policy_updates=1)
        objective = getattr(request, "param", "pmpo")
        short |= dict(objective=objective, replay=4 if objective == "pmpo" else 1)
        config = replace(parts.config.imagination, value_warmup=1, **short)
        yield ImaginationTrainer(parts.agent(), config), parts.batch(4, 4)


@pytest.mark.parametrize("on_device", ["pmpo", "ppo", "awr"], indirect=True)
def test_an_iteration_waits_for_nothing_before_its_end(on_device):
    trainer, batch = on_device
    with no_copies():
        for _ in range(2):  # recorded, then dreamed
            measured, metrics = trainer.learn_from(batch)
    assert measured.device.type == DEVICE.type
    assert measured.shape == (4, 3, 2)
    assert "kl" in metrics


def test_an_iteration_is_read_once(agent, batch, monkeypatch):
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x.shape) or cpu(x))
    trainer = ImaginationTrainer(agent, replace(CONFIG, value_warmup=0))
    trainer.step(batch)
    # rewards, returns, values, and the metrics of the updates
    assert copies == [(3 * 16 * 4 + 6,)]


def test_precision(agent, batch):
    "The transformer computes in bf16, the heads in float32"
    dtypes = set()
    out = agent.dynamics.net.layers[0].attention.out
    hook = out.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))
    plain = ImaginationTrainer(agent, CONFIG)
    half = ImaginationTrainer(agent, CONFIG, mixed_precision="bf16")
    for trainer, dtype in ((plain, torch.float32), (half, torch.bfloat16)):
        dtypes.clear()
        for batch in batches(3):
            metrics = trainer.step(batch)
        assert dtypes == {dtype}
        assert {x.dtype for x in vars(trainer.rollouts[0]).values() if x is not None} == {
            torch.float32,
            torch.int64,
        }
    assert plain.history != half.history
    assert metrics["returns"] == pytest.approx(plain.history[-1]["returns"], rel=0.2, abs=0.1)
    hook.remove()
