"BC policies, intrinsic rewards and the actor on toys that can be checked by hand"

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from dreamer4_nb.config import AgentConfig, DynamicsConfig, TokenizerConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.tokenizer import Tokenizer
from dreamer4_nb.policy import cloning
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.policy.cloning import bc_features, fit_bc_policy
from dreamer4_nb.policy.intrinsic import IntrinsicReward, fit_intrinsic_reward
from dreamer4_nb.training import fit

CODEC = ActionCodec(ActionSpace.flat(["left", "right", "do"]))


@pytest.fixture(scope="module")
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
        latents=torch.randn(6, 5, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 3, (6, 6, 1), generator=g),
        relevant=torch.arange(6) >= 4,
    )


def test_bc_features_are_paired_with_the_following_action(agent, batch):
    features, actions = bc_features(agent, itertools.repeat(batch), 6)
    assert features.shape == (30, 32)
    assert torch.equal(actions[:, 0], batch.actions[:, 1:6, 0].flatten())


def test_bc_features_of_relevant_windows(agent, batch):
    _, actions = bc_features(agent, itertools.repeat(batch), 6, relevant_only=True)
    assert torch.equal(actions[:, 0], batch.actions[4:, 1:6, 0].flatten())


def test_bc_features_leave_unknown_actions_out(agent, batch):
    batch.action_mask[:, 3] = False
    features, actions = bc_features(agent, itertools.repeat(batch), 6)
    assert len(features) == len(actions) == 24


def test_bc_features_need_labels(agent, batch):
    batch.action_mask[:] = False
    with pytest.raises(ValueError, match="no known action .* Hint: behaviour cloning needs"):
        bc_features(agent, itertools.repeat(batch), 6)


def test_bc_policy_learns_a_toy(agent):
    "The action is the sign of the first feature."
    g = torch.Generator().manual_seed(0)
    features = torch.randn(512, 32, generator=g)
    actions = (features[:, :1] > 0).long()
    head = fit_bc_policy(agent, features, actions, epochs=30, batch_size=64, lr=1e-2)
    unseen = torch.randn(256, 32, generator=g)
    chosen = agent.action_distribution(unseen, policy=head).mode()
    assert (chosen == (unseen[:, :1] > 0)).float().mean() > 0.95


def test_a_seed_fixes_a_bc_policy(agent):
    features, actions = torch.randn(64, 32), torch.randint(0, 3, (64, 1))
    first, again, other = (
        fit_bc_policy(agent, features, actions, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def windows():
    g = torch.Generator().manual_seed(0)
    while True:
        yield make_batch(
            latents=torch.randn(32, 4, 1, 6, generator=g).tanh(),
            actions=torch.randint(0, 3, (32, 4, 1), generator=g),
        )


@pytest.mark.parametrize("kind", ["forward_model", "rnd"])
def test_an_ordinary_step_pays_one(kind):
    model = fit_intrinsic_reward(kind, CODEC, 6, windows(), steps=100)
    batch = next(windows())
    reward = model(batch.latents, batch.actions[:, 1:])
    assert reward.shape == (32, 3)
    assert reward.mean() == pytest.approx(1, abs=0.4)
    far = model(10 * batch.latents, batch.actions[:, 1:])
    assert far.max() == 10


def test_novelty_fades_and_chance_pays():
    "Noise cannot be predicted, so forward-model curiosity pays for it for ever."
    errors = {}
    for kind in ("forward_model", "rnd"):
        for steps in (10, 300):
            model = fit_intrinsic_reward(kind, CODEC, 6, windows(), steps=steps)
            errors[kind, steps] = model.mean_error.item()
    assert errors["forward_model", 300] > 0.5 * errors["forward_model", 10]
    assert errors["rnd", 300] < 0.1 * errors["rnd", 10]


def test_unknown_intrinsic_reward():
    with pytest.raises(ValueError, match="intrinsic='boredom' must be"):
        IntrinsicReward("boredom", CODEC, 6)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(
        TokenizerConfig(width=32, depth=2, num_latents=4, latent_dim=8, context=8)
    )


def act(tokenizer, agent, frames, **kw):
    actor = Actor(tokenizer, agent, generator=torch.Generator().manual_seed(0), **kw)
    return torch.stack([actor.act(f) for f in frames.transpose(0, 1)], 1)


def test_actor(tokenizer, agent):
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (3, 4, 3, 64, 64), dtype=torch.uint8, generator=g)
    actions = act(tokenizer, agent, frames)
    assert actions.shape == (3, 4, 1)
    assert torch.equal(actions, act(tokenizer, agent, frames))


def test_actor_forgets(tokenizer, agent):
    frames = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    actor = Actor(tokenizer, agent, generator=generator)
    first = actor.act(frames)
    actor.act(frames.flip(0))
    actor.reset()
    generator.manual_seed(0)
    assert torch.equal(actor.act(frames), first)


def test_an_interrupted_bc_policy_is_the_same(agent, tmp_path, monkeypatch):
    "It is stopped between two checkpoints and goes on from the first"
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(640, 32, generator=generator)
    actions = torch.randint(0, 3, (640, 1), generator=generator)
    path = tmp_path / "bc.fit.safetensors"

    def fit_it(checkpoint=None):
        head = fit_bc_policy(
            agent, features, actions, epochs=50, batch_size=128, checkpoint=checkpoint
        )
        return head.state_dict()

    whole = fit_it()
    calls = itertools.count()
    distribution = agent.action_distribution

    def interrupted(*args, **keywords):
        if next(calls) == 230:
            raise KeyboardInterrupt
        return distribution(*args, **keywords)

    monkeypatch.setattr(agent, "action_distribution", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_it(path)
    assert path.exists()
    resumed = fit_it(path)
    assert next(calls) < 230 + 1 + 50 + 1  # it has not begun anew
    assert not path.exists()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_fit_is_not_used(agent, tmp_path, monkeypatch):
    features = torch.randn(64, 32)
    actions = torch.randint(0, 3, (64, 1))
    path = tmp_path / "bc.fit.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(fit, "fit_head", partial(fit.fit_head, save_every=1))
        patch.setattr(cloning, "fit_head", fit.fit_head)
        fit_bc_policy(agent, features, actions, 2.0, 32, checkpoint=path)
    assert path.exists()
    resumed = fit_bc_policy(agent, features, actions, 3.0, 32, checkpoint=path).state_dict()
    whole = fit_bc_policy(agent, features, actions, 3.0, 32).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
