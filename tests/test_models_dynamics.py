"The dynamics: isolation, cache, and a loss that equals the plain transformer's, step by step."

from dataclasses import replace

import pytest
import torch

from dreamer4_nb.config import DynamicsConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.dynamics import Dream, Dynamics, dynamics_loss, generate
from dreamer4_nb.models.fast_transformer import FastTransformer
from dreamer4_nb.models.shortcut import NoiseSchedule
from dreamer4_nb.models.transformer import TimeCache, Transformer

CODEC = ActionCodec(ActionSpace.flat(["noop", "left", "right", "up", "down", "do"]))
CONFIG = DynamicsConfig(
    width=32, depth=4, num_heads=4, num_kv_heads=2, k_max=4, context=4, bootstrap_fraction=0.6
)
VARIANTS = {
    "paper's past": dict(clean_past=False, context_fraction=0.3),
    "clean past": {},
    "laptop": dict(frame_stack=True, agent_view=True, packing=1),
    "gate": dict(frame_stack=True, action_gate=24, agent_view=True, packing=1),
    "two spaces at the end": dict(time_every=3),
}
B, T = 3, 6
TASK = torch.tensor([0, 1, 1])


class PlainTransformer(FastTransformer):
    "Computes everything and throws away what is not asked for; paired steps one by one"

    def forward(
        self,
        x,
        groups=None,
        single=None,
        cache=None,
        commit=True,
        last_tokens=None,
        final_tokens=None,
    ):
        h = Transformer.forward(self, x, groups, single, cache, commit)
        return h[:, :, -(final_tokens or last_tokens or h.shape[2]) :]

    def forward_paired(self, x, paired, groups, single=None, last_tokens=None, final_tokens=0):
        steps = []
        for t in range(x.shape[1]):
            cut = torch.cat([x[:paired, :t], x[-paired:, t : t + 1]], 1)
            of_paired = None if single is None else single[-paired:]
            steps.append(self(cut, groups, of_paired, last_tokens=last_tokens)[:, -1:])
        others = None
        if final_tokens:
            of_others = None if single is None else single[:-paired]
            others = self(x[:-paired], groups, of_others, last_tokens=final_tokens)
        return torch.cat(steps, 1), others


def make(variant="clean past", kind=Dynamics, **kwargs):
    torch.manual_seed(0)
    return kind(replace(CONFIG, **VARIANTS[variant]), 16, 8, CODEC, num_tasks=2, **kwargs)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def window(T=T, single=None):
    g = seeded(1)
    latents = torch.randn(B, T, 16, 8, generator=g).tanh()
    actions = torch.randint(0, 6, (B, T, 1), generator=g)
    mask = torch.rand(B, T, generator=g) < 0.8
    return latents, actions, mask, single


def close(a, b, eps=1e-5):
    torch.testing.assert_close(a, b, atol=eps, rtol=0)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def test_loss_gradients_and_features_equal_the_plain_ones(variant):
    single = torch.tensor([False, True, False])
    results = []
    for transformer in (FastTransformer, PlainTransformer):
        model = make(variant, transformer=transformer)
        loss, metrics, features = model.loss(
            *window(single=single), seeded(), task=TASK, count=2
        )
        loss = loss.mean
        metrics = {name: value.mean for name, value in metrics.items()}
        (loss + features.square().mean()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss, metrics, features, gradients))
    fast, plain = results
    close(fast[0], plain[0])
    assert fast[1].keys() == plain[1].keys()
    for name, value in fast[1].items():
        close(value, plain[1][name])
    close(fast[2], plain[2])
    assert fast[3].keys() == plain[3].keys()
    for name, gradient in fast[3].items():
        close(gradient, plain[3][name], 1e-4)


def test_the_agent_is_isolated(variant):
    model = make(variant)
    latents, actions, mask, _ = window()
    index = torch.zeros(B, T, dtype=torch.long)
    inputs = latents, index, index, actions, mask
    prediction, features = model(*inputs, TASK)
    other, other_features = model(*inputs, 1 - TASK)
    close(prediction, other)
    close(prediction, model(*inputs)[0])
    assert features.shape == (B, T, model.feature_width)
    assert (features - other_features).abs().max() > 1e-3


def test_actions_reach_the_present_and_the_future(variant):
    model = make(variant)
    latents, actions, _, _ = window()
    index = torch.zeros(B, T, dtype=torch.long)
    changed = actions.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 6
    a = model(latents, index, index, actions)[0]
    b = model(latents, index, index, changed)[0]
    difference = (a - b).detach().abs().amax((0, 2, 3))
    assert difference[:3].max() < 1e-6 and difference[3:].min() > 1e-5


def test_unknown_actions_have_no_influence():
    model = make()
    latents, actions, mask, _ = window()
    index = torch.zeros(B, T, dtype=torch.long)
    changed = torch.where(mask[..., None], actions, (actions + 1) % 6)
    a = model(latents, index, index, actions, mask)[0]
    assert torch.equal(a, model(latents, index, index, changed, mask)[0])


@torch.no_grad()
def test_cache_equals_the_full_pass(variant):
    model = make(variant)
    latents, actions, _, _ = window(T=10)
    i, e = model.context_levels(B, 10)
    i[:, -1] = e[:, -1] = 0
    full = model(latents, i, e, actions)[0][:, -1:]
    cache = TimeCache(model.config.context)
    model(latents[:, :9], i[:, :9], e[:, :9], actions[:, :9], cache=cache)
    last = latents[:, 9:], i[:, 9:], e[:, 9:], actions[:, 9:]
    for _ in range(2):  # a try leaves no trace
        close(model(*last, cache=cache, commit=False)[0], full, 1e-4)


@torch.no_grad()
def test_previous_latents_are_those_around_each_place():
    model = make("laptop")
    latents, _, _, _ = window()
    computed = model.previous_latents(latents, None, None, 0)
    computed = computed.unflatten(-1, (3, 3, 8)).unflatten(2, (4, 4))
    plane = latents.unflatten(2, (4, 4))
    for row in range(4):
        for col in range(4):
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, col + j - 1
                    there = 0 <= r < 4 and 0 <= c < 4
                    expected = plane[:, :-1, r, c] if there else torch.zeros(B, T - 1, 8)
                    assert torch.equal(computed[:, 1:, row, col, i, j], expected)
    assert (computed[:, 0] == 0).all()


@torch.no_grad()
def test_previous_latents_of_paired_sequences_are_the_clean_ones():
    model = make("laptop")
    z = torch.randn(4, T, 16, 8)
    computed = model.previous_latents(z, None, None, paired=2)
    clean = model.previous_latents(z[:2], None, None, paired=0)
    assert torch.equal(computed[2:], clean) and torch.equal(computed[:2], clean)


@torch.no_grad()
def test_dreams_with_and_without_agent_see_the_same_world(variant):
    model = make(variant)
    latents, actions, mask, _ = window()

    def dreamed(task):
        dream = Dream(model, task, generator=seeded(3))
        dream.observe(latents, actions, mask)
        return torch.cat([dream.step(actions[:, 0])[0] for _ in range(3)], 1)

    close(dreamed(None), dreamed(TASK), 1e-4)


@torch.no_grad()
def test_features_without_a_cache_are_the_same(variant):
    model = make(variant)
    latents, actions, mask, _ = window()
    features = [
        Dream(model, TASK, generator=seeded(3)).observe(latents, actions, mask, use_cache)
        for use_cache in (True, False)
    ]
    close(*features, 1e-4)


def test_dreams_repeat_with_their_seed_and_use_their_sampler():
    model = make()
    latents, actions, _, _ = window()
    a, b = (generate(model, latents[:, :3], actions, generator=seeded(5)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(a[:, :3], latents[:, :3])
    dream = Dream(model, sampler=lambda f, z, sample_steps, k_max: torch.full_like(z, 7.0))
    assert (dream.step(actions[:, 0])[0] == 1).all()  # clipped


def test_levels_of_training_are_an_argument():
    class Fixed(NoiseSchedule):
        "The same levels in every batch"

        def sample(self, B, T, generator=None, device=None):
            return super().sample(B, T, seeded(7), device)

    model = make(noise_schedule=Fixed(4, own_context=True, context_fraction=0.0))
    batch = make_batch(latents=window()[0])
    a, b = (dynamics_loss(model, batch, seeded(s))["metrics"] for s in (0, 1))
    assert a["from_noise_mse"].count == b["from_noise_mse"].count
    assert a["from_noise_mse"] != b["from_noise_mse"]  # other noise
    levels = [model.noise_schedule.sample(B, T, seeded(s)) for s in (0, 1)]
    assert all(torch.equal(x, y) for x, y in zip(*levels))  # rows, too


def test_what_the_output_means_is_a_method():
    class Constant(Dynamics):
        "A model that knows that all latents are a half"

        def clean_latents(self, output, z, signal_level_index):
            assert output.shape == z.shape
            assert signal_level_index.shape == z.shape[:2]
            return torch.full_like(z, 0.5) + 0 * output

    model = make("paper's past", kind=Constant)
    batch = make_batch(latents=torch.full((B, T, 16, 8), 0.5))
    assert dynamics_loss(model, batch, seeded())["shortcut"].mean < 1e-10


def test_another_target_is_an_argument(variant):
    model = make(variant)
    calls = []

    def target(f, z, i, e, schedule):
        calls.append(f(z, i, e).shape == z.shape)
        return torch.zeros_like(z)

    model.loss(*window(), seeded(), target=target)
    assert calls == [True]


def test_loss_reads_the_window_of_a_batch_only():
    model = make()
    latents, actions, mask, _ = window()
    longer = make_batch(
        latents=latents,
        actions=torch.cat([actions, torch.zeros(B, 4, 1, dtype=torch.long)], 1),
        action_mask=torch.cat([mask, torch.ones(B, 4, dtype=torch.bool)], 1),
    )
    terms = dynamics_loss(model, longer, seeded())
    expected, _, _ = model.loss(*window(single=longer.single), seeded())
    assert terms.keys() == {"shortcut", "metrics"} and terms["shortcut"] == expected


def test_a_loss_with_its_noise_drawn_before(variant):
    "What is drawn first gives the same loss, and the loss itself then draws nothing"
    model = make(variant)
    latents, actions, mask, _ = window()
    batch = make_batch(latents=latents, actions=actions, action_mask=mask)
    drawn = dynamics_loss.draw(model, batch, seeded(6))
    generator = seeded(6)
    expected = dynamics_loss(model, batch, generator)
    state = torch.get_rng_state()
    terms = dynamics_loss(model, batch, drawn)
    assert terms == expected and torch.equal(torch.get_rng_state(), state)
    noise = model.draw_noise(latents, 2, seeded(6))
    a = model.loss(*window(), task=TASK, noise=noise)
    b = model.loss(*window(), seeded(6), TASK, count=2)
    assert a[:2] == b[:2] and torch.equal(a[2], b[2])


def test_packing_divides_the_latents():
    with pytest.raises(ValueError, match="packing=3 does not divide num_latents=16"):
        Dynamics(replace(CONFIG, packing=3), 16, 8, CODEC)
