"Losses, dreams and play on another device than the processor: PyTorch's meta device, which holds no numbers and, outside of matrix products, refuses tensors from elsewhere."

import re
from pathlib import Path

import pytest
import torch
import torch.fx.experimental._config as symbolic
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.models.agent import Agent, agent_loss
from dreamer4_nb.models.dynamics import Dynamics, dynamics_loss
from dreamer4_nb.models.tokenizer import Tokenizer, tokenizer_loss
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.policy.rollout import imagine

from dreamer4_nb import config

B, T = 4, 8


@pytest.fixture
def no_numbers(monkeypatch):
    "Where a number is asked for there is none: all masks are true, all counts are two"
    for name, value in dict(__int__=2, __index__=2, __bool__=True).items():
        monkeypatch.setattr(torch.Tensor, name, lambda self, value=value: value)
    with symbolic.patch(meta_nonzero_assume_all_nonzero=True):
        yield


@pytest.mark.parametrize("size", ["laptop", "gpu"])
def test_nothing_is_left_on_the_processor(size, no_numbers):
    c, codec, drawn = (
        config.named(size),
        ActionCodec(ActionSpace.minerl_treechop()),
        torch.Generator(),
    )
    world = lambda: Dynamics(
        c.dynamics, c.tokenizer.num_latents, c.tokenizer.latent_dim, codec
    )
    tokenizer, dynamics, agent = (
        m.to("meta") for m in (Tokenizer(c.tokenizer), world(), Agent(world(), codec, c.agent))
    )
    steps = T + c.agent.mtp + 1
    zeros = lambda *shape, dtype=torch.float32: torch.zeros(*shape, dtype=dtype, device="meta")
    b = dict(
        frames=zeros(B, T, 3, 64, 64, dtype=torch.uint8),
        latents=zeros(B, T, c.tokenizer.num_latents, c.tokenizer.latent_dim),
        actions=zeros(B, steps, codec.num_components, dtype=torch.long),
        rewards=zeros(B, steps),
        relevant=zeros(B, dtype=torch.bool),
        **{
            k: zeros(B, steps, dtype=torch.bool)
            for k in ("action_mask", "reward_mask", "is_terminal")
        },
    )
    for model, loss in (
        (tokenizer, tokenizer_loss(c.tokenizer)),
        (dynamics, dynamics_loss),
        (agent, agent_loss()),
    ):
        terms = loss(model, b, drawn)
        sum(v for k, v in terms.items() if k != "metrics").backward()
        assert all(p.grad is None or p.grad.is_meta for p in model.parameters())
    past = b["latents"], b["actions"][:, :T], b["action_mask"][:, :T]
    assert imagine(agent, *past, horizon=3, generator=drawn).actions.shape == (
        B,
        3,
        codec.num_components,
    )
    assert agent.features(*past, generator=drawn).is_meta
    actor = Actor(tokenizer, agent, generator=drawn)
    for _ in range(2):
        assert actor.act(b["frames"][:, 0]).is_meta


def test_noise_is_drawn_on_the_processor():
    "A generator of another device would not fit what is drawn here and moved there; and so the same seed draws the same on all devices"
    for path in Path(config.__file__).parent.glob("*.py"):
        assert not re.findall(r"Generator\([^)]+\)", path.read_text()), path
