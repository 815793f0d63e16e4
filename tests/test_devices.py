"""Every training step, dreams, play and phase 3 on an accelerator that does not exist, where
each wait for the host is an error (see fake_device.py)."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_device import DEVICE, fake_device, make_generator, no_copies, size, to_fake_device
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dreamer4_nb
from dreamer4_nb.models.agent import Agent, agent_loss
from dreamer4_nb.models.dynamics import Dream, dynamics_loss, generate
from dreamer4_nb.models.heads import MLPHead
from dreamer4_nb.models.tokenizer import tokenizer_loss
from dreamer4_nb.models.transformer import TimeCache
from dreamer4_nb.policy import pmpo
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.policy.pmpo import ImaginationTrainer
from dreamer4_nb.policy.rollout import imagine

B, T = 4, 8


@pytest.fixture(params=["laptop", "gpu"])
def parts(request):
    "Makes the models and batches of a size; what a test does with them is on the device"
    with fake_device():
        yield size(request.param)


def is_there(*tensors):
    return {x.device.type for x in tensors} == {DEVICE.type}


def train(model, loss_fn, batch):
    "Two training steps, the first without gradients to draw a mean from"
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for seed in range(2):
        drawn = loss_fn.draw(model, batch, make_generator(seed))
        terms = loss_fn(model, batch, drawn)
        terms.pop("metrics")
        means = [x.mean if isinstance(x, tuple) else x for x in terms.values()]
        sum(means).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return means


@pytest.mark.parametrize("images", [False, True])
def test_the_tokenizer_trains(parts, images):
    model, batch = parts.tokenizer(), parts.batch(B, T)
    if images:
        batch.single = torch.zeros(B, dtype=torch.bool, device=DEVICE)
    with no_copies():
        assert is_there(*train(model, tokenizer_loss(parts.config.tokenizer), batch))


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_dynamics_train(parts, fraction):
    model, batch = parts.dynamics(), parts.batch(B, T)
    model.noise_schedule.bootstrap_fraction = fraction
    with no_copies():
        assert is_there(*train(model, dynamics_loss, batch))


def test_the_agent_trains(parts):
    model, batch = parts.agent(), parts.batch(B, T)
    with no_copies():
        assert is_there(*train(model, agent_loss(), batch))


def test_encoding_and_decoding(parts):
    model, batch = parts.tokenizer(), parts.batch(B, T)
    context = parts.config.tokenizer.context
    with no_copies(), torch.no_grad():
        assert is_there(model.decode(model.encode(batch.frames)))
        encoded, decoded = TimeCache(context), TimeCache(context)
        for t in range(3):
            z = model.encode(batch.frames[:, t : t + 1], cache=encoded)
            picture = model.decode(z, cache=decoded)
    assert is_there(picture) and picture.shape == batch.frames[:, :1].shape


def test_dreams(parts):
    model, batch = parts.dynamics(), parts.batch(B, T)
    actions = batch.actions[:, :5]
    with no_copies():
        task = torch.zeros(B, dtype=torch.long, device=DEVICE)
        dream = Dream(model, task, generator=make_generator())
        dream.observe(batch.latents[:, :3], actions[:, :3])
        for t in range(3, 5):
            assert is_there(*dream.step(actions[:, t]))
        dreamed = generate(model, batch.latents[:, :3], actions, generator=make_generator())
    assert is_there(dreamed) and dreamed.shape == batch.latents[:, :5].shape


def test_a_step_whose_position_is_on_the_device(parts):
    "As a compiled dream takes it"
    model, batch = parts.dynamics(), parts.batch(B, T)
    with no_copies(), torch.no_grad():
        dream = Dream(model, generator=make_generator())
        dream.observe(batch.latents[:, :3], batch.actions[:, :3])
        dream.cache.position = torch.full((), 3, device=DEVICE)
        noise = torch.randn(B, 1, *model.latent_shape, device=DEVICE)
        latents, z, _ = dream.advance(noise, noise, batch.actions[:, 3:4], None)
    assert is_there(latents, z)


def test_imagined_rollouts_and_features(parts):
    agent, batch = parts.agent(), parts.batch(B, T)
    past = batch.latents, batch.actions[:, :T], batch.action_mask[:, :T]
    with no_copies():
        rollout = imagine(agent, *past, horizon=2, generator=make_generator())
        features = agent.features(*past, generator=make_generator())
    assert is_there(rollout.features, rollout.actions, rollout.rewards, features)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_acting(parts, temperature):
    tokenizer, agent, batch = parts.tokenizer(), parts.agent(), parts.batch(B, T)
    actor = Actor(tokenizer, agent, temperature=temperature, generator=make_generator())
    with no_copies():
        for t in range(3):
            assert is_there(actor.act(batch.frames[:, t]))


def test_updates_of_phase_3(parts, monkeypatch):
    new_head = Agent.new_head
    monkeypatch.setattr(Agent, "new_head", lambda *args: to_fake_device(new_head(*args)))
    monkeypatch.setattr(MLPHead, "to", lambda head, device: head)
    monkeypatch.setattr(pmpo, "make_generator", lambda device, seed: make_generator(seed))
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    short = dict(horizon=2, context_length=4)
    trainer = ImaginationTrainer(parts.agent(), replace(parts.config.imagination, **short))
    batch = parts.batch(B, T)
    with no_copies():
        for source in (trainer.warmup_source, trainer.rollout_source):
            rollout = source(batch, trainer.policy, trainer.generator)
            loss = trainer.update_value(rollout)
        metrics = trainer.update_policy(rollout)  # from dreams: PPO asks how they were drawn
    assert is_there(loss, *metrics.values())


def test_noise_is_never_drawn_on_the_processor_and_moved():
    draw = re.compile(r"torch\.(rand|randn|randint|randperm)\(.*\)\.(to|cuda)\(")
    for folder in ("models", "policy", "training"):
        for path in (Path(dreamer4_nb.__file__).parent / folder).glob("*.py"):
            assert not draw.search(path.read_text()), path
