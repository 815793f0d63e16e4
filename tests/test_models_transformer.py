"The plain transformer by its masks and its cache; the fast one by the plain one."

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module

from dreamer4_nb.models import fast_transformer, transformer
from dreamer4_nb.models.fast_transformer import FastTransformer
from dreamer4_nb.models.transformer import (
    Attention,
    TimeAttention,
    TimeCache,
    Transformer,
    attend,
    enable_gradient_checkpointing,
    group_mask,
    layer_kinds,
    paired_mask,
    rotary_of_steps,
    use_attention,
    uses_flex,
    window_mask,
)

SETTINGS = dict(width=32, depth=4, num_heads=4, num_kv_heads=2, time_every=2, context=4)
GROUPS = (3, 2)


def make(kind=Transformer, **changes):
    torch.manual_seed(0)
    return kind(**SETTINGS | changes)


def tokens(B=2, T=6, S=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, S, 32, generator=generator)


def pair(**changes):
    "A plain and a fast network with the same weights"
    plain = make(**changes)
    fast = make(FastTransformer, **changes)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def close(a, b, eps=1e-5):
    torch.testing.assert_close(a, b, atol=eps, rtol=0)


def dependence(net, groups, steps):
    "Which output token depends on which input token, by gradients"
    x = tokens(1, steps, sum(groups)).requires_grad_()
    probe = torch.randn(32, generator=torch.Generator().manual_seed(2))
    rows = []
    for output in (net(x, groups) @ probe).flatten():
        gradient = torch.autograd.grad(output, x, retain_graph=True)[0]
        rows.append(gradient.abs().amax(-1).flatten() > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("groups", [(3, 2), (1, 4), (2, 1, 2), (5,)])
def test_masks_by_gradients(groups):
    steps = 3
    step = torch.arange(steps).repeat_interleave(sum(groups))
    inside = group_mask(groups).repeat(steps, steps)
    expected = (step[:, None] >= step) & inside
    assert torch.equal(dependence(make(), groups, steps), expected)


def test_dense_masks_by_gradients():
    step = torch.arange(3).repeat_interleave(5)
    same_step = (step[:, None] == step) & group_mask(GROUPS).repeat(3, 3)
    one_layer = make(depth=1, attention="dense")
    assert torch.equal(dependence(one_layer, GROUPS, 3), same_step | (step[:, None] > step))


@pytest.mark.parametrize("attention", ["factorised", "dense"])
@pytest.mark.parametrize("prefill", [0, 1, 3, 7])
def test_cache_equals_the_full_pass(attention, prefill):
    net = make(attention=attention)
    x = tokens(T=11)
    if attention == "dense":
        # what a deep dense layer keeps of a step may be older than its window in the full pass
        net = make(attention=attention, depth=1)
    cache = TimeCache(4)
    outputs = [net(x[:, :prefill], GROUPS, cache=cache)] if prefill else []
    for t in range(prefill, 11):
        net(torch.randn(2, 1, 5, 32), GROUPS, cache=cache, commit=False)
        outputs.append(net(x[:, t : t + 1], GROUPS, cache=cache))
    close(torch.cat(outputs, 1), net(x, GROUPS), 1e-4)
    assert cache.steps == 11


@pytest.mark.parametrize("attention", ["factorised", "dense"])
def test_a_filled_cache_takes_one_step_at_a_time(attention):
    net = make(attention=attention)
    cache = TimeCache(4)
    net(tokens(T=2), GROUPS, cache=cache)
    with pytest.raises(ValueError, match="one step at a time, got 2"):
        net(tokens(T=2), GROUPS, cache=cache)


def test_separate_images_stand_alone():
    net = make()
    x = tokens()
    mixed = net(x, GROUPS, single=torch.tensor([True, False]))
    alone = net(x.flatten(0, 1)[:, None], GROUPS).view_as(x)
    close(mixed[0], alone[0])
    close(mixed[1], net(x, GROUPS)[1])


def test_grouped_keys_and_soft_cap():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    repeated = (t.repeat_interleave(3, 1) for t in (k, v))
    close(attend(q, k, v), attend(q, *repeated))
    close(attend(q, k, v, causal=True), attend(q, k, v, causal=True, soft_cap=1e4), 1e-4)


def test_where_caps_and_windows_are_compiled_into_the_kernel():
    assert uses_flex("cuda", 16) and uses_flex(torch.device("cuda:1"), 64)
    assert not uses_flex("cuda", 8)  # fewer channels than it takes
    assert not uses_flex("cpu", 64) and not uses_flex("mps", 64)


@pytest.fixture
def flex(monkeypatch):
    "Takes the processor for a CUDA device; `flex_attention` is counted and runs uncompiled"
    masks = []

    def counted(q, k, v, score_mod=None, block_mask=None, enable_gqa=False):
        masks.append(block_mask)
        settings = dict(score_mod=score_mod, block_mask=block_mask, enable_gqa=enable_gqa)
        return transformer.flex_attention(q, k, v, **settings)

    for module in (transformer, fast_transformer):
        monkeypatch.setattr(module, "uses_flex", lambda device, head_dim: True)
    monkeypatch.setattr(transformer, "compiled_flex", lambda: counted)
    # it would trace itself first, for each shape
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return masks


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@torch.no_grad()
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_flex_attention_gives_the_same_numbers(request, soft_cap):
    "With windows shorter than the sequence, causal, paired, over space and with grouped keys"
    pairs = torch.cat([tokens(T=7), tokens(T=7, seed=2)])

    def outputs():
        short = make(FastTransformer, soft_cap=soft_cap)
        long = make(FastTransformer, soft_cap=soft_cap, context=9)
        return [
            *(net(tokens(T=7), GROUPS) for net in (short, long)),
            *short.forward_paired(pairs, 2, GROUPS, final_tokens=2),
        ]

    expected = outputs()
    masks = request.getfixturevalue("flex")
    close(outputs(), expected)
    blocks = [mask for mask in masks if mask is not None]
    assert all(isinstance(mask, flex_module.BlockMask) for mask in blocks)
    # made once for each size: of the window, of all, of the pairs
    assert len({id(mask) for mask in blocks}) == (2 if soft_cap is None else 3)
    assert (soft_cap is None) == (len(blocks) == len(masks))


def test_which_steps_a_window_shows():
    assert window_mask(4, 2).int().tolist() == [
        *([1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]),
    ]
    assert paired_mask(3, 2).int().tolist() == [
        *([0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]),
    ]


@pytest.mark.parametrize("attention", ["factorised", "dense"])
@torch.no_grad()
def test_a_position_on_the_device_gives_the_same_numbers(attention):
    "While the cache fills and when it is full"
    net = make(attention=attention)
    x = tokens(T=11)
    caches = TimeCache(4), TimeCache(4)
    for cache in caches:
        net(x[:, :2], GROUPS, cache=cache)
    for t in range(2, 11):
        new = x[:, t : t + 1]
        expected = net(new, GROUPS, cache=caches[0])
        caches[1].position = torch.tensor(t)
        caches[1].steps = -1  # is not read
        close(net(new, GROUPS, cache=caches[1], commit=False), expected)


def test_rotary_tables_are_made_once_in_a_pass(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return rotary_of_steps(*args)

    for module in (transformer, fast_transformer):
        monkeypatch.setattr(module, "rotary_of_steps", counted)
    net = make(FastTransformer)
    net(tokens(), GROUPS)
    net.forward_paired(tokens(), 1, GROUPS, final_tokens=2)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "width, heads, kv_heads, message",
    [(30, 4, None, "not divisible by num_heads=4"), (32, 4, 3, "num_kv_heads=3")],
)
def test_heads_that_do_not_divide(width, heads, kv_heads, message):
    with pytest.raises(ValueError, match=message):
        Attention(width, heads, kv_heads)


@pytest.mark.parametrize(
    "depth, every, kinds", [(8, 4, "ssstssst"), (3, 4, "sst"), (4, 2, "stst"), (1, 4, "t")]
)
def test_layer_kinds(depth, every, kinds):
    assert layer_kinds(depth, every) == kinds


def test_residual_projections_begin_small():
    net = make(width=256, num_heads=8)
    for layer in net.layers:
        for projection in (layer.attention.out, layer.mlp.down):
            expected = (2 * 4 * projection.in_features) ** -0.5
            assert abs(projection.weight.std() / expected - 1) < 0.05


def test_checkpointing_changes_no_gradient():
    net = make()

    def gradients(enabled):
        net.zero_grad()
        enable_gradient_checkpointing(net, enabled)(
            tokens(), GROUPS
        ).square().mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    for a, b in zip(gradients(False), gradients(True)):
        assert torch.equal(a, b)


def test_another_attention_function():
    calls = []

    def counted(*qkv, **settings):
        calls.append(settings)
        return attend(*qkv, **settings)

    net = make(FastTransformer)
    expected = net(tokens(), GROUPS)
    use_attention(net, counted)
    assert torch.equal(net(tokens(), GROUPS), expected) and len(calls) == 6
    use_attention(net)
    net(tokens(), GROUPS)
    assert len(calls) == 6


def test_cache_grows_with_tokens_and_keeps_what_it_has():
    cache = TimeCache(4)
    cache.buffer(0, torch.zeros(2, 1, 1, 8))[0, :, :, 0] = 1.0
    grown = cache.buffer(0, torch.zeros(5, 1, 1, 8))
    assert (grown[0, :2, :, 0] == 1).all() and (grown[0, 2:] == 0).all()


def test_time_attention_sees_its_own_token_only():
    torch.manual_seed(0)
    attention = TimeAttention(32, 4)
    x = tokens().requires_grad_()
    gradient = torch.autograd.grad(attention(x, 4)[:, :, 2].square().sum(), x)[0]
    assert (gradient.abs().amax((0, 1, 3)) > 0).tolist() == [False, False, True, False, False]


# ---- the fast transformer


def test_same_parameters_and_the_same_start():
    plain, fast = make(), make(FastTransformer)
    for (a, p), (b, q) in zip(plain.named_parameters(), fast.named_parameters()):
        assert a == b and torch.equal(p, q)


@pytest.mark.parametrize("attention", ["factorised", "dense"])
@pytest.mark.parametrize("time_every", [2, 3])
def test_last_tokens_equal_the_plain_ones(attention, time_every):
    plain, fast = pair(attention=attention, time_every=time_every)
    full = plain(tokens(), GROUPS)
    assert torch.equal(fast(tokens(), GROUPS), full)
    close(fast(tokens(), GROUPS, last_tokens=2), full[:, :, -2:])
    close(fast(tokens(), GROUPS, last_tokens=4, final_tokens=1), full[:, :, -1:])


def test_fast_gradients_equal_the_plain_ones():
    plain, fast = pair()
    plain(tokens(), GROUPS)[:, :, -2:].square().mean().backward()
    fast(tokens(), GROUPS, last_tokens=2).square().mean().backward()
    for p, q in zip(plain.parameters(), fast.parameters()):
        close(p.grad, q.grad, 1e-6)


def test_fast_cache_equals_the_plain_pass():
    plain, fast = pair()
    x = tokens(T=9)
    cache = TimeCache(4)
    by_frame = [
        fast(x[:, t : t + 1], GROUPS, cache=cache, last_tokens=2, final_tokens=1)
        for t in range(9)
    ]
    close(torch.cat(by_frame, 1), plain(x, GROUPS)[:, :, -1:], 1e-4)


@pytest.mark.parametrize("time_every", [2, 3])
def test_paired_sequences_equal_steps_cut_out_by_hand(time_every):
    plain, fast = pair(time_every=time_every)
    clean, noisy = tokens(seed=1), tokens(seed=2)
    denoised, past = fast.forward_paired(
        torch.cat([clean, noisy[:1]]), 1, GROUPS, last_tokens=4, final_tokens=2
    )
    close(past, plain(clean, GROUPS)[:, :, -2:])
    for t in range(6):
        cut = torch.cat([clean[:1, :t], noisy[:1, t : t + 1]], 1)
        close(denoised[:, t], plain(cut, GROUPS)[:, -1, -4:], 1e-4)


def test_paired_images_have_no_past():
    plain, fast = pair()
    single = torch.tensor([True, True])
    both = torch.cat([tokens(1, seed=1), tokens(1, seed=2)])
    denoised, past = fast.forward_paired(both, 1, GROUPS, single)
    assert past is None
    close(denoised, plain(both[1:], GROUPS, single[1:]))


def test_dense_layers_cannot_be_paired():
    with pytest.raises(ValueError, match="Hint: use factorised layers"):
        make(FastTransformer, attention="dense").forward_paired(tokens(), 1, GROUPS)


@pytest.mark.parametrize(
    "kinds, computed", [("stst", [5, 5, 2, 2]), ("ssts", [5, 5, 5, 2]), ("sdsd", [5, 5, 5, 2])]
)
def test_only_what_is_read_is_computed(kinds, computed):
    net = make(FastTransformer, kinds=kinds)
    counts = []
    for layer in net.layers:
        layer.mlp.register_forward_hook(lambda m, i, o: counts.append(o.shape[2]))
    net(tokens(), GROUPS, last_tokens=2)
    assert counts == computed


def test_layers_are_sharding_units():
    for net in pair():
        units = [m for m in net.modules() if getattr(m, "is_sharding_unit", False)]
        assert units == list(net.layers)
