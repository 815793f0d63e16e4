"Symexp two-hot codes, heads and their targets."

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamer4_nb.models.heads import (
    MLPHead,
    TwoHot,
    mtp_targets,
    symexp,
    symlog,
)
from dreamer4_nb.models.reward_losses import REWARD_LOSSES, extra_outputs


@given(st.floats(-147.0, 147.0, width=32))
def test_two_hot_round_trip(x):
    code = TwoHot()
    weights = code.encode(torch.tensor([x]))
    assert abs((weights @ code.bins).item() - x) <= 1e-4 * max(1.0, abs(x))
    assert abs(weights.sum() - 1) < 1e-5 and (weights > 0).sum() <= 2


@given(st.floats(-1000.0, 1000.0, width=32))
def test_symlog_round_trip(x):
    x = torch.tensor(x, dtype=torch.float64)
    assert torch.allclose(symexp(symlog(x)), x)


def test_numbers_beyond_the_bins_are_clipped():
    code = TwoHot(11, 3.0)
    weights = code.encode(torch.tensor([-1e6, 1e6]))
    assert weights[0, 0] == 1 and weights[1, -1] == 1


def test_no_opinion_means_exactly_zero():
    assert TwoHot().mean(torch.zeros(255)).item() == 0.0


@pytest.mark.parametrize("num_bins", [1, 2, 254])
def test_number_of_bins(num_bins):
    with pytest.raises(ValueError, match="must be odd and at least 3"):
        TwoHot(num_bins)


@pytest.mark.parametrize("name", REWARD_LOSSES)
def test_the_best_answer_to_a_target_is_the_target(name):
    code = TwoHot(41, 3.0)
    targets = torch.tensor([0.0, 1.0, -2.0, 7.0])
    logits = torch.zeros(4, 41 + extra_outputs(name), requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(300):
        loss = REWARD_LOSSES[name](code, logits, targets)
        assert loss.shape == targets.shape
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    computed = code.mean(logits[:, :41]).detach()
    # focal loss stops where it is nearly right
    assert (computed - targets).abs().max() < 0.3


@pytest.mark.parametrize("shift", [0, 1])
def test_mtp_targets(shift):
    x = torch.arange(20).view(2, 10)
    targets = mtp_targets(x, 4, 3, shift)
    assert targets.shape == (2, 4, 3)
    for t in range(4):
        for n in range(3):
            assert (targets[:, t, n] == x[:, t + n + shift]).all()


@pytest.mark.parametrize("shift, need", [(0, 6), (1, 7)])
def test_mtp_targets_need_enough_steps(shift, need):
    mtp_targets(torch.zeros(1, need), 4, 3, shift)
    with pytest.raises(ValueError, match=f"need {need} entries, got {need - 1}"):
        mtp_targets(torch.zeros(1, need - 1), 4, 3, shift)


@given(st.lists(st.floats(-200.0, 200.0, width=32), min_size=1, max_size=5))
def test_the_loss_is_a_cross_entropy_to_the_code(numbers):
    code = TwoHot(41, 4.0)
    x = torch.tensor(numbers)
    logits = torch.randn(len(x), 41, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    loss = code.loss(logits, x)
    expected = -(code.encode(x) * logits.log_softmax(-1)).sum(-1)
    assert torch.equal(loss, expected)
    gradients = [torch.autograd.grad(y.sum(), logits)[0] for y in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_outputs_begin_at_zero_and_learn():
    torch.manual_seed(0)
    head = MLPHead(16, 5, distances=3, hidden=32)
    h = torch.randn(4, 7, 16)
    assert head(h).shape == (4, 7, 3, 5) and head(h, 1).shape == (4, 7, 5)
    assert (head(h) == 0).all()
    (head(h) - 1).square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in head.outs)


def test_one_distance_equals_its_part_of_all():
    torch.manual_seed(0)
    head = MLPHead(16, 5, distances=3, hidden=32)
    for layer in head.outs:
        torch.nn.init.normal_(layer.weight)
    h = torch.randn(4, 16)
    for n in range(3):
        assert torch.equal(head(h)[:, n], head(h, n))


def test_latents_are_read_alike_at_all_places():
    torch.manual_seed(0)
    head = MLPHead(16 + 6 * 4, 5, hidden=32, latents=(6, 4), reader=8)
    features = torch.randn(3, 16 + 6 * 4)
    order = torch.randperm(6)
    latents = features[:, 16:].unflatten(-1, (6, 4))
    moved = torch.cat([features[:, :16], latents[:, order].flatten(1)], -1)
    a = head.read_latents(features, (6, 4))
    b = head.read_latents(moved, (6, 4))
    assert torch.equal(a[:, :16], b[:, :16])
    read = a[:, 16:].unflatten(-1, (6, 8))[:, order]
    torch.testing.assert_close(b[:, 16:].unflatten(-1, (6, 8)), read)
