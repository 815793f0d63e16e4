"The agent: which data teach which head, and what the heads predict."

from dataclasses import replace

import pytest
import torch
from fake_device import fake_device, make_generator, no_copies, size

from dreamer4_nb.config import AgentConfig, DynamicsConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent, agent_loss, num_uniform
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.training.distributed import Average

B, T, MTP = 6, 5, 3
LOOK_AHEAD = MTP + 1


def make_agent(**changes):
    torch.manual_seed(0)
    codec = ActionCodec(ActionSpace.flat(["noop", "left", "right", "up", "down", "do"]))
    config = DynamicsConfig(
        width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
    )
    dynamics = Dynamics(config, 4, 8, codec)
    return Agent(dynamics, codec, AgentConfig(hidden=32, mtp=MTP, **changes))


def with_opinion(agent):
    "An agent whose heads no longer begin at zero"
    for head in (agent.policy, agent.reward, agent.cont):
        for layer in head.outs:
            torch.nn.init.normal_(layer.weight, std=0.2)
    return agent


def fake_batch(seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    relevant = torch.arange(B) >= B // 2
    fields = dict(
        latents=torch.randn(B, T, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 6, (B, T + LOOK_AHEAD, 1), generator=g),
        rewards=(torch.rand(B, T + LOOK_AHEAD, generator=g) < 0.3).float(),
        relevant=relevant,
        importance=torch.where(relevant, 0.1, 1.0),
    )
    return make_batch(**fields | changes)


def features(width=32):
    return torch.randn(B, T, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def agent():
    return with_opinion(make_agent())


@pytest.fixture
def batch():
    return fake_batch()


def means(terms):
    return {k: x.mean if isinstance(x, Average) else means(x) for k, x in terms.items()}


def loss(agent, batch):
    return means(agent_loss()(agent, batch, torch.Generator().manual_seed(2)))


def head_losses(agent, h, batch, bc_mask):
    return means(agent.head_losses(h, batch, bc_mask))


def test_new_heads_have_no_opinion():
    agent = make_agent()
    h = features()
    reward, cont = agent.predict_reward_and_continue(h)
    assert (reward == 0).all() and (cont == 0.5).all()
    entropy = agent.action_distribution(h).entropy()
    torch.testing.assert_close(entropy, torch.full_like(entropy, 6.0).log())


def test_temperature_and_other_policies(agent):
    h = features()
    sharp = agent.action_distribution(h, temperature=0.1)
    assert (sharp.entropy() < agent.action_distribution(h).entropy()).all()
    other = agent.new_head(6, seed=1)
    uniform = agent.action_distribution(h, policy=other).entropy()
    torch.testing.assert_close(uniform, torch.full_like(uniform, 6.0).log())


def test_new_heads_depend_on_their_seed_alone():
    agent = make_agent()
    state = torch.get_rng_state()
    a, b, c = (agent.new_head(6, seed).net[1].weight for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_terms_of_the_loss(agent, batch):
    terms = loss(agent, batch)
    assert terms.keys() == {"shortcut", "policy", "reward", "cont", "metrics"}
    assert terms["metrics"].keys() >= {"policy_nll", "reward_nll", "flow_mse"}
    assert all(terms[k].requires_grad for k in terms if k != "metrics")


def test_policy_learns_from_copied_sequences_alone(agent, batch):
    h = features().requires_grad_()
    terms = head_losses(agent, h, batch, bc_mask=batch.relevant)
    gradient = torch.autograd.grad(terms["policy"], h)[0].abs().sum((1, 2))
    assert (gradient[~batch.relevant] == 0).all() and (gradient[batch.relevant] > 0).all()


def test_policy_does_not_learn_unknown_actions(agent, batch):
    known = batch.action_mask.clone()
    known[:, 4] = False
    changed = batch.actions.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 6
    h = features()
    a, b = (
        head_losses(agent, h, replace(batch, actions=x, action_mask=known), batch.relevant)
        for x in (batch.actions, changed)
    )
    assert torch.equal(a["policy"], b["policy"])


def test_policy_predicts_what_comes_after_the_step(agent, batch):
    "The action that led to step 0 is no target; the one that leads to step 1 is"
    h = features()
    everything = torch.ones(B, dtype=torch.bool)
    base = head_losses(agent, h, batch, everything)["policy"]
    for index, matters in ((0, False), (1, True), (T + LOOK_AHEAD - 1, True)):
        actions = batch.actions.clone()
        actions[:, index] = (actions[:, index] + 1) % 6
        changed = head_losses(agent, h, replace(batch, actions=actions), everything)["policy"]
        assert (changed != base).item() == matters


def test_rewards_are_those_of_the_step_and_later_ones(agent, batch):
    h = features()
    base = head_losses(agent, h, batch, batch.relevant)["reward"]
    for index, matters in ((0, True), (T + MTP - 1, True), (T + MTP, False)):
        rewards = batch.rewards.clone()
        rewards[:, index] = 3.0
        changed = head_losses(agent, h, replace(batch, rewards=rewards), batch.relevant)
        assert (changed["reward"] != base).item() == matters


def test_reward_head_learns_from_both_halves(agent, batch):
    h = features().requires_grad_()
    terms = head_losses(agent, h, batch, bc_mask=batch.relevant)
    gradient = torch.autograd.grad(terms["reward"], h)[0].abs().sum((1, 2))
    assert (gradient > 0).all()


def test_video_loss_learns_from_the_uniform_half(agent, batch):
    base = loss(agent, batch)["shortcut"]
    relevant = batch.relevant[:, None, None, None]
    other = torch.where(relevant, 0.0, batch.latents)
    assert torch.isclose(loss(agent, replace(batch, latents=other))["shortcut"], base)
    other = torch.where(relevant, batch.latents, 0.0)
    assert not torch.isclose(loss(agent, replace(batch, latents=other))["shortcut"], base)


def test_bc_loss_reaches_the_transformer(agent, batch):
    loss(agent, batch)["policy"].backward()
    assert agent.dynamics.agent.grad.abs().sum() > 0
    assert agent.dynamics.net.layers[0].attention.q.weight.grad.abs().sum() > 0
    assert agent.reward.outs[0].weight.grad is None


def test_steep_decay_leaves_the_nearest_distance(batch):
    agent = with_opinion(make_agent(mtp_decay=1e-6))
    terms = head_losses(agent, features(), batch, batch.relevant)
    for name in ("policy", "reward"):
        nearest = terms["metrics"][f"{name}_nll"]
        torch.testing.assert_close(terms[name], nearest, atol=1e-3, rtol=0)


def test_importance_weighs_the_reward_loss(batch):
    plain, weighed = (
        head_losses(
            with_opinion(make_agent(reward_importance=on)), features(), batch, batch.relevant
        )["reward"]
        for on in (False, True)
    )
    assert abs(plain - weighed) > 1e-4


@pytest.mark.parametrize("name", ["two_hot", "focal", "hl_gauss", "multi_task"])
def test_reward_losses_by_name(name, batch):
    agent = make_agent(reward_loss=name)
    terms = head_losses(agent, features(), batch, batch.relevant)
    terms["reward"].backward()
    assert terms["reward"] > 0 and agent.reward.outs[0].weight.grad.abs().sum() > 0
    assert agent.predict_reward_and_continue(features())[0].shape == (B, T)


def test_terminal_steps_teach_the_continue_head():
    agent = make_agent()
    terminal = torch.zeros(B, T + LOOK_AHEAD, dtype=torch.bool)
    terminal[:, 2] = True
    batch = fake_batch(is_terminal=terminal)
    h = features()
    h[..., 0] = terminal[:, :T].float() * 6 - 3
    optimizer = torch.optim.Adam(agent.cont.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        agent.continue_nll(h, batch.is_terminal).mean().backward()
        optimizer.step()
    cont = agent.predict_reward_and_continue(h)[1]
    assert cont[:, 2].max() < 0.3 and cont[:, [0, 1, 3, 4]].min() > 0.7


def test_features_are_those_of_a_window_at_the_context_level(agent, batch):
    window = batch.latents, batch.actions[:, :T], batch.action_mask[:, :T]
    a, b = (agent.features(*window, generator=torch.Generator().manual_seed(4)) for _ in "ab")
    assert torch.equal(a, b) and a.shape == (B, T, agent.dynamics.feature_width)
    assert not a.requires_grad


def test_a_count_tells_masked_steps_from_others(agent, batch):
    "Processes with other numbers of steps that count are averaged by these"
    known = batch.action_mask.clone()
    known[:, 4] = False
    h = features()
    decay = agent.config.mtp_decay ** torch.arange(LOOK_AHEAD)
    terms = agent.head_losses(h, replace(batch, action_mask=known), batch.relevant)
    lacking = sum(decay[n] for t in range(T) for n in range(LOOK_AHEAD) if t + n + 1 == 4)
    rows = batch.relevant.sum()
    assert terms["policy"].count == pytest.approx(rows * (T * decay.sum() - lacking))
    assert terms["metrics"]["policy_nll"].count == rows * (T - 1)
    assert terms["reward"].count == pytest.approx(B * T * decay.sum())
    assert terms["cont"].count == B * T


def test_noise_drawn_before_gives_the_same_loss(agent, batch):
    loss_fn = agent_loss()
    drawn = loss_fn.draw(agent, batch, torch.Generator().manual_seed(2))
    assert len(drawn.noise) == B // 2  # rows of the video loss
    a, b = (means(loss_fn(agent, batch, drawn)) for _ in "ab")
    assert a == b == loss(agent, batch)


def test_the_loss_keeps_one_row_for_the_video(agent, batch):
    everything = replace(batch, relevant=torch.ones(B, dtype=torch.bool), num_uniform=0)
    assert len(agent_loss().draw(agent, everything).noise) == 1


def test_uniform_rows_are_counted_on_the_processor(batch):
    assert num_uniform(replace(batch, num_uniform=None)) == B // 2
    with pytest.raises(ValueError, match="num_uniform is not known, and its rows are on meta"):
        num_uniform(replace(batch.to("meta"), num_uniform=None))


@pytest.mark.parametrize("name", ["two_hot", "focal", "hl_gauss", "multi_task"])
def test_the_losses_of_the_heads_are_one_graph(batch, name):
    "No break, and no second graph for other batches"
    torch.compiler.reset()
    agent = with_opinion(make_agent(reward_loss=name, reward_importance=True))
    compiled = torch.compile(agent.head_losses, fullgraph=True, backend="eager")
    h = features()
    terms = means(compiled(h, batch, batch.relevant))
    torch.testing.assert_close(terms, head_losses(agent, h, batch, batch.relevant))
    with torch.compiler.set_stance("fail_on_recompile"):
        other = fake_batch(seed=1)
        compiled(h, other, other.relevant)


def test_the_loss_waits_for_nothing():
    with fake_device():
        parts = size("smoke")
        agent, batch = parts.agent(), parts.batch()
        drawn = agent_loss().draw(agent, batch, make_generator())
        with no_copies():
            terms = means(agent_loss()(agent, batch, drawn))
            sum(x for k, x in terms.items() if k != "metrics").backward()
