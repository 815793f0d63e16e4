"Property tests of the action codec."

import numpy as np
import torch
from dreamer4_nb.data.actions import ActionCodec, ActionSpace, bins_to_camera, camera_to_bins
from dreamer4_nb.models.actions import ActionEmbedding
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

words = st.text("abcdefghij", min_size=1, max_size=4)


@st.composite
def spaces(draw):
    names = draw(st.lists(words, min_size=1, max_size=7, unique=True))
    kinds = draw(
        st.lists(st.sampled_from(["key", "choice"]), min_size=len(names), max_size=len(names))
    )
    options = st.lists(words, min_size=1, max_size=6, unique=True)
    return ActionSpace(
        [n for n, k in zip(names, kinds) if k == "key"],
        draw(st.sampled_from([None, "camera"])),
        {n: draw(options) for n, k in zip(names, kinds) if k == "choice"},
    )


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
    assert (
        back.dtype == np.int64
        and back.shape == components.shape
        and (back == components).all()
    )
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
    codec, g = ActionCodec(space), torch.Generator().manual_seed(seed)
    d = action_distribution(codec, torch.randn(4, codec.num_logits, generator=g) * 3)
    again = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    sample = d.sample(again[0])
    assert torch.equal(sample, d.sample(again[1]))
    assert (
        sample.shape == (4, codec.num_components)
        and (sample < torch.tensor(codec.sizes)).all()
        and (sample >= 0).all()
    )
    assert (d.log_prob(d.mode()) >= d.log_prob(sample) - 1e-5).all()
    assert (d.kl(d).abs() < 1e-5).all() and (d.entropy() >= -1e-5).all()
    assert ActionEmbedding(codec, 4)(sample).shape == (4, 1, 4)


def test_extreme_logits():
    codec = ActionCodec(ActionSpace.vpt())
    logits = torch.full((2, codec.num_logits), 300.0)
    logits[:, ::2] = -300.0
    logits.requires_grad_()
    d = action_distribution(codec, logits, temperature=0.1)
    (
        d.log_prob(d.sample())
        + d.entropy()
        + d.kl(action_distribution(codec, torch.zeros_like(logits)))
    ).sum().backward()
    assert logits.grad.isfinite().all()
