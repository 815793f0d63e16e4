"""Losses, dreams and play on another device than the processor: PyTorch's meta device, which
holds no numbers and, outside of matrix products, accepts no tensors from elsewhere."""

import re
from pathlib import Path

import pytest
import torch
import torch.fx.experimental._config as symbolic

import dreamer4_nb
from dreamer4_nb import config
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent, agent_loss
from dreamer4_nb.models.dynamics import Dynamics, dynamics_loss
from dreamer4_nb.models.tokenizer import Tokenizer, tokenizer_loss
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.policy.rollout import imagine

B, T = 4, 8
SIZES = ["laptop", "gpu"]


@pytest.fixture
def no_numbers(monkeypatch):
    "Where a number is asked for there is none: all masks are true, all counts are two"

    def answer(value):
        return lambda self: value

    for name, value in dict(__int__=2, __index__=2, __bool__=True).items():
        monkeypatch.setattr(torch.Tensor, name, answer(value))
    with symbolic.patch(meta_nonzero_assume_all_nonzero=True):
        yield


class Parts:
    "Models and a batch of one size on the meta device"

    def __init__(self, size):
        c = config.named(size)
        self.config = c
        self.codec = ActionCodec(ActionSpace.minerl_treechop())
        self.tokenizer = Tokenizer(c.tokenizer).to("meta")
        self.dynamics = self.make_dynamics().to("meta")
        self.agent = Agent(self.make_dynamics(), self.codec, c.agent).to("meta")
        steps = T + c.agent.mtp + 1
        self.batch = make_batch(
            frames=torch.zeros(B, T, 3, 64, 64, dtype=torch.uint8, device="meta"),
            latents=torch.zeros(
                B, T, c.tokenizer.num_latents, c.tokenizer.latent_dim, device="meta"
            ),
            actions=torch.zeros(
                B, steps, self.codec.num_components, dtype=torch.long, device="meta"
            ),
            rewards=torch.zeros(B, steps, device="meta"),
        )
        self.past = (
            self.batch.latents,
            self.batch.actions[:, :T],
            self.batch.action_mask[:, :T],
        )

    def make_dynamics(self):
        c = self.config
        sizes = c.tokenizer.num_latents, c.tokenizer.latent_dim
        return Dynamics(c.dynamics, *sizes, self.codec)


@pytest.fixture(params=SIZES)
def parts(request, no_numbers):
    return Parts(request.param)


@pytest.mark.parametrize("name", ["tokenizer", "dynamics", "agent"])
def test_losses_on_the_device(parts, name):
    losses = dict(
        tokenizer=tokenizer_loss(parts.config.tokenizer),
        dynamics=dynamics_loss,
        agent=agent_loss(),
    )
    model = getattr(parts, name)
    terms = losses[name](model, parts.batch, torch.Generator())
    sum(v for k, v in terms.items() if k != "metrics").backward()
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())


def test_dreams_on_the_device(parts):
    dream = imagine(parts.agent, *parts.past, horizon=3, generator=torch.Generator())
    assert dream.actions.shape == (B, 3, parts.codec.num_components)
    assert dream.actions.is_meta
    assert parts.agent.features(*parts.past, generator=torch.Generator()).is_meta


def test_acting_on_the_device(parts):
    actor = Actor(parts.tokenizer, parts.agent, generator=torch.Generator())
    for _ in range(2):
        assert actor.act(parts.batch.frames[:, 0]).is_meta


def test_noise_is_drawn_on_the_processor():
    """A generator of another device would not fit what is drawn on the processor and moved;
    and so the same seed draws the same on all devices"""
    for path in Path(dreamer4_nb.__file__).parent.rglob("*.py"):
        assert not re.findall(r"Generator\([^)]+\)", path.read_text()), path
