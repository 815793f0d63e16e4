"Property tests of the action codec."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamer4_nb.data.actions import (
    ActionCodec,
    ActionSpace,
    bins_to_camera,
    camera_to_bins,
    continuous_advice,
)
from dreamer4_nb.models.actions import ActionEmbedding, action_distribution

words = st.text("abcdefghij", min_size=1, max_size=4)


@st.composite
def spaces(draw):
    names = draw(st.lists(words, min_size=1, max_size=7, unique=True))
    is_key = draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    options = st.lists(words, min_size=1, max_size=6, unique=True)
    keys = [name for name, key in zip(names, is_key) if key]
    choices = {name: draw(options) for name, key in zip(names, is_key) if not key}
    return ActionSpace(keys, draw(st.sampled_from([None, "camera"])), choices)


def draw_components(codec, shape, seed):
    return np.random.default_rng(seed).integers(0, codec.sizes, (*shape, codec.num_components))


shapes = st.sampled_from([(), (1,), (7,), (2, 3)])
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(spaces(), shapes, seeds)
def test_round_trip(space, shape, seed):
    codec = ActionCodec(space)
    components = draw_components(codec, shape, seed)
    back = codec.encode(codec.decode(components))
    assert back.dtype == np.int64
    assert back.shape == components.shape
    assert (back == components).all()
    assert ActionSpace.from_dict(space.to_dict()) == space


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-400, 400)))
def test_camera(degrees):
    bins = camera_to_bins(degrees)
    assert ((bins >= 0) & (bins <= 10)).all()
    assert (camera_to_bins(-degrees) == 10 - bins).all()
    inside = np.clip(degrees, -10, 10)
    nearest = abs(bins_to_camera(np.arange(11)) - inside[:, None]).min(1)
    assert (abs(bins_to_camera(bins) - inside) <= nearest + 1.3).all()
    assert (abs(degrees) > 0.28).all() or (bins[abs(degrees) < 0.27] == 5).all()


@settings(deadline=None, max_examples=40)
@given(spaces(), seeds)
def test_distribution(space, seed):
    codec = ActionCodec(space)
    g = torch.Generator().manual_seed(seed)
    d = action_distribution(codec, torch.randn(4, codec.num_logits, generator=g) * 3)
    sample = d.sample(torch.Generator().manual_seed(1))
    assert torch.equal(sample, d.sample(torch.Generator().manual_seed(1)))
    assert sample.shape == (4, codec.num_components)
    assert ((sample >= 0) & (sample < torch.tensor(codec.sizes))).all()
    assert (d.log_prob(d.mode()) >= d.log_prob(sample) - 1e-5).all()
    assert (d.kl(d).abs() < 1e-5).all()
    assert (d.entropy() >= -1e-5).all()
    assert ActionEmbedding(codec, 4)(sample).shape == (4, 1, 4)


def test_extreme_logits():
    codec = ActionCodec(ActionSpace.vpt())
    logits = torch.full((2, codec.num_logits), 300.0)
    logits[:, ::2] = -300.0
    logits.requires_grad_()
    d = action_distribution(codec, logits, temperature=0.1)
    uniform = action_distribution(codec, torch.zeros_like(logits))
    total = d.log_prob(d.sample()) + d.entropy() + d.kl(uniform)
    total.sum().backward()
    assert logits.grad.isfinite().all()


CODEC = ActionCodec(ActionSpace(("jump",), "camera", {"craft": ("none", "planks")}))
RIGHT = dict(jump=[0, 1], camera=[[0, 0], [1, 2]], craft=["none", "planks"])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(fly=[0, 0]), "action 'fly': unknown key"),
        (dict(jump=[0, 2]), "action 'jump': a key is 0 or 1, got 2"),
        (dict(jump=["no", "yes"]), "action 'jump': a key is 0 or 1, got <U3"),
        (dict(camera=[0, 1, 2]), r"action 'camera': has shape \(3,\)"),
        (dict(camera=[[0, np.nan], [0, 0]]), "action 'camera': degrees must be finite"),
        (dict(craft=["none", "boat"]), "action 'craft': unknown option 'boat'"),
        (dict(craft=[0, 2]), r"action 'craft': needs option names or numbers 0..1"),
        (dict(jump=[0]), r"lengths disagree: jump \(1,\), camera \(2,\), craft \(2,\)"),
    ],
)
def test_wrong_actions_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        CODEC.encode(RIGHT | changes)


def test_missing_action_is_named():
    with pytest.raises(ValueError, match="action 'craft': missing"):
        CODEC.encode({k: v for k, v in RIGHT.items() if k != "craft"})


def test_wrong_class_numbers():
    with pytest.raises(ValueError, match="expected 3 components, got 2"):
        CODEC.decode(np.zeros((4, 2), int))
    with pytest.raises(ValueError, match="class number outside its range"):
        CODEC.decode(np.full((4, 3), 2))


def test_wrong_spaces():
    with pytest.raises(ValueError, match="choice 'craft' has empty or repeated options"):
        ActionSpace(choices=dict(craft=["none", "none"]))
    with pytest.raises(ValueError, match="'Crafter-v1' is not a known MineRL task"):
        ActionSpace.minerl("Crafter-v1")


def test_a_continuous_action_is_met_with_bins():
    space = ActionSpace(keys=["jump"], choices={"steer": ["left", "right"]})
    steer = np.linspace(-1, 1, 70)
    with pytest.raises(ValueError, match="steer.*continuous.*bins.*7 bins the fullest would"):
        ActionCodec(space).encode(dict(jump=np.zeros(70), steer=steer))
    with pytest.raises(ValueError, match="jump.*got -1.0.*continuous"):
        ActionCodec(space).encode(dict(jump=steer, steer=np.zeros(70)))
    with pytest.raises(ValueError, match="numbers from 0 to 4 are a choice"):
        ActionCodec(space).encode(dict(jump=np.arange(5), steer=np.zeros(5)))
    whole = ActionCodec(space).encode(dict(jump=np.ones(3), steer=np.array([0.0, 1.0, 0.0])))
    assert whole.tolist() == [[1, 0], [1, 1], [1, 0]]


def test_advice_says_how_uneven_bins_would_be():
    even = continuous_advice(np.linspace(-1, 1, 700))
    assert "the fullest would hold 17% of the steps and the emptiest 8%" in even
    uneven = continuous_advice(np.r_[np.zeros(95), np.linspace(-1, 1, 5)])
    assert "uneven" in uneven and "96%" in uneven
    assert "Box(-1, 1, (2,))" in continuous_advice(np.array([[-1, 0.5], [0.2, 1.0]]))
